"""Resolve the values that a recipe leaves to the training images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from rcnn_ext.config import Recipe, ScheduleConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.hub import HubSplit
from rcnn_ext.data.statistics import channel_statistics
from rcnn_ext.errors import UserError
from rcnn_ext.train.training_data import open_training


def resolve_recipe(
    recipe: Recipe, annotations: AnnotationSet | None, log: Callable[[str], None]
) -> Recipe:
    """Return the recipe with every value filled in that depends on the training images.

    Args:
        recipe: The recipe as given.
        annotations: The training images; None for a stream, of which nothing is known beforehand.
        log: Called with one line for each value that was resolved.

    Raises:
        UserError: The model cannot be trained on these images.
    """
    if annotations is not None:
        recipe = _resolve_from_images(recipe, annotations, log)
    if recipe.model.weights_backbone is None and recipe.model.trainable_layers is not None:
        log("model.weights_backbone=null: the whole backbone is trained")
    return recipe


def _resolve_from_images(
    recipe: Recipe, annotations: AnnotationSet, log: Callable[[str], None]
) -> Recipe:
    if recipe.data.measure_mean_std:
        recipe = with_measured_channels(recipe, annotations)
        mean, std = recipe.model.image_mean, recipe.model.image_std
        log(f"measured: model.image_mean={mean} model.image_std={std}")
    if recipe.model.detector == "localizer":
        check_one_object(recipe, annotations)
        if recipe.model.localizer.class_weights == "balanced":
            recipe = with_balanced_classes(recipe, annotations)
    return recipe


def with_steps_of_epochs(
    recipe: Recipe, source: AnnotationSet | HubSplit, log: Callable[[str], None]
) -> Recipe:
    """Return the recipe with steps in the place of epochs, in both phases.

    Args:
        recipe: The resolved recipe.
        source: The training split.
        log: Called with one line for each phase in epochs.

    Raises:
        UserError: The number of training images is unknown, as of most streams.
    """
    result = recipe
    refine = recipe.refine
    if recipe.schedule.epochs is not None:
        schedule = _in_steps(recipe.schedule, "schedule", recipe, source, log)
        result = dataclasses.replace(result, schedule=schedule)
    if refine is not None and refine.schedule.epochs is not None:
        schedule = _in_steps(refine.schedule, "refine.schedule", recipe, source, log)
        result = dataclasses.replace(result, refine=dataclasses.replace(refine, schedule=schedule))
    return result


def _in_steps(
    schedule: ScheduleConfig,
    key: str,
    recipe: Recipe,
    source: AnnotationSet | HubSplit,
    log: Callable[[str], None],
) -> ScheduleConfig:
    assert schedule.epochs is not None
    images = open_training(source, recipe, None, 0).images_per_epoch
    if images is None:
        raise UserError(
            f"{key}.epochs needs the number of training images, which this stream does not tell; "
            f"give {key}.steps"
        )
    batch = recipe.data.batch_size
    # Rounded first: the product of an inexact fraction may lie just above a whole number.
    steps = max(1, math.ceil(round(schedule.epochs * images / batch, 6)))
    log(f"{key}.epochs={schedule.epochs:g}: {steps} steps of {batch} of {images} images")
    return schedule.in_unit(steps=steps)


def with_measured_channels(recipe: Recipe, annotations: AnnotationSet) -> Recipe:
    """Return the recipe with mean and deviation of the training images in its model section.

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
    """Return the recipe with the class weights that ``class_weights: balanced`` stands for.

    Weights are inversely proportional to the number of objects of a class, and average 1 over all
    objects.

    Raises:
        UserError: A class has no objects.
    """
    counts = np.bincount(annotations.images.labels, minlength=annotations.classes.num_classes)[1:]
    for name, count in zip(annotations.classes.names, counts, strict=True):
        if count == 0:
            raise UserError(
                f"{annotations.source} has no {name}, so that model.localizer.class_weights="
                "balanced would be infinite; leave the class out with data.classes"
            )
    weights = counts.sum() / (len(counts) * counts)
    localizer = dataclasses.replace(
        recipe.model.localizer, class_weights=[round(float(weight), 6) for weight in weights]
    )
    model = dataclasses.replace(recipe.model, localizer=localizer)
    return dataclasses.replace(recipe, model=model)


def check_one_object(recipe: Recipe, annotations: AnnotationSet) -> None:
    """Check that every training image of a localizer has exactly one object.

    Raises:
        UserError: An image has no object or several, or augmentation combines images.
    """
    if recipe.data.augment.mosaic:
        raise UserError("data.augment.mosaic puts several objects in an image; a localizer has one")
    for record in annotations.images:
        if len(record.boxes) != 1:
            raise UserError(
                f"{record.path.name} has {len(record.boxes)} objects, and a localizer learns from "
                "images with one: data.objects=largest takes the largest of each image"
            )
