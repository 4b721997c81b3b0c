"""Choosing images of an annotation set: splits by class, and one object per image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from rcnn_ext.data.annotations import AnnotationSet, ImageRecord
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
        name: dataclasses.replace(annotations, images=tuple(annotations.images[i] for i in indices))
        for name, indices in taken.items()
    }


def _stratified_order(
    annotations: AnnotationSet, rng: np.random.Generator, stratify: bool
) -> np.ndarray:  # int64 [number of images]
    order = rng.permutation(len(annotations))
    if not stratify:
        return order
    images_with = np.zeros(len(annotations.classes) + 1, dtype=np.int64)
    for record in annotations.images:
        images_with[np.unique(record.labels)] += 1
    strata = np.zeros(len(annotations), dtype=np.int64)
    for index, record in enumerate(annotations.images):
        labels = np.unique(record.labels)
        if len(labels):
            strata[index] = labels[np.argmin(images_with[labels])]
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
        annotations, images=tuple(images), skipped=annotations.skipped if largest else skipped
    )
