"""What a run trains on: files, in any order and as often as is wanted, or a stream of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from rcnn_ext.config import Recipe
from rcnn_ext.data.annotations import AnnotationSet, ClassList
from rcnn_ext.data.dataset import TrainingStream, mixed_seed, training_loader
from rcnn_ext.data.hub import HubSplit, HubStream, open_stream, stream_loader
from rcnn_ext.data.splits import fitted, open_split
from rcnn_ext.data.transforms import build_augmentation
from rcnn_ext.distributed import Processes
from rcnn_ext.errors import UserError
from rcnn_ext.selective_search.from_config import SearchedProposals


def open_training(recipe: Recipe, root: Path) -> TrainingFiles | TrainingRows:
    """The training images of a recipe.

    Raises:
        UserError: They are missing or wrong, or no model of this kind can learn from them.
    """
    if recipe.data.format == "hf":
        return TrainingRows(open_stream(recipe.data, root, "train"), recipe)
    return TrainingFiles(open_split(recipe.data, root, "train"))


class TrainingFiles:
    """Images that are files, with their annotations read.

    Attributes:
        annotations: The images; what proposals are searched for.
        classes: What the labels mean.
    """

    def __init__(self, annotations: AnnotationSet) -> None:
        self.annotations = annotations
        self.classes: ClassList = annotations.classes
        self._stream: TrainingStream | None = None

    def summary(self) -> str:
        """One line that says what is there."""
        return self.annotations.summary()

    def fitted(self, recipe: Recipe, processes: Processes) -> Recipe:
        """See :func:`rcnn_ext.data.splits.fitted`."""
        return fitted(recipe, self.annotations, processes.say)

    def begin(self, recipe: Recipe, proposals: SearchedProposals | None) -> int | None:
        """Prepares to read by the fitted recipe, and gives the number of images of an epoch."""
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
        """Nothing to say: any image can be read at any step."""

    def loader(
        self, recipe: Recipe, parts: int, done: int, processes: Processes, device: torch.device
    ) -> DataLoader[Any]:
        """The batches of this process, without an end.

        Args:
            recipe: What is trained.
            parts: Batches that make a step.
            done: Steps that are done, of all phases.
            processes: Those that share each step.
            device: Where batches go.
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
    """Rows of a stream, whose number and order nobody knows before they come.

    Attributes:
        annotations: None; nothing is known of the images beforehand.
        classes: What the labels mean.
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
        """One line that says what is known."""
        return self.split.summary()

    def fitted(self, recipe: Recipe, processes: Processes) -> Recipe:
        """The recipe as it is; nothing of it depends on images that are not known."""
        return fitted(recipe, None, processes.say)

    def begin(self, recipe: Recipe, proposals: SearchedProposals | None) -> int | None:
        """The number of images of an epoch, where it is known."""
        return self.split.images

    def resume(self, recipe: Recipe, done: int, trained_by: int, processes: Processes) -> None:
        """Says what finding one's place in the stream means here.

        Args:
            recipe: What is trained.
            done: Steps that are done.
            trained_by: Number of processes that did them.
            processes: Those that go on.
        """
        self._resumes_at = done
        if recipe.data.hf.resume == "reshuffle":
            processes.say("data.hf.resume=reshuffle: the stream begins anew, in another order")
            return
        images = done * recipe.data.batch_size
        processes.say(
            f"resuming: {images} images of the stream are read over; data.hf.resume=reshuffle "
            "does without, in another order"
        )
        if trained_by != processes.count:
            processes.say(
                f"the run had {trained_by} processes and now has {processes.count}, which share "
                "the stream otherwise: from here its images are others than without a stop"
            )

    def loader(
        self, recipe: Recipe, parts: int, done: int, processes: Processes, device: torch.device
    ) -> DataLoader[Any]:
        """The batches of this process, without an end; see :class:`TrainingFiles`."""
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
