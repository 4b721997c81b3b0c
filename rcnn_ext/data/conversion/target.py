"""The interface of the writers: a folder is begun, filled picture by picture, and finished."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from rcnn_ext.data.annotations import ClassList
from rcnn_ext.data.conversion.losses import Losses
from rcnn_ext.data.images import Header, numeric_ids
from rcnn_ext.data.records import ImageRecord

# Readers take the area of a box where a format has none: another one is a part of the data.
_AREA_TOLERANCE = 1e-3


class Target(ABC):
    """Writes one format.

    Args:
        folder: Where to write; empty.
        classes: The classes of all splits, under names that :meth:`held_name` returns.
        losses: Where is counted what cannot be kept.
    """

    # What messages call the format.
    title: ClassVar[str]
    # Whether annotations are found by the names of pictures without their suffixes.
    by_stem: ClassVar[bool] = True
    # Whether pictures need a suffix that is known.
    needs_suffix: ClassVar[bool] = False
    # Whether pictures may be named by their paths anywhere.
    takes_paths: ClassVar[bool] = False
    # Whether a picture may be in several entries of a split, each with objects of its own.
    repeats_pictures: ClassVar[bool] = False
    keeps_crowds: ClassVar[bool] = False
    keeps_marks: ClassVar[bool] = False
    keeps_areas: ClassVar[bool] = False
    keeps_ids: ClassVar[bool] = False
    # What becomes of the ids of classes.
    numbering: ClassVar[str] = ""

    def __init__(self, folder: Path, classes: ClassList, losses: Losses) -> None:
        self.folder = folder
        self.classes = classes
        self.losses = losses

    @staticmethod
    def held_name(name: str) -> str:
        """Return the name of a class as the format holds it."""
        return name

    @abstractmethod
    def images_folder(self, split: str) -> Path:
        """Return the folder of a split's pictures, relative to that of the data set."""

    def takes_name(self, name: str, annotated: bool) -> bool:
        """Return whether a readable name can be that of a picture."""
        return True

    def shared_key(self, record: ImageRecord) -> object:
        """Return what must be equal for records in several splits to share a picture."""
        return None

    @abstractmethod
    def begin(self, split: str, annotated: bool) -> None:
        """Begin a split.

        Args:
            split: ``train``, ``val`` or ``test``.
            annotated: Whether it is known what is in its images.
        """

    @abstractmethod
    def add(self, record: ImageRecord, name: str, header: Header) -> int:
        """Add an image to the split.

        Args:
            record: The image, upright, with labels of ``classes``.
            name: The file name of its picture in the folder of the split, or its path.
            header: The header of its picture.

        Returns:
            The number of objects that are written.
        """

    @abstractmethod
    def end(self) -> None:
        """End the split."""

    @abstractmethod
    def finish(self) -> None:
        """Write what is about all splits."""

    def count_losses(self, record: ImageRecord) -> None:
        """Count what the format has no place for in an image."""
        add, title = self.losses.add, self.title
        if not self.keeps_crowds:
            add("crowds", self.fate_of_crowds(), int(record.crowd.sum()))
        kept = ~record.crowd if not self.keeps_crowds else np.ones(len(record.boxes), dtype=bool)
        if not self.keeps_marks:
            why = f"{title} has no such mark: objects like others"
            add("difficult objects", why, int((record.difficult & kept).sum()))
            add("truncated objects", why, int((record.truncated & kept).sum()))
        if not self.keeps_areas:
            sides = record.boxes[:, 2:].astype(np.float64) - record.boxes[:, :2]
            boxes = sides[:, 0] * sides[:, 1]
            own = np.abs(record.areas - boxes) > _AREA_TOLERANCE * np.maximum(boxes, 1)
            why = f"{title} has none: the area of an object is that of its box"
            add("areas of objects", why, int((own & kept).sum()))
            outlines = record.segmentations or ()
            has = sum(one is not None and keep for one, keep in zip(outlines, kept, strict=False))
            add("outlines and masks", "only boxes are written", has)

    def fate_of_crowds(self) -> str:
        """Return what becomes of crowds where the format has none."""
        return f"{self.title} has none: left out"

    def count_ids(self, ids: Sequence[object], stems: Sequence[str], old: Sequence[str]) -> None:
        """Count ids of images that file names do not hold.

        Args:
            ids: The ids of the split's images.
            stems: The names of their pictures without suffixes.
            old: Their names before.
        """
        # Formats without ids take the numbers in the names, which are no loss.
        if not self.keeps_ids and list(ids) != numeric_ids(old):
            made = numeric_ids(stems)
            lost = sum(own != new for own, new in zip(ids, made, strict=True))
            why = f"{self.title} has none: images are told by the names of their files"
            self.losses.add("ids of images", why, lost)

    def count_category_ids(self, numbers: Sequence[int], made_up: bool) -> None:
        """Count ids of classes that become other numbers.

        Args:
            numbers: The numbers of the classes in the format.
            made_up: Whether the ids only count the classes, for want of others.
        """
        if not made_up:
            pairs = zip(numbers, self.classes.category_ids, strict=True)
            lost = sum(new != own for new, own in pairs)
            self.losses.add("category ids", self.numbering, lost)
