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

# Of automatic class weights, the largest to the smallest.
_MAX_WEIGHT_RATIO = 10.0


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
    weights = recipe.model.weights or recipe.model.weights_backbone
    if weights is None and recipe.model.trainable_layers is not None:
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


def with_class_weights(
    recipe: Recipe, source: AnnotationSet | HubSplit, log: Callable[[str], None]
) -> Recipe:
    """Return the recipe with ``training.class_weights`` as a list in the order of the classes.

    Args:
        recipe: The recipe.
        source: The training split.
        log: Called with a line where the weights were computed.

    Raises:
        UserError: A name is no class, the list has another length, the images of a stream would
            have to be counted, or the model is a localizer.
    """
    given, names = recipe.training.class_weights, source.classes.names
    if given is None:
        return recipe
    if recipe.model.detector == "localizer":
        raise UserError(
            "training.class_weights is for detectors; a localizer has model.localizer.class_weights"
        )
    if given == "auto":
        if not isinstance(source, AnnotationSet):
            raise UserError(
                "training.class_weights=auto has to count the objects, and data.format=hf is a "
                "stream; give the weights"
            )
        weights = _automatic_class_weights(source)
        shown = ", ".join(f"{n} {w:g}" for n, w in zip(names, weights, strict=True))
        log(f"training.class_weights=auto: {shown}")
    elif isinstance(given, dict):
        unknown = [name for name in given if name not in names]
        if unknown:
            raise UserError(
                f"training.class_weights has {unknown[0]!r}; the classes are {', '.join(names)}"
            )
        weights = [given.get(name, 1.0) for name in names]
    else:
        assert isinstance(given, list)
        weights = given
        if len(weights) != len(names):
            raise UserError(
                f"training.class_weights has {len(weights)} weights for {len(names)} classes: "
                f"{', '.join(names)}"
            )
    training = dataclasses.replace(recipe.training, class_weights=weights)
    return dataclasses.replace(recipe, training=training)


def _automatic_class_weights(annotations: AnnotationSet) -> list[float]:
    labels = annotations.images.labels
    counts = np.bincount(labels, minlength=annotations.classes.num_classes)[1:].astype(float)
    present = counts > 0
    # A class without objects never enters the loss.
    weights = np.ones(len(counts))
    roots = counts[present] ** -0.5
    roots = np.minimum(roots, _MAX_WEIGHT_RATIO * roots.min(initial=1.0))
    weights[present] = roots * counts.sum() / (counts[present] * roots).sum()
    return [round(float(weight), 6) for weight in weights]


def check_one_object(recipe: Recipe, annotations: AnnotationSet) -> None:
    """Check that every training image of a localizer has exactly one object.

    Raises:
        UserError: An image has no object or several, or augmentation combines images.
    """
    for name in ("mosaic", "copy_paste"):
        if getattr(recipe.data.augment, name):
            raise UserError(
                f"data.augment.{name} puts several objects in an image; a localizer has one"
            )
    for record in annotations.images:
        if len(record.boxes) != 1:
            raise UserError(
                f"{record.path.name} has {len(record.boxes)} objects, and a localizer learns from "
                "images with one: data.objects=largest takes the largest of each image"
            )
