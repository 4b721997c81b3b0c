"""Coordinates as text that reads back as the same float32 values, with as few digits as that takes.

Files hold sides, centers or shifted coordinates; a rounded text counts only if the formula of the
reader gives the coordinate of the record again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Decimals that are tried; beyond them stand all digits of a float64.
_DECIMALS = (6, 8, 10, 12)


def text_of(value: float) -> str:
    """Return the shortest text of a number, without a point where it is whole."""
    return str(value).removesuffix(".0")


def decimal(value: np.float32) -> float:
    """Return the number with the fewest digits that a float32 stands for: 0.1, not 0.100000001."""
    return float(str(value))


def corner_texts(box: np.ndarray) -> list[str]:
    """Return the texts of (x1, y1, x2, y2).

    Args:
        box: float32 [4], image pixels.
    """
    return [text_of(value) for value in box]


def corner_and_side_texts(box: np.ndarray) -> list[str]:
    """Return the texts of (x1, y1, width, height), of which x1 + width gives x2 again.

    Args:
        box: float32 [4] (x1, y1, x2, y2), image pixels.
    """
    sides = []
    for low, high in ((box[0], box[2]), (box[1], box[3])):
        start = decimal(low)
        side = decimal(high) - start
        rounded = (round(side, places) for places in _DECIMALS)
        fitting = (value for value in rounded if np.float32(start + value) == high)
        sides.append(next(fitting, float(high) - start))
    return [text_of(box[0]), text_of(box[1]), *map(text_of, sides)]


def one_based_texts(box: np.ndarray) -> list[str]:
    """Return the texts of VOC's xmin, ymin, xmax and ymax, of which xmin - 1 gives x1 again.

    Args:
        box: float32 [4] (x1, y1, x2, y2), image pixels.
    """
    low = []
    for value in box[:2]:
        shifted = decimal(value) + 1
        rounded = (round(shifted, places) for places in _DECIMALS)
        low.append(next((v for v in rounded if np.float32(v - 1) == value), shifted))
    return [*map(text_of, low), text_of(box[2]), text_of(box[3])]


def center_and_side_texts(box: np.ndarray, size: Sequence[int]) -> list[str]:
    """Return the texts of YOLO's center and sides, in parts of the image's sides.

    Args:
        box: float32 [4] (x1, y1, x2, y2), image pixels.
        size: Width and height of the image in pixels.
    """
    centers, sides = [], []
    for low, high, length in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        start, end = decimal(low), decimal(high)
        center, side = (start + end) / 2 / length, (end - start) / length
        texts = None
        for places in _DECIMALS:
            tried = f"{center:.{places}f}", f"{side:.{places}f}"
            if _reads_back(float(tried[0]), float(tried[1]), low, high, length):
                texts = tried
                break
        center_text, side_text = texts or (repr(center), repr(side))
        centers.append(center_text)
        sides.append(side_text)
    return [*centers, *sides]


def _reads_back(center: float, side: float, low: np.float32, high: np.float32, length: int) -> bool:
    start, end = (center - side / 2) * length, (center + side / 2) * length
    # A reader cuts a box to its image.
    return np.float32(max(start, 0.0)) == low and np.float32(min(end, float(length))) == high
