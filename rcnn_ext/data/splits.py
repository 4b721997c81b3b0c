"""The images of a split, as the data section of a recipe says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rcnn_ext.config.schema import Recipe
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.config import DataConfig, HubConfig
from rcnn_ext.data.formats import has_split, open_split
from rcnn_ext.data.hub import copy_split, open_stream, stream_splits
from rcnn_ext.data.statistics import channel_statistics
from rcnn_ext.errors import UserError

__all__ = [
    "check_one_object",
    "first_images",
    "fitted",
    "has_validation",
    "open_evaluation",
    "open_split",
    "with_balanced_classes",
    "with_measured_channels",
]

# Where a run keeps the images of a stream that it is evaluated on.
STREAMED = "streamed"


def open_evaluation(
    config: DataConfig,
    root: Path,
    split: str,
    classes: Sequence[str],
    keep: Path,
    most: int | None = None,
) -> AnnotationSet:
    """The images of a split that a detector is evaluated on.

    Args:
        config: The data section of its recipe.
        root: The data folder.
        split: ``train``, ``val`` or ``test``.
        classes: The classes of the detector.
        keep: Folder where the images of a stream are kept, in a folder named after the split; they
            are looked at again in every validation and for pictures.
        most: Only the first so many images; None means all.

    Raises:
        UserError: The split does not exist, or something in it is wrong.
    """
    if config.format == "hf":
        return copy_split(open_stream(config, root, split, classes), keep / split, most)
    annotations = open_split(config, root, split, classes)
    if not annotations.annotated:
        raise UserError(
            f"{annotations.source} only lists images; an evaluation needs what is in them "
            f"(rcnn-ext detect finds objects in images of which nothing is known)"
        )
    return first_images(annotations, most)


def has_validation(config: DataConfig, root: Path) -> bool:
    """Whether there are images for validation: of the data, set aside, or named by the recipe."""
    if config.format == "hf":
        # A split that the recipe names and the data have not is to be an error.
        named = config.hf.val_split != HubConfig().val_split
        return named or "val" in stream_splits(config, root)
    return has_split(config, root, "val")


def fitted(recipe: Recipe, annotations: AnnotationSet | None, say: Callable[[str], None]) -> Recipe:
    """The recipe with all that it leaves to the training images, which are checked for it.

    Args:
        recipe: As it was given.
        annotations: The training images; None where nothing is known of them beforehand.
        say: Tells people.

    Raises:
        UserError: The model cannot learn from them.
    """
    if annotations is not None:
        recipe = _fitted_to(recipe, annotations, say)
    if recipe.model.weights_backbone is None and recipe.model.trainable_layers is not None:
        say("model.weights_backbone=null: the whole backbone learns")
    return recipe


def _fitted_to(recipe: Recipe, annotations: AnnotationSet, say: Callable[[str], None]) -> Recipe:
    if recipe.data.measure_mean_std:
        recipe = with_measured_channels(recipe, annotations)
        mean, std = recipe.model.image_mean, recipe.model.image_std
        say(f"measured: model.image_mean={mean} model.image_std={std}")
    if recipe.model.detector == "localizer":
        check_one_object(recipe, annotations)
        if recipe.model.localizer.class_weights == "balanced":
            recipe = with_balanced_classes(recipe, annotations)
    return recipe


def with_measured_channels(recipe: Recipe, annotations: AnnotationSet) -> Recipe:
    """The recipe with mean and deviation of the training images in its model section.

    They are part of the model from then on: of its checkpoints, and of the recipe in the run's
    folder.
    """
    mean, std = channel_statistics(
        annotations,
        workers=recipe.data.workers,
        skip_broken=recipe.data.on_error == "skip",
    )
    rounded = [[round(value, 6) for value in values] for values in (mean, std)]
    model = dataclasses.replace(recipe.model, image_mean=rounded[0], image_std=rounded[1])
    return dataclasses.replace(recipe, model=model)


def with_balanced_classes(recipe: Recipe, annotations: AnnotationSet) -> Recipe:
    """The recipe with the weights of classes that ``class_weights: balanced`` means.

    Each class has as much weight as any other, and an object the weight 1 on average.

    Raises:
        UserError: A class has no objects.
    """
    labels = np.concatenate([record.labels for record in annotations.images])
    counts = np.bincount(labels, minlength=annotations.classes.num_classes)[1:]
    for name, count in zip(annotations.classes.names, counts, strict=True):
        if count == 0:
            raise UserError(
                f"{annotations.source} has no {name}, so that model.localizer.class_weights="
                "balanced would be without end; leave the class out with data.classes"
            )
    weights = counts.sum() / (len(counts) * counts)
    localizer = dataclasses.replace(
        recipe.model.localizer, class_weights=[round(float(weight), 6) for weight in weights]
    )
    model = dataclasses.replace(recipe.model, localizer=localizer)
    return dataclasses.replace(recipe, model=model)


def check_one_object(recipe: Recipe, annotations: AnnotationSet) -> None:
    """Sees that a localizer gets what it can learn from.

    Raises:
        UserError: An image has no object or several, or augmentation puts images together.
    """
    if recipe.data.augment.mosaic:
        raise UserError("data.augment.mosaic puts several objects in an image; a localizer has one")
    for record in annotations.images:
        if len(record.boxes) != 1:
            raise UserError(
                f"{record.path.name} has {len(record.boxes)} objects, and a localizer learns from "
                "images with one: data.objects=largest takes the largest of each image"
            )


def first_images(annotations: AnnotationSet, most: int | None) -> AnnotationSet:
    """The first ``most`` images; None means all."""
    return dataclasses.replace(annotations, images=annotations.images[:most])
