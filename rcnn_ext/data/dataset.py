"""Images and targets as tensors: in order for evaluation, without an end for training."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..errors import UserError
from .annotations import AnnotationSet, ImageRecord
from .images import load_image

# An image [3, H, W], float32 in [0, 1], and its target: boxes float32 [N, 4] (x1, y1, x2, y2) in
# image pixels, labels int64 [N], areas float32 [N], crowd bool [N].
Sample = tuple[torch.Tensor, dict[str, torch.Tensor]]
Batch = tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]


class DetectionDataset(Dataset[Sample]):
    """The samples of an annotation set in its order, unvaried, crowds included."""

    def __init__(self, annotations: AnnotationSet) -> None:
        self.annotations = annotations

    def __len__(self) -> int:
        """Number of images."""
        return len(self.annotations)

    def __getitem__(self, index: int) -> Sample:
        """Reads one sample.

        Raises:
            UserError: The picture is missing, damaged or of another size than annotated.
        """
        return _load_sample(self.annotations.images[index], v2.Identity())


class TrainingStream(Dataset[Sample]):
    """Training samples without an end: one random order of all images after another.

    The sample at a position depends on the position and the seed alone, not on workers, earlier
    samples or the state of any generator. Training can therefore stop at any step and go on from
    there as if it had not stopped.

    Crowds are left out: a box around a group is no example of an object. So are images that have
    only crowds, since every object in them would count as background.

    Args:
        annotations: The training images.
        augmentation: A transform such as ``build_augmentation`` makes.
        seed: Seed of order and augmentation.
        keep_empty: Whether images without any object are used, as pure background.

    Raises:
        UserError: No image is left.
    """

    def __init__(
        self,
        annotations: AnnotationSet,
        augmentation: v2.Transform,
        seed: int,
        keep_empty: bool = True,
    ) -> None:
        self.records = [
            _without_crowds(record)
            for record in annotations.images
            if not record.crowd.all() or (keep_empty and len(record.boxes) == 0)
        ]
        if not any(len(record.boxes) for record in self.records):
            raise UserError(f"{annotations.source} has no objects to train on")
        self.augmentation = augmentation
        self.seed = seed
        self._order: tuple[int, torch.Tensor] | None = None

    @property
    def images_per_epoch(self) -> int:
        """Number of positions in which every image occurs once."""
        return len(self.records)

    def __getitem__(self, position: int) -> Sample:
        """Reads and varies the sample at a position from 0.

        Raises:
            UserError: The picture is missing, damaged or of another size than annotated.
        """
        epoch, place = divmod(position, len(self.records))
        record = self.records[int(self._order_of(epoch)[place])]
        # Restores the generator afterwards: with no workers it is also the model's.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(self.seed, position, 1))
            return _load_sample(record, self.augmentation)

    def _order_of(self, epoch: int) -> torch.Tensor:  # [number of images]
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch, 0))
            self._order = epoch, torch.randperm(len(self.records), generator=generator)
        return self._order[1]


def mixed_seed(*parts: int) -> int:
    """A seed in which every bit depends on all parts; ``seed + step`` would repeat streams."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def training_loader(
    stream: TrainingStream, batch_size: int, workers: int, start: int, pin_memory: bool
) -> DataLoader[Sample]:
    """Batches of the stream from batch number ``start``, without an end."""
    return DataLoader(
        stream,
        batch_sampler=_Positions(batch_size, start),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_ctrl_c,
    )


def evaluation_loader(
    dataset: DetectionDataset, batch_size: int, workers: int, pin_memory: bool
) -> DataLoader[Sample]:
    """All samples once, in order."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_ctrl_c,
    )


def collate(samples: list[Sample]) -> Batch:
    """Batches samples as lists, since images differ in size."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def _ignore_ctrl_c(worker: int) -> None:
    """A terminal sends Ctrl-C to workers too, but the running step still needs them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Positions(Sampler[list[int]]):
    def __init__(self, batch_size: int, start: int) -> None:
        self.batch_size = batch_size
        self.start = start

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start * self.batch_size
        while True:
            yield list(range(position, position + self.batch_size))
            position += self.batch_size


def _load_sample(record: ImageRecord, transform: v2.Transform) -> Sample:
    picture = load_image(record.path, (record.width, record.height))
    target: dict[str, Any] = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.from_numpy(record.boxes),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(record.height, record.width),
        ),
        "labels": torch.from_numpy(record.labels),
        "areas": torch.from_numpy(record.areas),
        "crowd": torch.from_numpy(record.crowd),
    }
    image, target = transform(tv_tensors.Image(F.pil_to_tensor(picture)), target)
    image = F.to_dtype(image, torch.float32, scale=True)
    # Plain tensors: the subclasses would slow down every operation of the model.
    return image.as_subclass(torch.Tensor), {
        name: value.as_subclass(torch.Tensor) for name, value in target.items()
    }


def _without_crowds(record: ImageRecord) -> ImageRecord:
    if not record.crowd.any():
        return record
    keep = ~record.crowd
    return ImageRecord(
        image_id=record.image_id,
        path=record.path,
        width=record.width,
        height=record.height,
        boxes=record.boxes[keep],
        labels=record.labels[keep],
        areas=record.areas[keep],
        crowd=record.crowd[keep],
    )
