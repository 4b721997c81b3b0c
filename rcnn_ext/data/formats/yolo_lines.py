"""Lines of YOLO's label files: boxes, outlines, oriented boxes, and boxes with keypoints.

All are in parts of the image's sides: ``class cx cy w h``, which keypoints may follow, or
``class x1 y1 x2 y2 x3 y3 ...``, of which the box around the points is taken.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rcnn_ext.data.builder import RawObject
from rcnn_ext.data.formats.outlines import segmentation_of

_EXPECTED = "a line is: class cx cy w h"
_ORIENTED = 8


def keypoint_values(description: dict[str, Any]) -> int | None:
    """Return how many numbers of keypoints follow a box, by ``kpt_shape``; None without it."""
    shape = description.get("kpt_shape")
    if not isinstance(shape, list) or len(shape) != 2:
        return None
    count, dimensions = shape
    return count * dimensions if isinstance(count, int) and isinstance(dimensions, int) else None


def read_line(
    text: str,
    line: int,
    size: tuple[int, int],
    names: list[str] | None,
    num_keypoint_values: int | None = None,
) -> RawObject:
    """Return the object of a line.

    Args:
        text: The line.
        line: Its number.
        size: Width and height of the picture in pixels.
        names: The names of the classes; None: their numbers are the names.
        num_keypoint_values: See :func:`keypoint_values`.

    Raises:
        ValueError: It is none.
    """
    words = text.split()
    try:
        # Some tools write the class as 0.0.
        first, values = float(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        raise ValueError(f"not numbers: {text[:80]!r}; {_EXPECTED}") from None
    has_keypoints = _has_keypoints(values, num_keypoint_values)
    if not has_keypoints and len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(f"{len(words)} values; {_EXPECTED}")
    index = int(first) if math.isfinite(first) and first == int(first) else -1
    if index < 0 or (names is not None and index >= len(names)):
        count = "" if names is None else f"; there are {len(names)}, from 0"
        raise ValueError(f"no class has the number {words[0]}{count}")
    outline, made = "", None
    if has_keypoints:
        values = values[:4]
    finite = [value for value in values if math.isfinite(value)]
    if max(finite, default=0) > 2:
        raise ValueError(
            f"{max(finite):g} is not a part of the image's side; coordinates are from 0 to 1"
        )
    if len(values) == 4:
        cx, cy, w, h = values
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    else:
        points = np.array(values).reshape(-1, 2)  # [P, 2] (x, y)
        corners = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
        outline = "oriented box" if len(values) == _ORIENTED else "polygon"
        made = segmentation_of((points * size).tolist())
    width, height = size
    x1, y1, x2, y2 = corners
    return RawObject(
        (x1 * width, y1 * height, x2 * width, y2 * height),
        str(index) if names is None else names[index],
        line,
        outline=outline,
        segmentation=made,
    )


def _has_keypoints(values: list[float], num_keypoint_values: int | None) -> bool:
    """Return whether keypoints follow a box.

    Where nothing says so, they are told by their visibility, which is 0, 1 or 2 in every third
    number.
    """
    rest = values[4:]
    if not rest:
        return False
    if num_keypoint_values is not None:
        return len(rest) == num_keypoint_values
    return len(rest) % 3 == 0 and all(value in (0.0, 1.0, 2.0) for value in rest[2::3])
