"""Hugging Face's ImageFolder: images with ``metadata.jsonl`` or ``metadata.csv`` beside them.

A row has ``file_name`` and ``objects``, lists of boxes and classes; boxes are (x, y, width,
height), or corners with ``data.hf.box_format=xyxy``.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rcnn_ext.data.builder import RawObject
from rcnn_ext.data.formats.document_format import DocumentFormat
from rcnn_ext.data.formats.documents import Document, ImageEntry, Scan
from rcnn_ext.data.formats.outlines import number, numbers
from rcnn_ext.data.text_files import read_lines
from rcnn_ext.errors import UserError
from rcnn_ext.files import read_head

_BOXES = ("bbox", "bboxes", "boxes", "box")
_CLASSES = ("category", "categories", "label", "labels", "class", "classes", "name", "category_id")
_FILE = ("file_name", "image_file_name", "image")


def _recognize(path: Path) -> bool:
    if path.name not in ("metadata.jsonl", "metadata.csv"):
        return False
    head = read_head(path, 1 << 16).replace(b"\0", b"")
    # An empty list of objects has no boxes.
    return b"file_name" in head and re.search(rb"objects|bbox|boxes", head) is not None


def _read(document: Document, scan: Scan) -> Iterator[ImageEntry]:
    names = _class_names(document.path, scan.root)
    scan.declare(names or ())
    keys = scan.config.hf
    for line, row in _rows(document.path):
        name = row if isinstance(row, str) else next((row[k] for k in _FILE if row.get(k)), None)
        if isinstance(row, str) or not isinstance(name, str):
            wrong = row if isinstance(row, str) else "it has no 'file_name'"
            scan.report.error(document.path, line, wrong)
            yield ImageEntry([f"of line {line}"], None, [], document.path, line, broken=True)
            continue
        entry = ImageEntry([name], None, [], document.path, line)
        found = _lists(row, keys.objects, keys.box, keys.label)
        if isinstance(found, str):
            scan.report.error(document.path, line, f"{name}: {found}")
            entry.broken = True
            yield entry
            continue
        for index, (box, label, crowd) in enumerate(zip(*found, strict=True)):
            item = _object(box, label, names, keys.box_format == "xyxy")
            if isinstance(item, str):
                scan.report.error(document.path, line, f"object {index} of {name}: {item}")
                entry.broken = True
            else:
                what = f"object {index} of {name}"
                place = scan.known_place(line)
                entry.objects.append(item._replace(line=place, what=what, crowd=bool(crowd)))
        yield entry


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the rows with their lines; for a row that cannot be read, what is wrong with it."""
    lines = read_lines(path)
    if path.suffix == ".csv":
        try:
            reader = csv.DictReader(io.StringIO("\n".join(lines)), strict=True)
            for row in reader:
                yield reader.line_num, dict(row)
        except csv.Error:
            raise UserError(
                f"{path} is not a CSV file: the row that ends at line {reader.line_num} has quotes "
                "that are not closed, or closed and followed by more"
            ) from None
        return
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        value = _parsed(text)
        if value is None:
            yield line, "it is not valid JSON; each line is to be an object"
        elif isinstance(value, dict):
            yield line, value
        else:
            yield line, f"it is {value!r:.40}, not an object of JSON"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _lists(
    row: dict[str, Any], objects: str, box: str, label: str
) -> tuple[list[Any], list[Any], list[Any]] | str:
    """Return boxes, classes and marks of crowds of a row, or what is wrong with it."""
    value = row.get(objects, row)
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, list):
        # A list of objects rather than an object of lists.
        if not all(isinstance(item, dict) for item in value):
            return f"{objects!r} is neither lists of boxes and classes nor a list of objects"
        merged = sorted({key for item in value for key in item})
        value = {key: [item.get(key) for item in value] for key in merged} or {box: [], label: []}
    if not isinstance(value, dict):
        return f"{objects!r} is {value!r:.40}, not lists of boxes and classes"
    boxes = _list_of(value, (box, *_BOXES))
    labels = _list_of(value, (label, *_CLASSES))
    if boxes is None or labels is None:
        missing = f"boxes ({box})" if boxes is None else f"classes ({label})"
        return (
            f"it has no list of {missing}; data.hf.objects, box and label say what they are called"
        )
    if len(boxes) != len(labels):
        return f"it has {len(boxes)} boxes but {len(labels)} classes"
    crowds = _list_of(value, ("iscrowd", "is_crowd")) or [False] * len(boxes)
    if len(crowds) != len(boxes):
        return f"it has {len(boxes)} boxes but {len(crowds)} marks of crowds"
    return boxes, labels, crowds


def _list_of(value: dict[str, Any], keys: tuple[str, ...]) -> list[Any] | None:
    for key in keys:
        found = value.get(key)
        if isinstance(found, str):
            found = _parsed(found)
        if isinstance(found, list):
            return found
    return None


def _object(box: Any, label: Any, names: list[str] | None, corners: bool) -> RawObject | str:
    """Return an object, or what is wrong with it."""
    values = numbers(box) if isinstance(box, list) else None
    if values is None or len(values) != 4:
        return f"its box is {box!r:.80}, not four numbers"
    a, b, c, d = values
    if isinstance(label, str) and label:
        name = label
    else:
        index = number(label)
        if index is None or index != int(index):
            return f"its class is {label!r:.40}, neither a name nor a number"
        if names is not None and not 0 <= index < len(names):
            return f"its class is {int(index)}; there are {len(names)}"
        name = names[int(index)] if names is not None else str(int(index))
    return RawObject((a, b, c, d) if corners else (a, b, a + c, b + d), name)


def _class_names(path: Path, root: Path) -> list[str] | None:
    """Return the names of the classes in the data set's card (README.md); None if it has none."""
    for folder in path.parents:
        card = folder / "README.md"
        if card.is_file():
            return _names_in_card("\n".join(read_lines(card)))
        if folder == root:
            break
    return None


def _names_in_card(text: str) -> list[str] | None:
    block = re.search(r"class_label:\s*\n\s*names:\s*\n((?:\s+['\"]?\d{1,9}['\"]?:.*\n?)+)", text)
    if block is None:
        return None
    pairs = re.findall(r"['\"]?(\d{1,9})['\"]?:[ \t]*(.*)", block[1])
    names = {int(index): name.strip().strip("'\"") for index, name in pairs}
    return (
        [names[index] for index in sorted(names)] if sorted(names) == [*range(len(names))] else None
    )


IMAGEFOLDER = DocumentFormat(
    "ImageFolder",
    "metadata.jsonl or metadata.csv with file_name and objects (Hugging Face's ImageFolder)",
    (".jsonl", ".csv"),
    _recognize,
    _read,
)
FORMAT = IMAGEFOLDER.as_format()
