"""Images and targets as tensors: in order for evaluation, without an end for training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from rcnn_ext.data.annotations import AnnotationSet, ImageRecord
from rcnn_ext.data.copy_paste import copy_paste
from rcnn_ext.data.samples import ProposalSource, RawSample, Sample, apply_transform, raw_sample
from rcnn_ext.data.sampling import SampleOrder, mixed_seed, repeat_factors
from rcnn_ext.data.transforms import mosaic
from rcnn_ext.data.workers import leave_signals_to_main
from rcnn_ext.errors import UserError

Batch = tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]

# After this many unreadable pictures in a row something other than single files is wrong.
_MAX_SKIPPED = 50


class DetectionDataset(Dataset[Sample]):
    """The samples of an annotation set in its order, unvaried, crowds included.

    Args:
        annotations: The images.
        proposals: Where the proposals of each come from, for Fast R-CNN.
    """

    def __init__(self, annotations: AnnotationSet, proposals: ProposalSource | None = None) -> None:
        self.annotations = annotations
        self.proposals = proposals

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.annotations)

    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            UserError: The picture is missing, damaged or of another size than annotated.
        """
        return apply_transform(
            raw_sample(self.annotations.images[index], self.proposals, self.annotations.reader),
            v2.Identity(),
        )


class TrainingStream(Dataset[Sample]):
    """Training samples without an end: one random order of all images after another.

    The sample at a position depends on the position and the seed alone, not on workers, earlier
    samples or the state of any generator. Training can therefore stop at any step and resume as
    if it had not stopped.

    Crowds are left out: a box around a group is no example of an object. So are objects marked as
    difficult, and images that have only such, since every object in them would count as background.

    Args:
        annotations: The training images.
        augmentation: A transform such as ``build_augmentation`` makes.
        seed: Seed of order and augmentation.
        keep_empty: Whether images without any object are used, as pure background.
        keep_difficult: Whether objects marked as difficult are used.
        on_error: What to do with a picture that cannot be read: ``stop``, or ``skip`` it with a
            warning and take one at random in its place.
        mosaic: Probability that three more images share the place of one.
        copy_paste: Probability that objects of another image are pasted into an image; see
            :func:`rcnn_ext.data.copy_paste.copy_paste`.
        proposals: Where the proposals of each image come from, for Fast R-CNN.
        repeat_threshold: Fraction of the images below which a class is rare, and images with it
            are repeated within an epoch; see :func:`repeat_factors`. None repeats none.

    Raises:
        UserError: No image is left, or objects are to be pasted and none has an outline or mask.
    """

    def __init__(
        self,
        annotations: AnnotationSet,
        augmentation: v2.Transform,
        seed: int,
        keep_empty: bool = True,
        *,
        keep_difficult: bool = False,
        on_error: Literal["stop", "skip"] = "stop",
        mosaic: float = 0.0,
        copy_paste: float = 0.0,
        proposals: ProposalSource | None = None,
        repeat_threshold: float | None = None,
    ) -> None:
        images = annotations.images
        learned = ~images.crowd if keep_difficult else ~(images.crowd | images.difficult)
        chosen = images.keep_objects(learned)
        used = chosen.counts > 0
        if keep_empty:
            used |= images.counts == 0
        self.records = chosen if used.all() else chosen.take(np.flatnonzero(used))
        self.reader = annotations.reader
        self.on_error = on_error
        self.mosaic = mosaic
        self.copy_paste = copy_paste
        self.proposals = proposals
        if len(self.records.boxes) == 0:
            raise UserError(f"{annotations.source} has no objects to train on")
        self.augmentation = augmentation
        self.seed = seed
        factors, self.note = None, ""
        if repeat_threshold is not None:
            factors = repeat_factors(self.records, repeat_threshold)
        self._order = SampleOrder(len(self.records), seed, factors)
        if copy_paste:
            segmented = self.records.object_images()[self.records.segmented]
            self._pasteable = np.unique(segmented)  # int64, images that have what can be pasted.
            if len(self._pasteable) == 0:
                raise UserError(
                    "data.augment.copy_paste needs outlines or masks of objects, and "
                    f"{annotations.source} has none, or they were not read (data.masks=true)"
                )
            among = None if factors is None else factors[self._pasteable]
            self._pasted = SampleOrder(len(self._pasteable), seed, among)
        if factors is not None:
            self.note = (
                f"data.repeat_threshold={repeat_threshold:g}: {int((factors > 1).sum())} of "
                f"{len(factors)} images are repeated, up to {factors.max():.3g} times; "
                f"an epoch has {self.images_per_epoch} images"
            )

    @property
    def images_per_epoch(self) -> int:
        """Number of positions per epoch, in which every image occurs once, or by its factor.

        With repeat factors, single epochs may have one more or less.
        """
        return round(self._order.positions_per_epoch)

    def __getitem__(self, position: int) -> Sample:
        """Read and augment the sample at a position, from 0.

        Raises:
            UserError: The picture is missing, damaged or of another size than annotated.
        """
        record = self.records[self._order.index(position)]
        # Restores the generator afterwards: with no workers it is also the model's.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(self.seed, position, 1))
            sample = self._varied(record)
            if self.mosaic and float(torch.rand(())) < self.mosaic:
                sample = mosaic([sample, *(self._varied(self._any_record()) for _ in range(3))])
            return apply_transform(sample, self.augmentation)

    def _varied(self, record: ImageRecord) -> RawSample:
        """Read an image, and perhaps paste objects of another one into it."""
        sample, record = self._read(record)
        if not self.copy_paste or float(torch.rand(())) >= self.copy_paste:
            return sample
        other, source = self._read(self.records[int(self._pasteable[self._pasted.draw()])])
        try:
            return copy_paste(sample, record, other, source)
        except UserError as error:
            self._skip(error)
            return sample

    def _read(self, record: ImageRecord) -> tuple[RawSample, ImageRecord]:
        """Return the sample of a record, or of one at random in place of a broken one."""
        for _ in range(_MAX_SKIPPED):
            try:
                return raw_sample(record, self.proposals, self.reader), record
            except UserError as error:
                self._skip(error)
                record = self._any_record()
        raise UserError(f"{_MAX_SKIPPED} images in a row cannot be read, the last is {record.path}")

    def _skip(self, error: UserError) -> None:
        if self.on_error == "stop":
            raise error
        warnings.warn(f"skipped: {error}", RuntimeWarning, stacklevel=3)

    def _any_record(self) -> ImageRecord:
        return self.records[self._order.draw()]


