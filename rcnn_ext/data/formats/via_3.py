"""Projects of the VGG Image Annotator, version 3, whose regions are lists of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rcnn_ext.data.builder import RawObject
from rcnn_ext.data.formats.documents import Document, ImageEntry, Scan
from rcnn_ext.data.formats.outlines import (
    Box,
    Point,
    box_around,
    box_around_ellipse,
    numbers,
    segmentation_of,
)
from rcnn_ext.data.formats.via_regions import CLASS_ATTRIBUTES
from rcnn_ext.data.json_places import JsonPlaces
from rcnn_ext.errors import UserError

_POINT, _RECTANGLE, _CIRCLE, _ELLIPSE = 1, 2, 3, 4
# Shapes that are lists of points, by the number that stands for them.
_OF_POINTS = {5: "line", 6: "polyline", 7: "polygon", 8: "extreme rectangle"}


def is_version_3(value: dict[str, Any]) -> bool:
    """Return whether a document is a project of version 3."""
    return all(isinstance(value.get(key), dict) for key in ("file", "metadata", "view"))


def read_version_3(
    value: dict[str, Any], document: Document, scan: Scan, places: JsonPlaces
) -> Iterator[ImageEntry]:
    """Yield the images of a project.

    Raises:
        UserError: Several attributes may be the class.
    """
    attribute, options = _class_attribute(value, document)
    scan.declare(options.values())
    entries: dict[str, ImageEntry] = {}
    for key, file in value["file"].items():
        name = file.get("fname") if isinstance(file, dict) else None
        line = places.line("file", key)
        entry = ImageEntry([str(name)], None, [], document.path, line)
        if not isinstance(name, str) or not name:
            scan.report.error(document.path, line, f"the file {key!r:.40} has no 'fname'")
            entry.broken = True
        entries[str(key)] = entry
    for key, region in value["metadata"].items():
        place = scan.place(places, "metadata", key)
        owner = _image_of(region, value["view"], entries)
        if owner is None:
            line = scan.locate(place)
            scan.report.error(document.path, line, f"the region {key!r:.40} is of no image")
            continue
        name = owner.names[0]
        shape = region.get("xy")
        if not shape or region.get("z"):
            what = "notes on whole images, or on parts of a film"
            scan.leave_out(what, document.path, scan.locate(place))
            continue
        found = _box(shape)
        label = _label(region, attribute, options)
        if found is None:
            what = "objects of shape point or extreme circle, which have no box here"
            scan.leave_out(what, document.path, scan.locate(place))
        elif isinstance(found, str) or label is None:
            wrong = found if isinstance(found, str) else "it has no class, or several"
            message = f"the region {key!r:.40} of {name}: {wrong}"
            scan.report.error(document.path, scan.locate(place), message)
            owner.broken = True
        else:
            box, outline = found
            made = segmentation_of(_points(shape)) if outline == "polygon" else None
            what = f"{label} of {name}"
            owner.objects.append(
                RawObject(box, label, place, what, outline=outline, segmentation=made)
            )
    yield from entries.values()


def _class_attribute(
    value: dict[str, Any], document: Document
) -> tuple[str | None, dict[str, str]]:
    """Return the key of the attribute of regions that is the class, and its options by key."""
    attributes = value.get("attribute")
    of_regions = {
        key: item
        for key, item in (attributes.items() if isinstance(attributes, dict) else ())
        # Anchors of whole files end in XY0.
        if isinstance(item, dict) and str(item.get("anchor_id", "XY1")).endswith("XY1")
    }
    names = {key: str(item.get("aname", key)).lower() for key, item in of_regions.items()}
    usual = [key for key, name in names.items() if name in CLASS_ATTRIBUTES]
    if len(of_regions) > 1 and not usual:
        raise UserError(
            f"{document.path}: regions have the attributes {', '.join(names.values())}, and none "
            f"is called {', '.join(CLASS_ATTRIBUTES)}: rename the one that is the class"
        )
    if not of_regions:
        return None, {}
    key = (
        min(usual, key=lambda one: CLASS_ATTRIBUTES.index(names[one]))
        if usual
        else next(iter(of_regions))
    )
    options = of_regions[key].get("options")
    return key, {str(k): str(v) for k, v in options.items()} if isinstance(options, dict) else {}


def _image_of(
    region: Any, views: dict[str, Any], entries: dict[str, ImageEntry]
) -> ImageEntry | None:
    view = views.get(str(region.get("vid"))) if isinstance(region, dict) else None
    files = view.get("fid_list") if isinstance(view, dict) else None
    return entries.get(str(files[0])) if isinstance(files, list) and len(files) == 1 else None


def _label(region: dict[str, Any], attribute: str | None, options: dict[str, str]) -> str | None:
    values = region.get("av")
    value = values.get(attribute) if isinstance(values, dict) and attribute is not None else None
    if not isinstance(value, str) or not value.strip():
        return None
    if options:
        return options.get(value)
    return value.strip()


def _points(shape: list[Any]) -> list[Point]:
    """Return the points of a shape that is a list of these."""
    values = numbers(shape[1:]) or []
    return list(zip(values[::2], values[1::2], strict=True))


def _box(shape: Any) -> tuple[Box, str] | str | None:
    """Return the box of a shape and what it is around; None without one; or what is wrong."""
    values = numbers(shape) if isinstance(shape, list) else None
    if not values:
        return f"'xy' is {shape!r:.80}, not a list of numbers"
    kind, rest = int(values[0]), values[1:]
    if kind == _RECTANGLE and len(rest) == 4:
        x, y, width, height = rest
        return (x, y, x + width, y + height), ""
    if kind == _CIRCLE and len(rest) == 3:
        return box_around_ellipse((rest[0], rest[1]), (rest[2], rest[2])), "circle"
    if kind == _ELLIPSE and len(rest) == 4:
        return box_around_ellipse((rest[0], rest[1]), (rest[2], rest[3])), "ellipse"
    if kind in _OF_POINTS and len(rest) >= 4 and len(rest) % 2 == 0:
        return box_around(_points(shape)), _OF_POINTS[kind]
    if kind in (_POINT, 9):
        return None
    return f"'xy' is {shape!r:.80}, which is no shape of VIA's"
