"""Writing CSV: one table per split, one object per row, and a table of the classes."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rcnn_ext.data.conversion.numbers import corner_texts
from rcnn_ext.data.conversion.target import Target
from rcnn_ext.data.images import IMAGE_SUFFIXES, Header
from rcnn_ext.data.records import ImageRecord

_HEADER = ("filename", "xmin", "ymin", "xmax", "ymax", "class")
# A reader that meets a quote takes a line with as many commas for the next row.
_MAX_COMMAS = len(_HEADER) - 2
_MAX_LINES = 20


class CsvTarget(Target):
    """Writes ``<split>.csv``, ``classes.csv`` and pictures in ``images``."""

    title: ClassVar[str] = "CSV"
    by_stem: ClassVar[bool] = False
    takes_paths: ClassVar[bool] = True
    numbering: ClassVar[str] = "CSV numbers classes by whole numbers only"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._used: set[int] = set()

    @staticmethod
    def held_name(name: str) -> str:
        """Return the name without spaces around it, or line ends that a table cannot hold."""
        plain = name.encode("utf-8", "replace").decode().replace("\0", "_").strip()
        plain = re.sub("\r\n?", "\n", plain)
        lines = plain.split("\n")
        if len(lines) > _MAX_LINES or any(line.count(",") >= _MAX_COMMAS for line in lines[1:]):
            plain = " ".join(lines)
        return plain or "unnamed"

    def images_folder(self, split: str) -> Path:
        """Return ``images``, which all splits share."""
        return Path("images")

    def begin(self, split: str, annotated: bool) -> None:
        """Open the table of a split."""
        self._split = split
        self._annotated = annotated
        self._largest, self._num_rows = 0.0, 0
        self._file = (self.folder / f"{split}.csv").open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(_HEADER if annotated else _HEADER[:1])

    def add(self, record: ImageRecord, name: str, header: Header) -> int:
        """Write the rows of an image; one without a box where it has no objects."""
        if not self._annotated:
            self._writer.writerow([name])
            return 0
        self.count_losses(record)
        rows = [
            (*corner_texts(box), self.classes.name(int(record.labels[index])))
            for index, box in enumerate(record.boxes)
            if not record.crowd[index]
        ]
        kept = record.boxes[~record.crowd]
        self._used |= set(np.unique(record.labels[~record.crowd]).tolist())
        different = list(dict.fromkeys(rows))
        why = "the same class and box as another of the image, which is no sound data: left out"
        self.losses.add("repeated objects", why, len(rows) - len(different))
        self._writer.writerows([name, *row] for row in different or [("",) * 5])
        self._largest = max(self._largest, float(kept.max(initial=0)))
        self._num_rows += len(different)
        return len(different)

    def end(self) -> None:
        """Close the table."""
        self._file.close()
        if self._num_rows and self._largest <= 1:
            why = "no coordinate is above 1: read them with data.csv.normalized=false"
            self.losses.add(f"pixels as the unit of {self._split}.csv", why, self._num_rows)

    def finish(self) -> None:
        """Write the classes with their numbers, where such a table can name them all."""
        names, ids = self.classes.names, self.classes.category_ids
        usable = all(isinstance(number, int) and number >= 0 for number in ids)
        numbers = [int(i) for i in ids] if usable else list(range(len(names)))
        if any("\n" in name or _ends_like_picture(name) for name in names):
            why = "a name is no plain text: only those with objects are known, sorted"
            self.losses.add("order and numbers of classes", why, len(names))
            return
        if not names:
            return
        with (self.folder / "classes.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(zip(names, numbers, strict=True))
        if not usable:
            self.count_category_ids(numbers, made_up=False)


def _ends_like_picture(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES
