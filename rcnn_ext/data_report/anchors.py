"""Anchors that fit the boxes of a data set, by k-means with the IoU as similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rcnn_ext.config.model import ASPECT_RATIOS

_MAX_BOXES = 50_000
_ROUNDS = 30
# A ratio farther from its neighbor than this factor has objects of its own.
_MIN_RATIO_STEP = 1.15


@dataclass(frozen=True)
class FittedAnchors:
    """Sizes and ratios, and how well they fit.

    Attributes:
        sizes: Ascending, whole pixels of the resized image.
        ratios: Ascending, height to width.
        iou: Mean IoU of the boxes with the nearest of these anchors, centers put together.
        default_iou: The same for the default anchors.
    """

    sizes: tuple[int, ...]
    ratios: tuple[float, ...]
    iou: float
    default_iou: float


def fit_anchors(sides: np.ndarray, default_sizes: Sequence[float]) -> FittedAnchors:
    """Fit as many sizes as the default has, and three ratios, to boxes.

    Each size stays within half and twice its default: a level of a pyramid has a stride that goes
    with its sizes, and anchors much smaller than the default would miss objects between positions.

    Args:
        sides: float64 [N, 2], width and height of the boxes as the network sees them, in pixels;
            one or more.
        default_sizes: Ascending.
    """
    if len(sides) > _MAX_BOXES:
        sides = sides[np.linspace(0, len(sides) - 1, _MAX_BOXES).astype(int)]
    sides = np.asarray(sides, dtype=np.float64)
    default = np.asarray(default_sizes, dtype=np.float64)
    sizes, ratios = default.copy(), np.array(ASPECT_RATIOS, dtype=np.float64)
    size_of, ratio_of = np.sqrt(sides.prod(axis=1)), sides[:, 1] / sides[:, 0]
    best, best_iou = (sizes, ratios), -1.0
    for _ in range(_ROUNDS):
        iou = shape_iou(sides, sizes, ratios)  # [N, S * R]
        mean = float(iou.max(axis=1).mean())
        if mean <= best_iou + 1e-6:
            break
        best, best_iou = (sizes, ratios), mean
        nearest = iou.argmax(axis=1)
        size_index, ratio_index = nearest // len(ratios), nearest % len(ratios)
        sizes = _medians(size_of, size_index, sizes).clip(default / 2, default * 2)
        ratios = _medians(ratio_of, ratio_index, ratios)
    whole = _ascending(best[0])
    shapes = _distinct(best[1])
    return FittedAnchors(
        sizes=whole,
        ratios=shapes,
        iou=float(shape_iou(sides, np.array(whole, float), np.array(shapes)).max(1).mean()),
        default_iou=float(shape_iou(sides, default, np.array(ASPECT_RATIOS)).max(1).mean()),
    )


def shape_iou(sides: np.ndarray, sizes: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes with anchors of the same center, [N, S * R].

    Args:
        sides: [N, 2], width and height.
        sizes: [S], sides of square anchors of the same areas.
        ratios: [R], height to width.
    """
    width = (sizes[:, None] / np.sqrt(ratios)).reshape(-1)
    height = (sizes[:, None] * np.sqrt(ratios)).reshape(-1)
    common = np.minimum(sides[:, :1], width) * np.minimum(sides[:, 1:], height)
    result: np.ndarray = common / (sides.prod(axis=1, keepdims=True) + width * height - common)
    return result


def _medians(values: np.ndarray, groups: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the median of each group; what has no values stays."""
    members = (values[groups == index] for index in range(len(before)))
    return np.array(
        [np.median(own) if len(own) else old for own, old in zip(members, before, strict=True)]
    )


def _ascending(sizes: np.ndarray) -> tuple[int, ...]:
    whole: list[int] = []
    for size in np.sort(sizes):
        whole.append(max(round(float(size)), whole[-1] + 1 if whole else 1))
    return tuple(whole)


def _distinct(ratios: np.ndarray) -> tuple[float, ...]:
    """Return ratios of two digits that differ; those that came together are spread again."""
    ordered = np.sort(ratios)
    if (ordered[1:] / ordered[:-1] < _MIN_RATIO_STEP).any():
        ordered = np.median(ratios) * np.array([0.75, 1.0, 1 / 0.75])
    return tuple(float(f"{value:.2g}") for value in ordered)
