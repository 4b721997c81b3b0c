"""The size and the objects in an XML file of VOC's kind, with what tools add to that."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rcnn_ext.data.builder import RawObject
from rcnn_ext.data.formats.outlines import (
    Box,
    Point,
    box_around,
    box_around_rectangle,
    number,
    numbers,
    segmentation_of,
)
from rcnn_ext.data.formats.safe_xml import text_of
from rcnn_ext.data.problems import Report

# One of these is in every annotation, even one without objects.
_KNOWN = ("object", "filename", "folder", "path", "size", "source", "segmented")


def problem_of_root(node: Any) -> str | None:
    """Return why an element is no annotation of an image; None if it is one.

    What is none must not pass for an image without objects.
    """
    if node.tag != "annotation":
        return f"it begins with <{node.tag}> instead of <annotation>"
    if not any(node.find(tag) is not None for tag in _KNOWN):
        return f"its <annotation> has none of {', '.join(f'<{tag}>' for tag in _KNOWN)}"
    if node.find("object") is None and next(node.iter("object"), None) is not None:
        return "its <object> elements are not directly in <annotation>"
    return None


def size_of(node: Any, xml: Path, report: Report) -> tuple[tuple[int, int] | None, int | None]:
    """Return the size that an annotation gives its image, if any, and the line of that."""
    size = node.find("size")
    if size is None:
        return None, None
    width, height = (number(text_of(size, side)) for side in ("width", "height"))
    if width is None or height is None or min(width, height) < 0:
        report.error(xml, size.sourceline, "the size is not two numbers, width and height")
        return None, size.sourceline
    # Some tools write 0 where they do not know it.
    known = width > 0 and height > 0
    return ((int(width), int(height)) if known else None), size.sourceline


def object_of(item: Any, xml: Path, one_based: bool, report: Report) -> RawObject | None:
    """Return an object of an annotation, or report what is wrong with it.

    Args:
        item: The element.
        xml: Its file.
        one_based: Whether coordinates of a ``bndbox`` count from 1 and name the last pixel.
        report: Where problems go.
    """
    name = text_of(item, "name")
    if not name:
        report.error(xml, item.sourceline, "an object without a name")
        return None
    box, found = item.find("bndbox"), None
    if box is None:
        outline, found = _outline(item)
        if found is None:
            problem = f"has a wrong {outline}" if outline else "has no bndbox"
            report.error(xml, item.sourceline, f"the {name} {problem}")
            return None
        line = item.sourceline
    else:
        outline, line = "", box.sourceline
        found = _corners(box, name, xml, one_based, report)
        if found is None:
            return None
    return RawObject(
        found,
        name,
        line,
        name,
        difficult=text_of(item, "difficult") == "1",
        truncated=text_of(item, "truncated") == "1",
        outline=outline,
        segmentation=segmentation_of(_points(item.find("polygon")) or [])
        if outline == "polygon"
        else None,
    )


def is_deleted(item: Any) -> bool:
    """Return whether an object was deleted in LabelMe's web version, which keeps such ones."""
    return text_of(item, "deleted") == "1"


def _corners(box: Any, name: str, xml: Path, one_based: bool, report: Report) -> Box | None:
    values = {tag: number(text_of(box, tag)) for tag in ("xmin", "ymin", "xmax", "ymax")}
    wrong = [tag for tag, value in values.items() if value is None]
    if wrong:
        text = text_of(box, wrong[0])
        shown = "missing" if text is None else f"{text!r:.60}, not a number"
        report.error(xml, box.sourceline, f"{wrong[0]} of the {name} is {shown}")
        return None
    x1, y1, x2, y2 = (float(value or 0) for value in values.values())
    shift = 1.0 if one_based else 0.0
    return x1 - shift, y1 - shift, x2, y2


def _outline(item: Any) -> tuple[str, Box | None]:
    """Return the shape that an object has instead of a box, and the box around that."""
    turned = item.find("robndbox")
    if turned is not None:  # roLabelImg: center, sides and an angle in radians.
        values = numbers(text_of(turned, tag) for tag in ("cx", "cy", "w", "h", "angle"))
        if values is None:
            return "robndbox", None
        x, y, width, height, angle = values
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return "robndbox", box_around_rectangle(box, math.degrees(angle))
    polygon = item.find("polygon")
    if polygon is not None:
        points = _points(polygon)
        return "polygon", box_around(points) if points else None
    return "", None


def _points(polygon: Any) -> list[Point] | None:
    """Return the points of a polygon: ``<pt><x/><y/></pt>``, or ``<x1/><y1/><x2/><y2/>``."""
    own = polygon.findall("pt") or polygon.findall("point")
    pairs = [(text_of(point, "x"), text_of(point, "y")) for point in own]
    index = 1
    while not own and polygon.find(f"x{index}") is not None:
        pairs.append((text_of(polygon, f"x{index}"), text_of(polygon, f"y{index}")))
        index += 1
    points: list[Point] = []
    for pair in pairs:
        values = numbers(pair)
        if values is None:
            return None
        points.append((values[0], values[1]))
    return points
