"""Training data of a run: files with random access, or a stream of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from rcnn_ext.config import Recipe
from rcnn_ext.data.annotations import AnnotationSet, ClassList
from rcnn_ext.data.dataset import TrainingStream, mixed_seed, training_loader
from rcnn_ext.data.hub import HubSplit, HubStream, open_stream, stream_loader
from rcnn_ext.data.splits import open_split
from rcnn_ext.data.transforms import build_augmentation
from rcnn_ext.distributed import Processes
from rcnn_ext.errors import UserError
from rcnn_ext.selective_search.from_config import SearchedProposals
from rcnn_ext.train.resolve import resolve_recipe


def open_training(recipe: Recipe, root: Path) -> TrainingFiles | TrainingRows:
    """Open the training images of a recipe.

    Raises:
        UserError: They are missing or wrong, or the recipe's model cannot be trained on them.
    """
    if recipe.data.format == "hf":
        return TrainingRows(open_stream(recipe.data, root, "train"), recipe)
    return TrainingFiles(open_split(recipe.data, root, "train"))


class TrainingFiles:
    """Training images in files, with all annotations in memory.

    Attributes:
        annotations: The images, which are also those that proposals are searched for.
        classes: The classes that labels stand for.
    """

    def __init__(self, annotations: AnnotationSet) -> None:
        self.annotations = annotations
        self.classes: ClassList = annotations.classes
        self._stream: TrainingStream | None = None

    def summary(self) -> str:
        """Return one line with the numbers of images and objects."""
        return self.annotations.summary()

    def resolve_recipe(self, recipe: Recipe, processes: Processes) -> Recipe:
        """See :func:`rcnn_ext.train.resolve.resolve_recipe`."""
        return resolve_recipe(recipe, self.annotations, processes.print_once)

    def begin(self, recipe: Recipe, proposals: SearchedProposals | None) -> int | None:
        """Build the training stream of a resolved recipe.

        Returns:
            Number of images per epoch.
        """
        self._stream = TrainingStream(
            self.annotations,
            build_augmentation(recipe.data.augment),
            recipe.seed,
            recipe.data.keep_empty,
            keep_difficult=recipe.data.keep_difficult,
            on_error=recipe.data.on_error,
            mosaic=recipe.data.augment.mosaic,
            proposals=proposals,
        )
        return self._stream.images_per_epoch

    def resume(self, recipe: Recipe, done: int, trained_by: int, processes: Processes) -> None:
        """Do nothing: files can be read from any step on."""

    def loader(
        self, recipe: Recipe, parts: int, done: int, processes: Processes, device: torch.device
    ) -> DataLoader[Any]:
        """Return an endless loader of this process's batches.

        Args:
            recipe: The resolved recipe.
            parts: Number of batches per step.
            done: Steps that are done, of all phases.
            processes: The processes that share each step.
            device: The device that batches are copied to.
        """
        assert self._stream is not None
        return training_loader(
            self._stream,
            recipe.data.batch_size // parts,
            recipe.data.workers,
            done * parts,
            device.type == "cuda",
            processes.rank,
            processes.count,
        )


class TrainingRows:
    """A stream of rows, whose number and order are unknown beforehand.

    Attributes:
        annotations: None; nothing is known of the images beforehand.
        classes: The classes that labels stand for.
    """

    annotations = None

    def __init__(self, split: HubSplit, recipe: Recipe) -> None:
        if recipe.model.detector != "faster_rcnn":
            raise UserError(
                f"model.detector={recipe.model.detector} has to see all images before the first "
                "step, and data.format=hf is a stream; Faster R-CNN learns from one"
            )
        self.split = split
        self.classes: ClassList = split.classes
        self._resumes_at = 0

    def summary(self) -> str:
        """Return one line with what is known of the stream."""
        return self.split.summary()

    def resolve_recipe(self, recipe: Recipe, processes: Processes) -> Recipe:
        """Return the recipe as it is; no value of it may depend on a stream's images."""
        return resolve_recipe(recipe, None, processes.print_once)

    def begin(self, recipe: Recipe, proposals: SearchedProposals | None) -> int | None:
        """Return the number of images per epoch, or None where it is unknown."""
        return self.split.images

    def resume(self, recipe: Recipe, done: int, trained_by: int, processes: Processes) -> None:
        """Report how the position in the stream is restored.

        Args:
            recipe: The resolved recipe.
            done: Steps that are done.
            trained_by: Number of processes that did them.
            processes: The processes that continue.
        """
        self._resumes_at = done
        if recipe.data.hf.resume == "reshuffle":
            processes.print_once(
                "data.hf.resume=reshuffle: the stream begins anew, in another order"
            )
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

    def loader(
        self, recipe: Recipe, parts: int, done: int, processes: Processes, device: torch.device
    ) -> DataLoader[Any]:
        """Return an endless loader of this process's batches; see :class:`TrainingFiles`."""
        seed, start = recipe.seed, done
        if recipe.data.hf.resume == "reshuffle" and self._resumes_at:
            seed, start = mixed_seed(seed, self._resumes_at, 6), done - self._resumes_at
        stream = HubStream(
            self.split,
            build_augmentation(recipe.data.augment),
            seed,
            mosaic=recipe.data.augment.mosaic,
            batch_size=recipe.data.batch_size // parts // processes.count,
            start=start * parts,
            rank=processes.rank,
            processes=processes.count,
        )
        return stream_loader(stream, recipe.data.workers, device.type == "cuda")
