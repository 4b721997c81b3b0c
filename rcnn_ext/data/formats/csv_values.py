"""Boxes in the cells of CSV files."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

Box = tuple[float, float, float, float]

_MAX_LENGTH = 1_000_000
_EMPTY = ("", "nan", "none", "null", "[]", "no_box", "no box", "na", "n/a")
_DIGITS = re.compile(r"[-+0-9.eE]+")

# Keys of a box as a mapping, in each notation.
_KEYS = {
    "xywh": (
        ("x", "y", "width", "height"),
        ("x", "y", "w", "h"),
        ("left", "top", "width", "height"),
    ),
    "xyxy": (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2")),
    "cxcywh": (("cx", "cy", "w", "h"),),
}


def is_empty(text: str) -> bool:
    """Return whether a cell holds nothing, in one of the ways in which tools write that."""
    return text.strip().lower() in _EMPTY


def number(role: str, text: str, *, comma: bool = False) -> float:
    """Return a number.

    Args:
        role: What it is, for messages.
        text: The cell.
        comma: Whether it may have a comma for the decimal point.

    Raises:
        ValueError: It is none.
    """
    try:
        return float(text.replace(",", ".") if comma else text)
    except ValueError:
        raise ValueError(f"{role} is {text[:80]!r}, not a number") from None


def corners(values: Sequence[float], notation: str) -> Box:
    """Return (x1, y1, x2, y2) of four numbers in ``xyxy``, ``xywh`` or ``cxcywh``."""
    a, b, c, d = values
    if notation == "xywh":
        return a, b, a + c, b + d
    if notation == "cxcywh":
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return a, b, c, d


def parse_boxes(text: str, notation: str) -> list[Box]:
    """Return the boxes of a cell as corners.

    Args:
        text: ``[x, y, w, h]`` with any brackets or none, several such in a list or divided by
            semicolons, or mappings such as ``{'x': 1, 'y': 2, 'width': 3, 'height': 4}``.
        notation: What four numbers mean: ``xyxy``, ``xywh`` or ``cxcywh``.

    Raises:
        ValueError: It is none of these.
    """
    if is_empty(text):
        return []
    if len(text) <= _MAX_LENGTH and "{" not in text:
        groups = text.split(";") if ";" in text else re.findall(r"[\[(]([^\[\]()]*)[\])]", text)
        found = [_DIGITS.findall(group) for group in groups or [text] if group.strip()]
        rest = re.sub(r"[-+0-9.eE,;\s\[\]()]", "", text)
        if found and not rest and all(len(words) == 4 for words in found):
            return [
                corners([number("a side", word) for word in words], notation) for words in found
            ]
    elif len(text) <= _MAX_LENGTH:
        boxes = _parse_mappings(text)
        if boxes is not None:
            return boxes
    raise ValueError(f"the box is {text[:80]!r}, not four numbers such as [1, 2, 3, 4]")


def _parse_mappings(text: str) -> list[Box] | None:
    try:
        value: Any = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    items = value if isinstance(value, list) else [value]
    boxes = []
    for item in items:
        found = _of_mapping(item) if isinstance(item, dict) else None
        if found is None:
            return None
        boxes.append(found)
    return boxes


def _of_mapping(item: dict[Any, Any]) -> Box | None:
    for notation, choices in _KEYS.items():
        for keys in choices:
            values = [item.get(key) for key in keys]
            if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
                return corners([float(v) for v in values if v is not None], notation)
    return None
