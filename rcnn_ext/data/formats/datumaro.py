"""Datumaro's JSON: ``annotations/<subset>.json`` with the images in ``images/<subset>``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rcnn_ext.data.builder import RawObject
from rcnn_ext.data.formats.document_format import DocumentFormat
from rcnn_ext.data.formats.documents import Document, ImageEntry, Scan, load_json
from rcnn_ext.data.formats.json_kinds import json_kind
from rcnn_ext.data.formats.outlines import box_around, number, numbers, segmentation_of
from rcnn_ext.data.images import IMAGE_SUFFIXES
from rcnn_ext.data.json_places import JsonPlaces
from rcnn_ext.errors import UserError


def _read(document: Document, scan: Scan) -> Iterator[ImageEntry]:
    value = load_json(document)
    if not isinstance(value, dict) or not isinstance(value.get("items"), list):
        raise UserError(f"{document.path} is not a Datumaro file: it has no list 'items'")
    labels = _labels(value)
    scan.declare(labels)
    places = JsonPlaces(document.path)
    for index, item in enumerate(value["items"]):
        own = item.get("id") if isinstance(item, dict) else None
        objects = item.get("annotations") if isinstance(item, dict) else None
        if not isinstance(own, str) or not isinstance(objects, list):
            where = places.line("items", index)
            message = f"items[{index}] has no 'id' and 'annotations'"
            scan.report.error(document.path, where, message)
            yield ImageEntry([f"items[{index}]"], None, [], document.path, where, broken=True)
            continue
        media = item.get("image") or item.get("media") or {}
        path = media.get("path") if isinstance(media, dict) else None
        sides = media.get("size") if isinstance(media, dict) else None
        size = numbers(sides) if isinstance(sides, list) else None
        names = [path] if isinstance(path, str) and path else []
        entry = ImageEntry(
            [*names, *(own + suffix for suffix in IMAGE_SUFFIXES)],
            # Height comes first.
            (int(size[1]), int(size[0])) if size and len(size) == 2 and min(size) >= 1 else None,
            [],
            document.path,
            places.line("items", index) if scan.lines else None,
        )
        for place, shape in enumerate(objects):
            line = scan.place(places, "items", index, "annotations", place)
            found = _object(shape, labels)
            if isinstance(found, str):
                message = f"annotation {place} of {own}: {found}"
                scan.report.error(document.path, scan.locate(line), message)
                entry.broken = True
            elif found is None:
                what = f"annotations of the type {shape.get('type')}, which have no box here"
                scan.leave_out(what, document.path, scan.locate(line))
            else:
                entry.objects.append(found._replace(line=line, what=f"{found.name} of {own}"))
        yield entry


def _labels(value: dict[str, Any]) -> list[str]:
    found: Any = value.get("categories")
    for key in ("label", "labels"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list):
        return []
    # Objects name labels by their place, so that none may be left out.
    return [str(item.get("name") if isinstance(item, dict) else item) for item in found]


def _object(shape: Any, labels: list[str]) -> RawObject | str | None:
    """Return an object, what is wrong with it, or None where it has no box."""
    if not isinstance(shape, dict):
        return "it is not an object of JSON"
    kind = shape.get("type")
    if kind not in ("bbox", "polygon", "polyline"):
        return None
    label = number(shape.get("label_id"))
    if label is None or not 0 <= label < len(labels) or label != int(label):
        return f"no label has the index {shape.get('label_id')!r}"
    name = labels[int(label)]
    crowd = bool(shape.get("is_crowd"))
    given = shape.get("bbox" if kind == "bbox" else "points")
    values = numbers(given) if isinstance(given, list) else None
    if kind == "bbox":
        if values is None or len(values) != 4:
            return f"'bbox' is {given!r:.80}, not four numbers x, y, width, height"
        x, y, width, height = values
        return RawObject((x, y, x + width, y + height), name, crowd=crowd)
    if not values or len(values) % 2:
        return f"'points' is {given!r:.80}, not pairs of numbers"
    points = list(zip(values[::2], values[1::2], strict=True))
    made = segmentation_of(points) if kind == "polygon" else None
    return RawObject(box_around(points), name, crowd=crowd, outline=kind, segmentation=made)


DATUMARO = DocumentFormat(
    "Datumaro",
    "JSON files with 'items' and 'categories' (Datumaro)",
    (".json",),
    lambda path: json_kind(path) == "datumaro",
    _read,
)
FORMAT = DATUMARO.as_format()
