"""Regions of the VGG Image Annotator, which its JSON and its CSV files have in the same form."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from rcnn_ext.data.formats.outlines import (
    Box,
    SegmentationMaker,
    box_around,
    box_around_ellipse,
    numbers,
    segmentation_of,
)
from rcnn_ext.errors import UserError

# What the attribute with the class is called, the likeliest first, in lower case.
CLASS_ATTRIBUTES = (
    "class",
    "label",
    "category",
    "class_name",
    "name",
    "type",
    "object",
    "species",
)


def choose_attribute(path: Path, counts: Counter[str]) -> str | None:
    """Return the attribute of regions that is the class; None where regions have none.

    Args:
        path: The file.
        counts: The number of regions with each attribute.

    Raises:
        UserError: Several could be.
    """
    if len(counts) <= 1:
        return next(iter(counts), None)
    usual = [name for name in counts if name.lower() in CLASS_ATTRIBUTES]
    if usual:
        return min(usual, key=lambda name: CLASS_ATTRIBUTES.index(name.lower()))
    raise UserError(
        f"{path}: regions have the attributes {', '.join(counts)}, and none is called "
        f"{', '.join(CLASS_ATTRIBUTES)}: rename the one that is the class"
    )


def region_box(shape: Any) -> tuple[Box, str, SegmentationMaker | None] | str | None:
    """Return the box of a region.

    Args:
        shape: Its ``shape_attributes``.

    Returns:
        The box (x1, y1, x2, y2) in pixels, the shape that it was taken around (empty for a
        rectangle), and what makes its outline if it is a polygon; None for a shape without extent;
        or what is wrong with it, as text.
    """
    if not isinstance(shape, dict) or not isinstance(shape.get("name"), str):
        return "it has no 'shape_attributes' with a 'name'"
    name = shape["name"]
    if name == "point":
        return None
    if name == "rect":
        values = _values(shape, "x", "y", "width", "height")
        if values is None:
            return "the rect has no numbers x, y, width and height"
        x, y, width, height = values
        return (x, y, x + width, y + height), "", None
    if name == "circle":
        values = _values(shape, "cx", "cy", "r")
        if values is None:
            return "the circle has no numbers cx, cy and r"
        x, y, radius = values
        return box_around_ellipse((x, y), (radius, radius)), name, None
    if name == "ellipse":
        values = _values(shape, "cx", "cy", "rx", "ry")
        # Version 2 has the angle in radians; version 1 has none.
        angle = numbers([shape.get("theta", 0.0)])
        if values is None or angle is None:
            return "the ellipse has no numbers cx, cy, rx and ry"
        x, y, rx, ry = values
        return box_around_ellipse((x, y), (rx, ry), math.degrees(angle[0])), name, None
    if name in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or not xs or len(xs) != len(ys):
            return f"the {name} has no lists all_points_x and all_points_y of one length"
        x_values, y_values = numbers(xs), numbers(ys)
        if x_values is None or y_values is None:
            return f"the {name} has points that are not numbers"
        points = list(zip(x_values, y_values, strict=True))
        return box_around(points), name, segmentation_of(points) if name == "polygon" else None
    return f"it has the unknown shape {name!r:.40}"


def class_of(attributes: Any, attribute: str | None) -> str | None:
    """Return the class of a region.

    Args:
        attributes: Its ``region_attributes``.
        attribute: Which of them is the class.

    Returns:
        Its name; None where the region has none, or several at once. Check boxes have the name as
        the key of what is checked.
    """
    value = attributes.get(attribute) if isinstance(attributes, dict) and attribute else None
    if isinstance(value, dict):
        checked = [str(name) for name, is_checked in value.items() if is_checked]
        value = checked[0] if len(checked) == 1 else None
    if isinstance(value, float):
        value = f"{value:g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        # More digits are no number of a class, and Python may not print them.
        value = str(value) if value.bit_length() < 64 else None
    return value.strip() or None if isinstance(value, str) else None


def _values(shape: dict[str, Any], *keys: str) -> list[float] | None:
    return numbers(shape.get(key) for key in keys)
