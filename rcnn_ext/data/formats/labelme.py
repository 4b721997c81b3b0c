"""labelme's JSON files, one per image, with rectangles, polygons and other shapes.

X-AnyLabeling and others write the same: ``shapes`` with ``label``, ``shape_type`` and ``points``,
``imagePath`` from the file's folder, ``imageWidth`` and ``imageHeight``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rcnn_ext.data.builder import RawObject
from rcnn_ext.data.formats.document_format import DocumentFormat
from rcnn_ext.data.formats.documents import Document, ImageEntry, Scan, load_json
from rcnn_ext.data.formats.file_names import file_parts
from rcnn_ext.data.formats.json_kinds import json_kind
from rcnn_ext.data.formats.outlines import Box, box_around, number, points_of, segmentation_of
from rcnn_ext.data.images import IMAGE_SUFFIXES
from rcnn_ext.data.json_places import JsonPlaces
from rcnn_ext.errors import UserError

# Shapes that have a place but no extent.
_WITHOUT_BOX = ("point", "points")

# Closed lines of points; X-AnyLabeling and newer versions have turned rectangles as such.
_POLYGONS = ("polygon", "rotation", "oriented_rectangle")

# Two opposite corners; what the rectangle is filled with is no matter.
_BOXES = ("rectangle", "mask")


def _read(document: Document, scan: Scan) -> Iterator[ImageEntry]:
    value = load_json(document)
    if not isinstance(value, dict) or not isinstance(value.get("shapes"), list):
        raise UserError(f"{document.path} is not a labelme file: it has no list 'shapes'")
    places = JsonPlaces(document.path)
    stem = document.path.stem
    names = [stem + suffix for suffix in IMAGE_SUFFIXES]
    named = value.get("imagePath")
    if isinstance(named, str) and file_parts(named):
        names.insert(0, named)
    width, height = number(value.get("imageWidth")), number(value.get("imageHeight"))
    size = (int(width), int(height)) if width and height and min(width, height) >= 1 else None
    hint = ""
    if isinstance(value.get("imageData"), str):
        hint = (
            "; the file holds a copy of it ('imageData'), which is not read: save it as a file "
            "beside this one (labelme_export_json does)"
        )
    entry = ImageEntry(names, size, [], document.path, hint=hint)
    for index, shape in enumerate(value["shapes"]):
        line = scan.place(places, "shapes", index)
        kind = shape.get("shape_type") if isinstance(shape, dict) else None
        if kind in _WITHOUT_BOX:
            what = f"objects of shape {kind}, which have no box"
            scan.leave_out(what, document.path, scan.locate(line))
            continue
        found = _object(shape)
        if isinstance(found, str):
            scan.report.error(document.path, scan.locate(line), f"shapes[{index}]: {found}")
            entry.broken = True
        else:
            entry.objects.append(found._replace(line=line, what=found.name))
    yield entry


def _object(shape: Any) -> RawObject | str:
    """Return an object, or what is wrong with it."""
    if not isinstance(shape, dict):
        return "it is not an object of JSON"
    label = shape.get("label")
    if not isinstance(label, str) or not label:
        return "it has no 'label'"
    points = points_of(shape.get("points"))
    if points is None:
        return f"'points' of the {label} is {shape.get('points')!r:.80}, not a list of points"
    # Files of labelme 3 have no types, and polygons only.
    kind = shape.get("shape_type") or "polygon"
    if kind in _BOXES and len(points) == 2:
        return RawObject(box_around(points), label)
    if kind == "circle":
        if len(points) != 2:
            return f"the circle of the {label} has {len(points)} points, not center and edge"
        return RawObject(_box_of_circle(points), label, outline=kind)
    if len(points) < 2:
        return f"the {kind} of the {label} has a single point"
    outline = "" if kind == "rectangle" else str(kind)
    made = segmentation_of(points) if kind in _POLYGONS else None
    return RawObject(box_around(points), label, outline=outline, segmentation=made)


def _box_of_circle(points: list[tuple[float, float]]) -> Box:
    (x, y), edge = points
    radius = math.dist((x, y), edge)
    return x - radius, y - radius, x + radius, y + radius


LABELME = DocumentFormat(
    "labelme",
    "a JSON file per image with 'shapes' and 'imagePath' (labelme)",
    (".json",),
    lambda path: json_kind(path) == "labelme",
    _read,
    one_per_image=True,
)
FORMAT = LABELME.as_format()
