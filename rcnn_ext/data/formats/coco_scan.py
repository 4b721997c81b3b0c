"""Reading the lists of a COCO file into columns, entry by entry only where one is unusual."""

from __future__ import annotations

import gc
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from rcnn_ext.data.formats.coco_ids import IdColumn, Key, key_of
from rcnn_ext.data.formats.file_names import file_parts
from rcnn_ext.data.json_lists import JsonListPlaces
from rcnn_ext.data.json_stream import JsonStream
from rcnn_ext.data.problems import Report
from rcnn_ext.data.segmentation import Segmentation

_T = TypeVar("_T")

_SECTIONS = ("images", "annotations", "categories")
_NUMBERS = {int, float}
# How much of a wrong value a message shows.
_MAX_SHOWN = 60


class Category(NamedTuple):
    """A category: its name, its id as the file has it, and the name of its group."""

    name: str
    key: Key
    group: Any


@dataclass
class CocoColumns:
    """What is in a file. Broken entries are reported and not here.

    Attributes:
        sections: The names of the sections that are lists.
        image_rows: Place in the columns of images by id.
        indices: Place in the file's list of each image.
        names: File name of each image.
        splits: Split that each image's entry names, or None.
        sizes: Width and height of each image in pixels, 0 where the file has none.
        skipped: Number of entries of images that cannot be used.
        num_images: Number of entries of images.
        num_categories: Number of entries of categories.
        categories: The categories by id, in the order of the file.
        category_names: Their names.
        objects: What is in the images.
    """

    sections: set[str] = field(default_factory=set)
    image_rows: dict[Key, int] = field(default_factory=dict)
    indices: array[int] = field(default_factory=lambda: array("q"))
    names: list[str] = field(default_factory=list)
    splits: list[Any] = field(default_factory=list)
    sizes: array[int] = field(default_factory=lambda: array("q"))
    skipped: int = 0
    num_images: int = 0
    num_categories: int = 0
    categories: dict[Key, Category] = field(default_factory=dict)
    category_names: set[str] = field(default_factory=set)
    objects: ObjectColumns = field(default_factory=lambda: ObjectColumns(False))


class ObjectColumns:
    """The entries of ``annotations``, all of them, the broken ones with a message.

    Args:
        masks: Whether outlines and masks are kept.
    """

    def __init__(self, masks: bool) -> None:
        self.masks = masks
        self.count = 0
        self.own_ids = IdColumn()
        self.image_ids = IdColumn()
        self.category_ids = IdColumn()
        self.problems: dict[int, str] = {}
        # Outlines that were asked for and cannot be read, though there is a box.
        self.wrong_outlines: dict[int, str] = {}
        self.segmentations: list[bytes] = []
        self._boxes: list[np.ndarray] = []
        self._areas: list[np.ndarray] = []
        self._crowd: list[np.ndarray] = []

    def take_boxes(self) -> np.ndarray:
        """Hand over the boxes, once.

        Returns:
            (x, y, width, height) in image pixels, float64 [N, 4]; NaN for those with a problem.
        """
        boxes = np.concatenate([np.zeros((0, 4)), *self._boxes])
        self._boxes = []
        return boxes

    @property
    def areas(self) -> np.ndarray:
        """Areas in square pixels, float64 [N]; NaN where the file has none."""
        return np.concatenate([np.zeros(0), *self._areas])

    @property
    def crowd(self) -> np.ndarray:
        """Which are crowds, bool [N]."""
        return np.concatenate([np.zeros(0, dtype=bool), *self._crowd])

    def add(self, entries: list[Any]) -> None:
        """Add the next entries."""
        columns = None if self.masks else _plain(entries)
        if columns is None:
            columns = self._one_by_one(entries)
        own, images, categories, boxes, areas, crowd = columns
        self.own_ids.add(own)
        self.image_ids.add(images)
        self.category_ids.add(categories)
        self._boxes.append(boxes)
        self._areas.append(areas)
        self._crowd.append(crowd)
        self.count += len(entries)

    def _one_by_one(self, entries: list[Any]) -> tuple[Any, ...]:
        boxes = np.full((len(entries), 4), np.nan)
        areas = np.full(len(entries), np.nan)
        crowd = np.zeros(len(entries), dtype=bool)
        ids: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        for place, entry in enumerate(entries):
            index = self.count + place
            packed = b""
            if not isinstance(entry, dict):
                self.problems[index] = "is not an object"
                entry = {}
            else:
                problem, box, area, segmentation = _geometry(entry, self.masks)
                if problem is not None:
                    self.problems[index] = problem
                elif box is not None:
                    boxes[place], areas[place] = box, area
                    crowd[place] = _is_true(entry.get("iscrowd"))
                    packed = segmentation.to_bytes() if segmentation is not None else b""
                    if self.masks and segmentation is None:
                        self._note_wrong_outline(index, entry.get("segmentation"))
            if self.masks:
                self.segmentations.append(packed)
            for column, name in zip(ids, ("id", "image_id", "category_id"), strict=True):
                column.append(entry.get(name))
        return *ids, boxes, areas, crowd

    def _note_wrong_outline(self, index: int, value: Any) -> None:
        try:
            Segmentation.parse(value)
        except ValueError as error:
            self.wrong_outlines[index] = str(error)


