"""Documents of annotation tools, JSON or XML, and what their readers find in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.builder import RawObject
from rcnn_ext.data.json_places import JsonPlaces
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from rcnn_ext.files import read_json


@dataclass(frozen=True)
class Document:
    """A file of annotations, or a part of one.

    Attributes:
        path: The file.
        split: The split that its path or its part speaks of; None where neither does.
        part: The name within the file of what belongs to the split; None: all of it.
    """

    path: Path
    split: str | None = None
    part: str | None = None


@dataclass
class ImageEntry:
    """One image as a document describes it.

    Attributes:
        names: What the document calls it, the likeliest first.
        size: Width and height in pixels; None where the document does not say.
        objects: What is in it; their ``line`` is what :meth:`Scan.place` or
            :meth:`Scan.known_place` gave, or None.
        document: The file.
        line: Its line in the file, if known.
        broken: Whether a problem was reported, so that it cannot be used.
        hint: What to do where the image does not exist.
        resolve: Returns the objects when the size of the image is known, where the document has
            neither the size nor pixels.
        left_out: Why the image is not used, in the plural; empty: it is.
    """

    names: Sequence[str]
    size: tuple[int, int] | None
    objects: list[RawObject]
    document: Path
    line: int | None = None
    broken: bool = False
    hint: str = ""
    resolve: Callable[[tuple[int, int]], list[RawObject]] | None = None
    left_out: str = ""


@dataclass
class _Tally:
    file: Path
    line: int | None
    count: int = 0


@dataclass
class Scan:
    """The reading of the documents of a split: their classes, and what is wrong or left out.

    Attributes:
        root: The data folder.
        config: The data section of the recipe.
        report: Where problems go.
        lines: Whether every image is to have its line, even where that costs a second reading.
        classes: Names of the classes that the documents declare, in this order.
    """

    root: Path
    config: DataConfig
    report: Report
    lines: bool
    classes: dict[str, None] = field(default_factory=dict)
    _left_out: dict[str, _Tally] = field(default_factory=dict)
    _places: list[tuple[JsonPlaces, tuple[str | int, ...]] | int | None] = field(
        default_factory=list
    )

    def declare(self, names: Iterable[str]) -> None:
        """Add classes that a document declares, whether or not any object has them."""
        self.classes.update(dict.fromkeys(names))

    def leave_out(self, what: str, file: Path, line: int | None = None, count: int = 1) -> None:
        """Count things that are left out, for one warning each kind with the place of the first."""
        self._left_out.setdefault(what, _Tally(file, line)).count += count

    def place(self, places: JsonPlaces, *steps: str | int) -> int:
        """Return what stands for the line of a value until a problem asks for it."""
        self._places.append((places, steps))
        return len(self._places) - 1

    def known_place(self, line: int | None) -> int:
        """Return what stands for a line that is known already."""
        self._places.append(line)
        return len(self._places) - 1

    def locate(self, key: int) -> int | None:
        """Return the line that :meth:`place` or :meth:`known_place` gave a key for."""
        place = self._places[key]
        return place[0].line(*place[1]) if isinstance(place, tuple) else place

    def warn_of_left_out(self) -> None:
        """Report what was counted."""
        for what, tally in self._left_out.items():
            first = "" if tally.count == 1 else ", the first here"
            self.report.warning(tally.file, tally.line, f"left out: {tally.count} {what}{first}")


def load_json(document: Document) -> object:
    """Read a JSON document; nothing that a file holds raises anything but :class:`UserError`.

    Raises:
        UserError: It cannot be read, or is not JSON.
    """
    try:
        return read_json(document.path)
    except RecursionError:
        raise UserError(f"{document.path} is nested too deeply for an annotation file") from None
    except ValueError as error:  # An integer of 5,000 digits.
        raise UserError(f"{document.path} is not valid JSON: {error}") from None
