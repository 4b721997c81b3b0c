"""Choosing images of an annotation set: splits by class, and one object per image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from rcnn_ext.data.annotations import AnnotationSet, ImageRecord, PackedImages
from rcnn_ext.data.problems import Report


def partition(
    annotations: AnnotationSet,
    fractions: Mapping[str, float],
    *,
    seed: int = 0,
    stratify: bool = True,
) -> dict[str, AnnotationSet]:
    """Split images at random, the same way for the same seed.

    Args:
        annotations: All images.
        fractions: Part of the images by the name of the split, together less than 1.
        seed: Seed of the choice.
        stratify: Whether each split gets its share of every class, to within one image per class.
            An image with objects of several classes counts for the rarest of them.

    Returns:
        The splits by name, and what is left as ``train``; each in the order of ``annotations``.
    """
    order = _stratified_order(annotations, np.random.default_rng(seed), stratify)
    taken: dict[str, np.ndarray] = {}
    left = 1.0
    for name, fraction in fractions.items():
        # Every so-and-so-many-th of an order that is sorted by class: the total is exact, and so is
        # the share of each class but for rounding.
        part = fraction / left
        steps = np.floor(np.arange(len(order) + 1) * part + 0.5)
        chosen = np.diff(steps) > 0
        taken[name] = np.sort(order[chosen])
        order = order[~chosen]
        left -= fraction
    taken["train"] = np.sort(order)
    return {
        name: dataclasses.replace(annotations, images=annotations.images.take(indices))
        for name, indices in taken.items()
    }


def _stratified_order(
    annotations: AnnotationSet, rng: np.random.Generator, stratify: bool
) -> np.ndarray:  # int64 [number of images]
    order = rng.permutation(len(annotations))
    if not stratify:
        return order
    labels, images = annotations.images.labels, annotations.images.object_images()
    # Each class of each image once, in the order of labels within an image.
    pairs = np.unique(np.stack([images, labels.astype(np.int64)], axis=1), axis=0)  # [P, 2]
    images_with = np.bincount(pairs[:, 1], minlength=len(annotations.classes) + 1)
    strata = np.zeros(len(annotations), dtype=np.int64)
    # The rarest class of each image first, of those the first label.
    pairs = pairs[np.lexsort((pairs[:, 1], images_with[pairs[:, 1]], pairs[:, 0]))]
    first = np.diff(pairs[:, 0], prepend=-1) > 0
    strata[pairs[first, 0]] = pairs[first, 1]
    return order[np.argsort(strata[order], kind="stable")]


def one_object_each(annotations: AnnotationSet, report: Report, *, largest: bool) -> AnnotationSet:
    """Return the images with exactly one object.

    Args:
        annotations: Annotated images.
        report: Where images with another number go, as errors.
        largest: Whether of several objects the largest is taken, and images without any are left
            out, neither of which is a problem then.
    """
    images: list[ImageRecord] = []
    for record in annotations.images:
        count = len(record.boxes)
        if count == 1:
            images.append(record)
        elif largest and count:
            sides = record.boxes[:, 2:] - record.boxes[:, :2]  # [N, 2]
            images.append(record.select(np.array([int(sides.prod(axis=1).argmax())])))
        elif not largest:
            file, line = record.origin or (record.path, None)
            report.error(file, line, f"{record.path.name} has {count} objects instead of one")
    skipped = annotations.skipped + len(annotations) - len(images)
    return dataclasses.replace(
        annotations,
        images=PackedImages.pack(images),
        skipped=annotations.skipped if largest else skipped,
    )