def _plain(entries: list[Any]) -> tuple[Any, ...] | None:
    """Return the columns of entries that are all as COCO describes; None if one is not."""
    try:
        boxes = list(map(itemgetter("bbox"), entries))
        images = list(map(itemgetter("image_id"), entries))
        categories = list(map(itemgetter("category_id"), entries))
        if set(map(type, boxes)) != {list} or set(map(len, boxes)) != {4}:
            return None
        if not set(map(type, chain.from_iterable(boxes))) <= _NUMBERS:
            return None
        corners = np.fromiter(chain.from_iterable(boxes), np.float64, 4 * len(boxes))
        areas = [entry.get("area") for entry in entries]
        if not set(map(type, areas)) <= {*_NUMBERS, type(None)}:
            return None
        flags = [entry.get("iscrowd") for entry in entries]
        if not set(map(type, flags)) <= {int, bool, type(None)}:
            return None
        return (
            [entry.get("id") for entry in entries],
            images,
            categories,
            corners.reshape(-1, 4),
            np.array(areas, dtype=np.float64),
            np.array(list(map(bool, flags))),
        )
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError):
        return None


def _geometry(
    entry: dict[str, Any], masks: bool
) -> tuple[str | None, list[float] | None, float, Segmentation | None]:
    """Return what is wrong with an entry's box, or the box (x, y, width, height), area, outline."""
    box = entry.get("bbox")
    segmentation = None
    missing = box is None or box == []
    if missing or masks:
        try:
            segmentation = Segmentation.parse(entry.get("segmentation"))
        except ValueError as error:
            if missing:
                return f"has no 'bbox', and its 'segmentation' {error}", None, np.nan, None
    area: Any = entry.get("area")
    try:
        size = float(area) if type(area) in _NUMBERS else np.nan
    except OverflowError:
        return f"'area' is {shown(area)}, beyond all bounds", None, np.nan, None
    if missing:
        if segmentation is None:
            return "has neither a 'bbox' nor a 'segmentation'", None, np.nan, None
        x1, y1, x2, y2 = segmentation.box()
        size = segmentation.area() if size != size else size
        return None, [x1, y1, x2 - x1, y2 - y1], size, segmentation
    wrong = f"'bbox' is {shown(box)}, not four numbers x, y, width, height"
    if not isinstance(box, list) or len(box) != 4:
        return wrong, None, np.nan, None
    if not all(type(value) in _NUMBERS for value in box):
        return wrong, None, np.nan, None
    try:
        return None, [float(value) for value in box], size, segmentation
    except OverflowError:
        return f"'bbox' is {shown(box)}, with a number beyond all bounds", None, np.nan, None


def _is_true(value: Any) -> bool:
    """Return whether a flag is set: 1, true, and their texts."""
    if isinstance(value, str):
        return value.strip().lower() in ("1", "true", "yes")
    return bool(value) and value == value