def training_loader(
    stream: TrainingStream,
    batch_size: int,
    workers: int,
    start: int,
    pin_memory: bool,
    rank: int = 0,
    processes: int = 1,
) -> DataLoader[Sample]:
    """Return a loader of the stream's batches from index ``start`` on, without an end.

    Args:
        stream: The samples.
        batch_size: Images in a batch of all processes together, which is a multiple of their
            number.
        workers: Processes that read images.
        start: Index of the first batch.
        pin_memory: Whether batches are to be copied to a GPU.
        rank: Index of this process, which takes its part of each batch, from 0.
        processes: Number of processes.
    """
    return DataLoader(
        stream,
        batch_sampler=_Positions(batch_size, start, rank, processes),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_main,
    )


def evaluation_loader(
    dataset: DetectionDataset, batch_size: int, workers: int, pin_memory: bool
) -> DataLoader[Sample]:
    """Return a loader of all samples, once and in order."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_main,
    )


def collate(samples: list[Sample]) -> Batch:
    """Batch samples as lists, since images differ in size."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


class _Positions(Sampler[list[int]]):
    def __init__(self, batch_size: int, start: int, rank: int, processes: int) -> None:
        self.batch_size = batch_size
        self.share = batch_size // processes
        self.first = start * batch_size + rank * self.share

    def __iter__(self) -> Iterator[list[int]]:
        position = self.first
        while True:
            yield list(range(position, position + self.share))
            position += self.batch_size
