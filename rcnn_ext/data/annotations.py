"""The result of every reader of annotations: checked boxes and labels, image by image.

A reader turns one format (COCO JSON, for instance) into an :class:`AnnotationSet`; datasets,
metrics and pictures know only that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rcnn_ext.data.images import ImageReader
from rcnn_ext.data.packed import PackedImages
from rcnn_ext.data.problems import Problem
from rcnn_ext.data.records import ImageRecord

__all__ = [
    "MIN_BOX_SIDE",
    "AnnotationSet",
    "ClassList",
    "ImageRecord",
    "PackedImages",
    "clean_boxes",
]

# float32 resolves 5e-4 at coordinate 4096, so that a thinner box could vanish in later
# arithmetic; and nothing is to be seen in a tenth of a pixel.
MIN_BOX_SIDE = 0.1

# Annotation tools round to whole pixels: only boxes farther out than that are worth a word.
_ROUNDING = 1.0


@dataclass(frozen=True)
class ClassList:
    """The classes of a detector, by label.

    Label 0 is the background; label i + 1 means ``names[i]`` and ``category_ids[i]``.

    Attributes:
        names: Names of the classes.
        category_ids: Their ids in annotation and result files: mostly whole numbers, which need not
            be contiguous; some files have texts.
    """

    names: tuple[str, ...]
    category_ids: tuple[int | str | float, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.category_ids):
            raise ValueError(
                f"{len(self.names)} class names but {len(self.category_ids)} category ids"
            )
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"class names must differ, got {self.names}")

    def __len__(self) -> int:
        """Return the number of classes without the background."""
        return len(self.names)

    @property
    def num_classes(self) -> int:
        """Number of classes with the background, as torchvision's models count."""
        return len(self.names) + 1

    def name(self, label: int) -> str:
        """Return the name of a label, which counts from 1."""
        return self.names[label - 1]

    def category_id(self, label: int) -> int | str | float:
        """Return the category id of a label, which counts from 1."""
        return self.category_ids[label - 1]


@dataclass(frozen=True)
class AnnotationSet:
    """The images of one split.

    Attributes:
        source: The file or folder they come from, for messages.
        classes: The classes of the labels.
        images: One record per image, packed so that processes share them; any sequence of records
            is packed when it is given here.
        clipped: Boxes that reached more than a pixel out of their image and were cut.
        dropped: Boxes that were left out since nothing of them was inside, or they had no area.
        other: Boxes that were left out since their class is none of ``classes``.
        skipped: Images that were left out since they, or their annotations, are broken.
        annotated: Whether the file says what is in the images; a test set may only list them.
        problems: What was corrected or left out, with file and line.
        outlines: How many boxes were taken around other shapes, by shape.
        reader: Reads the pictures, with the options of the recipe.
    """

    source: Path
    classes: ClassList
    images: PackedImages
    clipped: int = 0
    dropped: int = 0
    other: int = 0
    skipped: int = 0
    annotated: bool = True
    problems: tuple[Problem, ...] = ()
    outlines: Mapping[str, int] = field(default_factory=dict)
    reader: ImageReader = ImageReader()

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", PackedImages.pack(self.images))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def summary(self) -> str:
        """Return one line about what is there and what was corrected."""
        if not self.annotated:
            return f"{len(self.images)} images without annotations"
        objects = len(self.images.boxes)
        crowds = int(self.images.crowd.sum())
        empty = int((self.images.counts == 0).sum())
        parts = [f"{len(self.images)} images"]
        if empty:
            parts[0] += f" ({empty} without objects)"
        parts.append(f"{objects} objects of {len(self.classes)} classes")
        if crowds:
            parts.append(f"{crowds} of them crowds")
        difficult = int(self.images.difficult.sum())
        if difficult:
            parts.append(f"{difficult} of them difficult")
        if self.outlines:
            shapes = ", ".join(f"{n} of shape {shape}" for shape, n in self.outlines.items())
            parts.append(f"boxes taken around outlines: {shapes}")
        if self.clipped:
            parts.append(f"{self.clipped} boxes clipped to their image")
        if self.dropped:
            parts.append(f"{self.dropped} boxes without area dropped")
        if self.other:
            parts.append(f"{self.other} boxes of other classes left out")
        if self.skipped:
            parts.append(f"{self.skipped} broken images left out")
        return ", ".join(parts)


def clean_boxes(
    boxes: np.ndarray, width: int | np.ndarray, height: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Cut boxes to their image and find those that are left with an area.

    Args:
        boxes: float64 [N, 4] (x1, y1, x2, y2), image pixels; may hold NaN and infinities.
        width: Width of the image in pixels, or of each box's image, [N].
        height: Height of the image in pixels, or of each box's image, [N].

    Returns:
        The cut boxes, float32 [N, 4]; which to keep, bool [N]; how many of the kept ones reached
        more than a pixel out of the image.
    """
    limits = np.array([width, height, width, height], dtype=np.float64).T  # [4] or [N, 4]
    inside = boxes.clip(0, limits)
    cut = inside.astype(np.float32)
    with np.errstate(invalid="ignore"):  # infinity - infinity is NaN, which is not kept.
        # Of the values that are kept, so that a box that is written and read again is kept, too.
        sides = cut[:, 2:].astype(np.float64) - cut[:, :2]  # [N, 2]
    keep = np.isfinite(boxes).all(axis=1) & (sides >= MIN_BOX_SIDE).all(axis=1)
    moved = np.abs(inside[keep] - boxes[keep]).max(axis=1, initial=0)
    return cut, keep, int((moved > _ROUNDING).sum())
