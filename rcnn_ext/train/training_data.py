"""Training data of a run: files with random access, or a stream of rows."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from rcnn_ext.config import Recipe
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.dataset import TrainingStream, training_loader
from rcnn_ext.data.formats.registry import open_split, resolve_source
from rcnn_ext.data.hub import HubSplit, HubStream, open_stream, stream_loader
from rcnn_ext.data.packed import PackedImages
from rcnn_ext.data.sampling import mixed_seed
from rcnn_ext.data.transforms import build_augmentation
from rcnn_ext.distributed import Processes
from rcnn_ext.errors import UserError
from rcnn_ext.selective_search.from_config import SearchedProposals


def open_source(recipe: Recipe, root: Path) -> AnnotationSet | HubSplit:
    """Open the training split of a recipe: all its annotations, or a stream.

    Raises:
        UserError: It is missing or wrong, or the recipe's model cannot be trained on a stream, or
            takes images of other channels.
    """
    channels, taken = recipe.data.channels, recipe.model.in_channels
    if channels != taken:
        raise UserError(
            f"data.channels={channels}, but model.in_channels={taken}: set both to the number of "
            "channels of the images"
        )
    config, root = resolve_source(recipe.data, root)
    if config.format != "hf":
        return open_split(config, root, "train")
    if recipe.model.detector != "faster_rcnn":
        raise UserError(
            f"model.detector={recipe.model.detector} has to see all images before the first "
            "step, and data.format=hf is a stream; Faster R-CNN learns from one"
        )
    return open_stream(config, root, "train")


def describe_images(images: PackedImages) -> dict[str, Any]:
    """Return what tells that training images have changed, for checkpoints.

    Args:
        images: The images, wherever their folder is: only their names count.

    Returns:
        How many ``images`` and ``objects`` there are, and their ``sha256`` in the order of both.
    """
    digest = hashlib.sha256()
    for path in images.paths():
        digest.update(os.fsencode(path.name) + b"\0")
    for column in (images.sizes, images.counts, images.boxes, images.labels, images.crowd):
        digest.update(np.ascontiguousarray(column).tobytes())
    return {
        "images": len(images),
        "objects": len(images.boxes),
        "sha256": digest.hexdigest()[:16],
    }


def open_training(
    source: AnnotationSet | HubSplit,
    recipe: Recipe,
    proposals: SearchedProposals | None,
    done: int,
) -> TrainingFiles | TrainingRows:
    """Return the batches of a training split.

    Args:
        source: What :func:`open_source` gave.
        recipe: The resolved recipe.
        proposals: The source of proposals for models that need them.
        done: Number of steps that were done when the run was resumed; 0 for a new run.
    """
    if isinstance(source, AnnotationSet):
        return TrainingFiles(source, recipe, proposals)
    return TrainingRows(source, recipe, done)


class TrainingFiles:
    """Training images in files, which can be read from any step on.

    Args:
        annotations: The images.
        recipe: The resolved recipe.
        proposals: The source of proposals for models that need them.

    Attributes:
        images_per_epoch: Number of images per epoch.
        note: A line about images that are repeated; empty where none is.
    """

    def __init__(
        self, annotations: AnnotationSet, recipe: Recipe, proposals: SearchedProposals | None
    ) -> None:
        self.recipe = recipe
        self._stream = TrainingStream(
            annotations,
            build_augmentation(recipe.data.augment, recipe.data.channels),
            recipe.seed,
            recipe.data.keep_empty,
            keep_difficult=recipe.data.keep_difficult,
            on_error=recipe.data.on_error,
            mosaic=recipe.data.augment.mosaic,
            copy_paste=recipe.data.augment.copy_paste,
            proposals=proposals,
            repeat_threshold=recipe.data.repeat_threshold,
        )
        self.note = self._stream.note
        self.images_per_epoch: int | None = self._stream.images_per_epoch

    def loader(
        self, parts: int, done: int, processes: Processes, device: torch.device
    ) -> DataLoader[Any]:
        """Return an endless loader of this process's batches.

        Args:
            parts: Number of batches per step.
            done: Steps that are done, of all phases.
            processes: The processes that share each step.
            device: The device that batches are copied to.
        """
        return training_loader(
            self._stream,
            self.recipe.data.batch_size // parts,
            self.recipe.data.workers,
            done * parts,
            device.type == "cuda",
            processes.rank,
            processes.count,
        )


class TrainingRows:
    """A stream of rows, whose order is unknown beforehand, and mostly their number too.

    Args:
        split: The stream.
        recipe: The resolved recipe.
        resumed_at: Number of steps that were done when the run was resumed; 0 for a new run.

    Attributes:
        images_per_epoch: Number of images per epoch; None where it is unknown.
        note: Empty.
    """

    def __init__(self, split: HubSplit, recipe: Recipe, resumed_at: int) -> None:
        self.split = split
        self.recipe = recipe
        self.resumed_at = resumed_at
        self.images_per_epoch: int | None = split.images
        self.note = ""

    def loader(
        self, parts: int, done: int, processes: Processes, device: torch.device
    ) -> DataLoader[Any]:
        """Return an endless loader of this process's batches; see :class:`TrainingFiles`."""
        recipe = self.recipe
        seed, start = recipe.seed, done
        if recipe.data.hf.resume == "reshuffle" and self.resumed_at:
            seed, start = mixed_seed(seed, self.resumed_at, 6), done - self.resumed_at
        stream = HubStream(
            self.split,
            build_augmentation(recipe.data.augment, recipe.data.channels),
            seed,
            mosaic=recipe.data.augment.mosaic,
            batch_size=recipe.data.batch_size // parts // processes.count,
            start=start * parts,
            rank=processes.rank,
            processes=processes.count,
        )
        return stream_loader(stream, recipe.data.workers, device.type == "cuda")


def report_resume(recipe: Recipe, done: int, trained_by: int, processes: Processes) -> None:
    """Print how the position in a stream is restored.

    Args:
        recipe: The resolved recipe.
        done: Number of steps that are done.
        trained_by: Number of processes that did them.
        processes: The processes that continue.
    """
    if recipe.data.hf.resume == "reshuffle":
        processes.print_once("data.hf.resume=reshuffle: the stream begins anew, in another order")
        return
    images = done * recipe.data.batch_size
    processes.print_once(
        f"resuming: {images} images of the stream are read over; data.hf.resume=reshuffle "
        "does without, in another order"
    )
    if trained_by != processes.count:
        processes.print_once(
            f"the run had {trained_by} processes and now has {processes.count}, which share "
            "the stream otherwise: from here its images are others than without a stop"
        )
