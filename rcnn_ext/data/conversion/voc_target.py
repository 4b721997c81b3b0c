"""Writing VOC: one XML file per image, and image sets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar
from xml.sax.saxutils import escape

import numpy as np

from rcnn_ext.data.conversion.numbers import one_based_texts
from rcnn_ext.data.conversion.target import Target
from rcnn_ext.data.images import Header
from rcnn_ext.data.records import ImageRecord

# Characters that XML 1.0 cannot hold, even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class VocTarget(Target):
    """Writes ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.

    Coordinates count from 1 and name the last pixel within a box, as in VOC itself, and have
    fractions where the boxes do.
    """

    title: ClassVar[str] = "VOC"
    keeps_marks: ClassVar[bool] = True
    numbering: ClassVar[str] = "VOC has none: classes are told by their names"

    @staticmethod
    def held_name(name: str) -> str:
        """Return the name without characters that XML lacks, and without spaces around it."""
        return _NOT_XML.sub("_", name).strip() or "unnamed"

    def images_folder(self, split: str) -> Path:
        """Return ``JPEGImages``, which all splits share."""
        return Path("JPEGImages")

    def takes_name(self, name: str, annotated: bool) -> bool:
        """Return whether a list can name a picture that has no XML file."""
        # The lists of a class have a flag behind each name.
        return annotated or re.search(r"\s-?\d+$", Path(name).stem) is None

    def shared_key(self, record: ImageRecord) -> object:
        """Return all that is in the one XML file of a picture."""
        names = (record.boxes, record.labels, record.crowd, record.difficult, record.truncated)
        return hash(tuple(column.tobytes() for column in names))

    def fate_of_crowds(self) -> str:
        """Return what crowds become."""
        return "VOC has none: they are difficult objects now"

    def begin(self, split: str, annotated: bool) -> None:
        """Open the image set of a split."""
        (self.folder / "Annotations").mkdir(exist_ok=True)
        lists = self.folder / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        self._annotated = annotated
        self._list = (lists / f"{split}.txt").open("w", encoding="utf-8", newline="\n")
        self._used: set[int] = getattr(self, "_used", set())

    def add(self, record: ImageRecord, name: str, header: Header) -> int:
        """List an image, and write its XML file."""
        stem = Path(name).stem
        self._list.write(f"{stem}\n")
        if not self._annotated:
            return 0
        self.count_losses(record)
        self._used |= set(np.unique(record.labels).tolist())
        objects = "".join(
            f"\t<object>\n\t\t<name>{_escaped(self.classes.name(int(record.labels[index])))}"
            "</name>\n\t\t<pose>Unspecified</pose>\n"
            f"\t\t<truncated>{int(record.truncated[index])}</truncated>\n"
            f"\t\t<difficult>{int(record.difficult[index] or record.crowd[index])}</difficult>\n"
            f"\t\t<bndbox>{_corners(box)}</bndbox>\n\t</object>\n"
            for index, box in enumerate(record.boxes)
        )
        (self.folder / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation>\n\t<folder>JPEGImages</folder>\n"
            f"\t<filename>{_escaped(name)}</filename>\n"
            f"\t<size><width>{record.width}</width><height>{record.height}</height>"
            f"<depth>{header.channels}</depth></size>\n\t<segmented>0</segmented>\n"
            f"{objects}</annotation>\n",
            encoding="utf-8",
            newline="\n",
        )
        return len(record.boxes)

    def end(self) -> None:
        """Close the image set."""
        self._list.close()

    def finish(self) -> None:
        """Count the classes that no object is of."""
        why = "VOC has no list of classes: only those with objects are known"
        self.losses.add("classes without objects", why, len(self.classes) - len(self._used))


def _corners(box: np.ndarray) -> str:
    texts = zip(("xmin", "ymin", "xmax", "ymax"), one_based_texts(box), strict=True)
    return "".join(f"<{tag}>{text}</{tag}>" for tag, text in texts)


def _escaped(text: str) -> str:
    # A plain carriage return would be read as the end of a line.
    return escape(text, {"\r": "&#13;"})