def shown(value: Any) -> str:
    """Return a value for a message, shortened."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print whole numbers of more than 4300 digits.
        return "a number of thousands of digits"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def scan_coco(
    path: Path, encoding: str | None, places: JsonListPlaces, report: Report, masks: bool
) -> CocoColumns:
    """Read a file, and report broken entries of images and categories.

    Args:
        path: The file.
        encoding: See :class:`rcnn_ext.data.json_stream.JsonStream`.
        places: Finds lines.
        report: Where problems go.
        masks: Whether outlines and masks are kept.

    Raises:
        UserError: It is missing, or not JSON.
    """
    found = CocoColumns(objects=ObjectColumns(masks))
    problems: list[tuple[str, int, str]] = []
    for section, entries in _without_collector(JsonStream(path, encoding).sections()):
        if section not in _SECTIONS or entries is None:
            found.sections.discard(section)
        elif not entries:
            if section in found.sections:
                problems.append((section, 0, "the list comes twice"))
            found.sections.add(section)
        elif section == "images":
            _add_images(found, entries, problems)
        elif section == "categories":
            _add_categories(found, entries, problems)
        else:
            found.objects.add(entries)
    # Lines are looked for only now, since that reads the file again.
    for section, index, message in problems:
        report.error(path, places.line(section, index), f"{section}[{index}]{message}")
    return found


def _without_collector(items: Iterator[_T]) -> Iterator[_T]:
    """Yield the items with Python's cyclic collector off, which JSON has no work for.

    It would look at each of millions of short-lived objects, for a fifth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield from items
    finally:
        if enabled:
            gc.enable()


def _add_images(
    found: CocoColumns, entries: list[Any], problems: list[tuple[str, int, str]]
) -> None:
    for entry in entries:
        index = found.num_images
        found.num_images += 1
        key = key_of(entry.get("id")) if isinstance(entry, dict) else None
        name = _file_name(entry) if isinstance(entry, dict) else ""
        if key is None:
            problem = " has no 'id'"
        elif not name:
            problem = f" (id {shown(key)}) has no 'file_name'"
        elif key in found.image_rows:
            first = found.indices[found.image_rows[key]]
            problem = f": the id {shown(key)} is used twice, first by images[{first}]"
        else:
            found.image_rows[key] = len(found.names)
            found.names.append(name)
            found.indices.append(index)
            found.splits.append(entry.get("split"))
            width, height = _side(entry.get("width")), _side(entry.get("height"))
            found.sizes.extend((width, height) if width and height else (0, 0))
            continue
        problems.append(("images", index, problem))
        found.skipped += 1


def _file_name(entry: dict[str, Any]) -> str:
    """Return the name of an image's file, or "" where the entry has none.

    LVIS has addresses only, whose last folder tells the pictures of COCO's training and validation
    apart, as both are in its training split.
    """
    name = entry.get("file_name")
    if isinstance(name, str) and name:
        return name
    address = entry.get("coco_url")
    parts = file_parts(address) if isinstance(address, str) else ()
    return "/".join(parts[-2:])


def _side(value: Any) -> int:
    """Return a width or height, 0 where it is none."""
    if type(value) is int and 0 < value < 2**31:
        return value
    if type(value) is float and 0 < value < 2**31 and value.is_integer():
        return int(value)
    return 0


def _add_categories(
    found: CocoColumns, entries: list[Any], problems: list[tuple[str, int, str]]
) -> None:
    names = found.category_names
    for entry in entries:
        index = found.num_categories
        found.num_categories += 1
        key = key_of(entry.get("id")) if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if type(name) is int:
            name = str(name)
        if key is None:
            problem = " has no 'id'"
        elif not isinstance(name, str):
            problem = f" (id {shown(key)}) has no 'name'"
        elif key in found.categories:
            problem = f": the id {shown(key)} is used twice"
        elif name in names:
            problem = f": the name {shown(name)} is used twice"
        else:
            names.add(name)
            found.categories[key] = Category(name, key, entry.get("supercategory"))
            continue
        problems.append(("categories", index, problem))
