"""Boxes around the shapes that annotation tools draw: polygons, circles, turned rectangles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from rcnn_ext.data.segmentation import Segmentation

Box = tuple[float, float, float, float]
Point = tuple[float, float]
SegmentationMaker = Callable[[], Segmentation | None]


def segmentation_of(
    points: Sequence[Point], holes: Sequence[Sequence[Point]] = ()
) -> SegmentationMaker:
    """Return what makes the outline of an object that is a polygon; see ``RawObject``."""
    return partial(Segmentation.from_polygons, [points], holes)


def number(value: Any) -> float | None:
    """Return a finite number, also one written as text, as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        result = float(value)
    except (ValueError, OverflowError):  # An integer of 400 digits overflows.
        return None
    return result if math.isfinite(result) else None


def numbers(values: Iterable[Any]) -> list[float] | None:
    """Return finite numbers as floats; None where one of the values is none."""
    found = [number(value) for value in values]
    return None if any(value is None for value in found) else [v for v in found if v is not None]


def points_of(value: Any) -> list[Point] | None:
    """Return a list of pairs as points; None where it is anything else, or empty."""
    if not isinstance(value, list) or not value:
        return None
    points: list[Point] = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) < 2:
            return None
        both = numbers(pair[:2])
        if both is None:
            return None
        points.append((both[0], both[1]))
    return points


def box_around(points: Sequence[Point]) -> Box:
    """Return the smallest upright box (x1, y1, x2, y2) around at least one point."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def box_around_rectangle(box: Box, degrees: float, pivot: Point | None = None) -> Box:
    """Return the upright box around a turned rectangle.

    Args:
        box: The rectangle before it is turned, (x1, y1, x2, y2) in pixels.
        degrees: Angle, clockwise as seen on the screen, where y points down.
        pivot: The point that it is turned about; None: its center.
    """
    x1, y1, x2, y2 = box
    center_x, center_y = pivot or ((x1 + x2) / 2, (y1 + y2) / 2)
    sine, cosine = _sine_and_cosine(degrees)
    corners = [(x, y) for x in (x1, x2) for y in (y1, y2)]
    return box_around(
        [
            (
                center_x + (x - center_x) * cosine - (y - center_y) * sine,
                center_y + (x - center_x) * sine + (y - center_y) * cosine,
            )
            for x, y in corners
        ]
    )


def box_around_ellipse(center: Point, radii: Point, degrees: float = 0.0) -> Box:
    """Return the upright box around an ellipse whose first radius is turned by an angle."""
    sine, cosine = _sine_and_cosine(degrees)
    half_width = math.hypot(radii[0] * cosine, radii[1] * sine)
    half_height = math.hypot(radii[0] * sine, radii[1] * cosine)
    x, y = center
    return x - half_width, y - half_height, x + half_width, y + half_height


def _sine_and_cosine(degrees: float) -> tuple[float, float]:
    # Right angles are exact: a box turned by 90 degrees keeps whole pixels.
    quarter = {0.0: (0.0, 1.0), 90.0: (1.0, 0.0), 180.0: (0.0, -1.0), 270.0: (-1.0, 0.0)}
    exact = quarter.get(degrees % 360)
    angle = math.radians(degrees)
    return exact or (math.sin(angle), math.cos(angle))
