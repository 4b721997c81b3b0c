"""Supervisely's projects: ``<data set>/ann/<image>.json`` beside ``<data set>/img/<image>``.

``meta.json`` of the project declares the classes. Objects are rectangles, polygons, lines and
bitmaps, of which the enclosing box is taken.
"""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from rcnn_ext.data.builder import RawObject
from rcnn_ext.data.formats.document_format import DocumentFormat
from rcnn_ext.data.formats.documents import Document, ImageEntry, Scan, load_json
from rcnn_ext.data.formats.json_kinds import json_kind
from rcnn_ext.data.formats.outlines import box_around, number, points_of, segmentation_of
from rcnn_ext.data.images import IMAGE_SUFFIXES
from rcnn_ext.data.json_places import JsonPlaces
from rcnn_ext.errors import UserError

_WITHOUT_BOX = ("point", "graph", "multichannelBitmap", "mask_3d", "cuboid_3d", "closed_mesh")

# A bitmap is a compressed PNG file, whose header is all that is needed.
_MAX_HEADER = 4096


def _read(document: Document, scan: Scan) -> Iterator[ImageEntry]:
    value = load_json(document)
    if not isinstance(value, dict) or not isinstance(value.get("objects"), list):
        raise UserError(f"{document.path} is not a Supervisely file: it has no list 'objects'")
    if not scan.classes:
        scan.declare(_declared(document.path, scan.root))
    places = JsonPlaces(document.path)
    entry = ImageEntry(_names(document.path), _size(value), [], document.path)
    for index, item in enumerate(value["objects"]):
        line = scan.place(places, "objects", index)
        kind = _kind(item)
        if kind in _WITHOUT_BOX:
            what = f"objects of shape {kind}, which have no box here"
            scan.leave_out(what, document.path, scan.locate(line))
            continue
        found = _object(item, kind)
        if isinstance(found, str):
            scan.report.error(document.path, scan.locate(line), f"objects[{index}]: {found}")
            entry.broken = True
        else:
            entry.objects.append(found._replace(line=line, what=found.name))
    yield entry


def _names(path: Path) -> list[str]:
    """Return what the image of an annotation file may be called, from the file's folder."""
    stem = path.stem
    # Old projects leave the image's suffix out: a.json instead of a.jpg.json.
    own = [stem] if Path(stem).suffix.lower() in IMAGE_SUFFIXES else []
    files = own + [stem + suffix for suffix in IMAGE_SUFFIXES] + [stem]
    if path.parent.name == "ann":
        return [f"{path.parent.parent / 'img' / file}" for file in files[:1]] + files
    return files


def _declared(path: Path, root: Path) -> list[str]:
    """Return the classes of the nearest ``meta.json``; none if there is none."""
    for folder in path.parents:
        meta = folder / "meta.json"
        if meta.is_file():
            value = load_json(Document(meta))
            classes = value.get("classes") if isinstance(value, dict) else None
            if not isinstance(classes, list):
                raise UserError(f"{meta} is not Supervisely's: it has no list 'classes'")
            titles = [item.get("title") for item in classes if isinstance(item, dict)]
            return [title for title in titles if isinstance(title, str)]
        if folder == root:
            break
    return []


def _size(value: dict[str, Any]) -> tuple[int, int] | None:
    size = value.get("size")
    if not isinstance(size, dict):
        return None
    width, height = number(size.get("width")), number(size.get("height"))
    return (int(width), int(height)) if width and height and min(width, height) >= 1 else None


def _kind(item: Any) -> str | None:
    """Return the type of an object's shape; files of old versions show it by their content."""
    if not isinstance(item, dict):
        return None
    kind = item.get("geometryType") or item.get("shape")
    if isinstance(kind, str):
        return kind
    return "bitmap" if item.get("bitmap") else "polygon"


def _object(item: Any, kind: str | None) -> RawObject | str:
    """Return an object, or what is wrong with it."""
    if not isinstance(item, dict):
        return "it is not an object of JSON"
    label = item.get("classTitle")
    if not isinstance(label, str) or not label:
        return "it has no 'classTitle'"
    if kind == "bitmap":
        return _bitmap(item.get("bitmap"), label)
    place = item.get("points")
    points = points_of(place.get("exterior")) if isinstance(place, dict) else None
    if points is None or len(points) < 2:
        return f"'points' of the {label} has no list 'exterior' of two points or more"
    outline = "" if kind in ("rectangle", "any") and len(points) == 2 else str(kind)
    made = None
    if kind == "polygon":
        inner = place.get("interior") if isinstance(place, dict) else None
        holes = [points_of(one) or [] for one in inner] if isinstance(inner, list) else []
        made = segmentation_of(points, holes)
    return RawObject(box_around(points), label, outline=outline, segmentation=made)


def _bitmap(value: Any, label: str) -> RawObject | str:
    origin = points_of([value.get("origin")]) if isinstance(value, dict) else None
    data = value.get("data") if isinstance(value, dict) else None
    if origin is None or not isinstance(data, str):
        return f"the bitmap of the {label} has no 'origin' and 'data'"
    try:
        unpacked = zlib.decompressobj().decompress(base64.b64decode(data), _MAX_HEADER)
        with Image.open(io.BytesIO(unpacked)) as picture:
            width, height = picture.size
    except (binascii.Error, zlib.error, UnidentifiedImageError, OSError, ValueError):
        return f"the bitmap of the {label} is damaged"
    x, y = origin[0]
    return RawObject((x, y, x + width, y + height), label, outline="bitmap")


SUPERVISELY = DocumentFormat(
    "Supervisely",
    "a folder ann with a JSON file per image, with 'objects' and 'size' (Supervisely)",
    (".json",),
    lambda path: json_kind(path) == "supervisely",
    _read,
    one_per_image=True,
)
FORMAT = SUPERVISELY.as_format()
