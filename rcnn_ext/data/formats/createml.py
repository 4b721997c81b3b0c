"""CreateML's JSON, as LabelImg, Roboflow and others write it.

A list of images, in one file or one file per image; boxes by their centers and sides, in pixels:
``[{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {"x": .., "y": .., ...}}]}]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rcnn_ext.data.builder import RawObject
from rcnn_ext.data.formats.document_format import DocumentFormat
from rcnn_ext.data.formats.documents import Document, ImageEntry, Scan, load_json
from rcnn_ext.data.formats.json_kinds import json_kind
from rcnn_ext.data.formats.outlines import numbers
from rcnn_ext.data.json_places import JsonPlaces
from rcnn_ext.errors import UserError

# Turi Create, where the format comes from, has the second of each pair.
_IMAGE = ("image", "imagefilename", "filename")
_OBJECTS = ("annotations", "annotation")


def _read(document: Document, scan: Scan) -> Iterator[ImageEntry]:
    value = load_json(document)
    entries = value if isinstance(value, list) else [value]
    places = JsonPlaces(document.path)
    for index, entry in enumerate(entries):
        steps: tuple[str | int, ...] = (index,) if isinstance(value, list) else ()
        name = _first(entry, _IMAGE) if isinstance(entry, dict) else None
        items = _first(entry, _OBJECTS) if isinstance(entry, dict) else None
        line = places.line(*steps) if scan.lines else None
        if not isinstance(name, str) or not name or not isinstance(items, list):
            raise UserError(
                f"{document.path} is not a CreateML file: entry {index} (line "
                f"{places.line(*steps)}) has no 'image' with a list 'annotations'"
            )
        result = ImageEntry([name], None, [], document.path, line)
        key = next(key for key in _OBJECTS if key in entry)
        for number, item in enumerate(items):
            where = (*steps, key, number)
            found = _object(item)
            if isinstance(found, str):
                what = f"object {number} of {name}: {found}"
                scan.report.error(document.path, places.line(*where), what)
                result.broken = True
            else:
                place = scan.place(places, *where)
                result.objects.append(found._replace(line=place, what=f"{found.name} of {name}"))
        yield result


def _object(item: Any) -> RawObject | str:
    """Return an object, or what is wrong with it."""
    if not isinstance(item, dict):
        return "it is not an object of JSON"
    label = item.get("label")
    if not isinstance(label, str) or not label:
        return "it has no 'label'"
    place = item.get("coordinates")
    values = (
        numbers(place.get(key) for key in ("x", "y", "width", "height"))
        if isinstance(place, dict)
        else None
    )
    if values is None:
        return f"'coordinates' is {place!r:.80}, not four numbers x, y, width and height"
    x, y, width, height = values
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return RawObject(box, label)


def _first(entry: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((entry[key] for key in keys if key in entry), None)


CREATEML = DocumentFormat(
    "CreateML",
    "JSON files with a list of images, each with 'image' and 'annotations' (CreateML)",
    (".json",),
    lambda path: json_kind(path) == "createml",
    _read,
)
FORMAT = CREATEML.as_format()
