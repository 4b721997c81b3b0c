"""Detections in one picture: boxes, classes and scores, and what people turn them into."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcnn_ext.data.annotations import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.files import write_json
from rcnn_ext.predict.display import detections_html, encoded_picture
from rcnn_ext.predict.tables import COLUMNS, encoded_rle, optional_library, write_table
from rcnn_ext.viz import MIN_DRAWN_SIZE, draw_boxes, save_picture

# Minimum score of detections in pictures; results list those with lower scores too.
DRAW_SCORE = 0.5

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class PictureSource(Protocol):
    """A picture that can be had again, for drawing."""

    def picture(self) -> Image.Image:
        """Return the picture, upright, RGB."""


@dataclass(frozen=True)
class Detection:
    """One detection.

    Attributes:
        box: (x1, y1, x2, y2), pixels of the picture.
        label: The label, from 1.
        name: Name of the class.
        score: From 0 to 1.
        mask: bool [H, W], or None.
    """

    box: tuple[float, float, float, float]
    label: int
    name: str
    score: float
    mask: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """Detections in one picture.

    ``len(found)`` is their number. ``found[0]`` is a :class:`Detection`; a slice, a list of indices
    or a tensor of bools gives the chosen ones as :class:`Detections`.

    Attributes:
        boxes: float32 [D, 4] (x1, y1, x2, y2), pixels of the picture, upright.
        labels: int64 [D], from 1.
        scores: float32 [D], descending.
        masks: bool [D, H, W]; None for a model without masks.
        classes: The classes that the labels stand for.
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
        path: The picture's file, or None.
        name: What results call the picture: its path relative to the folder that was given.
        source: Where :attr:`picture` comes from; None: there is no picture to draw on.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    classes: ClassList
    height: int
    width: int
    masks: Tensor | None = None
    path: Path | None = None
    name: Path = Path("image")
    source: PictureSource | None = None

    @property
    def names(self) -> list[str]:
        """Names of the classes, one per detection."""
        return [self.classes.name(label) for label in self.labels.tolist()]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        return self.height, self.width

    @property
    def picture(self) -> Image.Image:
        """The picture, upright, RGB; read from its file again where it came from one.

        Raises:
            UserError: The file is gone, or there is no picture.
        """
        if self.source is None:
            raise UserError(f"the detections in {self.name} have no picture to draw on")
        return self.source.picture()

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        for index in range(len(self)):
            yield self[index]

    @overload
    def __getitem__(self, index: int) -> Detection: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray | Tensor) -> Detections: ...

    def __getitem__(self, index: Any) -> Detection | Detections:
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"detection {index} of {len(self)}")
            label = int(self.labels[index])
            x1, y1, x2, y2 = self.boxes[index].tolist()
            mask = None if self.masks is None else self.masks[index]
            score = float(self.scores[index])
            return Detection((x1, y1, x2, y2), label, self.classes.name(label), score, mask)
        if not isinstance(index, slice):
            index = torch.as_tensor(index)
            # An empty list has no type of its own.
            index = index.long() if index.numel() == 0 and index.dtype != torch.bool else index
        return replace(
            self,
            boxes=self.boxes[index],
            labels=self.labels[index],
            scores=self.scores[index],
            masks=None if self.masks is None else self.masks[index],
        )

    def filter(
        self, min_score: float = 0.0, classes: str | int | Collection[str | int] | None = None
    ) -> Detections:
        """Return those with a score of at least ``min_score`` and one of some classes.

        Args:
            min_score: Minimum score.
            classes: Names or labels (from 1); None means all.

        Raises:
            UserError: The model has no such class.
        """
        keep = self.scores >= min_score
        if classes is not None:
            chosen = [classes] if isinstance(classes, str | int) else list(classes)
            labels = torch.tensor([self._label(one) for one in chosen], dtype=torch.int64)
            keep &= torch.isin(self.labels, labels)
        return self[keep]

    def draw(self, min_score: float = DRAW_SCORE, *, min_size: int = MIN_DRAWN_SIZE) -> Image.Image:
        """Draw boxes, masks and names on a copy of the picture.

        Args:
            min_score: Minimum score of what is drawn.
            min_size: Minimum longer side in pixels; smaller pictures are enlarged by a whole factor
                so that the text is legible. 0 enlarges none.

        Returns:
            The copy, RGB.

        Raises:
            UserError: The picture's file is gone.
        """
        shown = self.filter(min_score)
        return draw_boxes(
            self.picture,
            shown.boxes,
            shown.labels.tolist(),
            self.classes,
            shown.scores.tolist(),
            min_size=min_size,
            masks=None if shown.masks is None else shown.masks.numpy(),
        )

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """Return the detections as entries of a COCO result file.

        https://cocodataset.org/#format-results; ``file_name`` and ``category_name`` are additions
        that readers of the format ignore.

        Args:
            image_id: The id of the picture.

        Returns:
            One dict per detection, of plain values. Masks are compressed RLE under
            ``segmentation``.

        Raises:
            UserError: There are masks, but no library to compress them.
        """
        rows = zip(self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), strict=True)
        entries: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "file_name": self.name.as_posix(),
                "category_id": self.classes.category_id(label),
                "category_name": self.classes.name(label),
                "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(score, 5),
            }
            for (x1, y1, x2, y2), label, score in rows
        ]
        if self.masks is not None:
            for entry, mask in zip(entries, self.masks, strict=True):
                entry["segmentation"] = encoded_rle(mask.numpy())
        return entries

    def to_pandas(self) -> Any:
        """Return the detections as a ``pandas.DataFrame``.

        Returns:
            One row per detection, with ``file_name``, ``x1``, ``y1``, ``x2``, ``y2`` (pixels),
            ``score``, ``label`` (from 1) and ``name``.

        Raises:
            UserError: pandas is not installed.
        """
        pandas = optional_library("pandas", "to_pandas()")
        names = [self.name.as_posix()] * len(self)
        corners = self.boxes.numpy().T
        values = (names, *corners, self.scores.numpy(), self.labels.numpy(), self.names)
        return pandas.DataFrame(dict(zip(COLUMNS, values, strict=True)))

    def to_supervision(self) -> Any:
        """Return the detections as ``supervision.Detections``.

        Returns:
            ``class_id`` counts from 0, as the classes of a supervision data set do:
            ``model.class_names[class_id]``. ``data["class_name"]`` has the names.

        Raises:
            UserError: supervision is not installed.
        """
        supervision = optional_library("supervision", "to_supervision()")
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            mask=None if self.masks is None else self.masks.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy() - 1,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def save(self, path: str | Path, min_score: float | None = None) -> Path:
        """Write the picture with the detections drawn, or a table of them.

        Args:
            path: The file. The suffix says what: a picture's (``.jpg``, ``.png``, ...), ``.json``
                (COCO results) or ``.csv`` (the columns of :meth:`to_pandas`).
            min_score: Minimum score; None means 0.5 in a picture and all in a table.

        Returns:
            The file.

        Raises:
            UserError: Another suffix, the file cannot be written, or the picture is gone.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix in _PICTURE_SUFFIXES:
            save_picture(self.draw(DRAW_SCORE if min_score is None else min_score), path)
        elif suffix == ".json":
            write_json(path, self.filter(min_score or 0.0).to_coco())
        elif suffix == ".csv":
            write_table(path, self.filter(min_score or 0.0))
        else:
            raise UserError(
                f"{path} must end in .json, .csv or a picture's suffix "
                f"({', '.join(_PICTURE_SUFFIXES)})"
            )
        return path

    def __repr__(self) -> str:
        counts = {name: self.names.count(name) for name in dict.fromkeys(self.names)}
        inside = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
        masks = "" if self.masks is None else " with masks"
        return f"Detections({self.name.as_posix()}, {self.width}x{self.height}: {inside}{masks})"

    def _repr_html_(self) -> str:
        return detections_html(self)

    def _repr_png_(self) -> bytes | None:
        return encoded_picture(self, "PNG")

    def _repr_jpeg_(self) -> bytes | None:
        return encoded_picture(self, "JPEG")

    def _label(self, one: str | int) -> int:
        if isinstance(one, str) and one in self.classes.names:
            return self.classes.names.index(one) + 1
        if isinstance(one, int) and 1 <= one <= len(self.classes):
            return one
        raise UserError(
            f"the model has no class {one!r}; it has {', '.join(self.classes.names)} "
            f"(labels 1 to {len(self.classes)})"
        )
