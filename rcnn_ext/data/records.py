"""One image and its objects, as every reader returns them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rcnn_ext.data.segmentation import Segmentation


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image and what is in it.

    Attributes:
        image_id: Its number: its id in annotation and result files where that is a whole number.
        path: The picture.
        width: Width in pixels.
        height: Height in pixels.
        boxes: float32 [N, 4] (x1, y1, x2, y2), image pixels, inside the image.
        labels: int64 [N], from 1.
        areas: float32 [N], of the object itself where the file has it, else of its box; decides
            whether COCO calls it small, medium or large.
        crowd: bool [N]; such a box covers a group and is neither trained on nor counted as missed.
        difficult: bool [N]; VOC's mark of objects that evaluation passes over. None means none.
        truncated: bool [N]; VOC's mark of objects that go on beyond their box. None means none.
        origin: The file and line that describe the image, for messages.
        own_id: Its id in annotation and result files where ``image_id`` is not that,
            such as ``"0001_b"``; else None. :attr:`file_id` is the id in either case.
        segmentations: Outline or mask of each object, or None for an object that has none. None
            where the reader was not asked to keep them.
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray = None  # type: ignore[assignment]
    truncated: np.ndarray = None  # type: ignore[assignment]
    origin: tuple[Path, int | None] | None = None
    own_id: int | str | float | None = None
    segmentations: tuple[Segmentation | None, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("difficult", "truncated"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.zeros(len(self.boxes), dtype=bool))

    @property
    def file_id(self) -> int | str | float:
        """The image's id in annotation and result files, of the type that these have."""
        return self.image_id if self.own_id is None else self.own_id

    def select(self, keep: np.ndarray) -> ImageRecord:
        """Return the image with some of its objects.

        Args:
            keep: bool [N], or int64 indices [K].
        """
        names = ("boxes", "labels", "areas", "crowd", "difficult", "truncated")
        chosen = {name: getattr(self, name)[keep] for name in names}
        kept = self.segmentations
        if kept is not None:
            kept = tuple(kept[index] for index in np.arange(len(kept))[keep].tolist())
        return dataclasses.replace(self, **chosen, segmentations=kept)
