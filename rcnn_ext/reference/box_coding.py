"""Decoding and clipping of boxes. The counterpart of ``csrc/core/box_coding.h``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Lets a box of 16 pixels grow to 1000, as in torchvision and Detectron.
MAX_LOG_RATIO = math.log(1000.0 / 16)


def decode(
    deltas: Tensor,
    anchors: Tensor,
    weights: Sequence[float],
    means: Sequence[float],
    max_log_ratio: float,
) -> Tensor:
    """Apply deltas to anchors, in the order of operations of ``csrc/core/box_coding.h``.

    Args:
        deltas: ``[..., 4]`` (dx, dy, dw, dh).
        anchors: ``[..., 4]`` (x1, y1, x2, y2).
        weights: Factors that the deltas were multiplied by.
        means: Values that were subtracted from the deltas before that.
        max_log_ratio: Upper bound that dw and dh are clamped to.

    Returns:
        Boxes ``[..., 4]`` (x1, y1, x2, y2) in the dtype and unit of the anchors.
    """
    # Tensors, since a GPU divides by a Python number as a product with its rounded inverse.
    weight = torch.tensor(weights, dtype=deltas.dtype, device=deltas.device)
    shifts = [mean * weight for mean, weight in zip(means, weights, strict=True)]
    shift = torch.tensor(shifts, dtype=deltas.dtype, device=deltas.device)
    changes = (deltas + shift) / weight
    sides = anchors[..., 2:] - anchors[..., :2]
    centers = changes[..., :2] * sides + (anchors[..., :2] + 0.5 * sides)
    # The bound as a number of the dtype: clamp() refuses one that it cannot hold. NaN is no bound.
    largest = torch.finfo(deltas.dtype).max
    bound = max(-largest, min(largest, max_log_ratio))
    ratios = changes[..., 2:].clamp(max=bound).contiguous().exp()
    halves = 0.5 * (ratios * sides)
    return torch.cat([centers - halves, centers + halves], dim=-1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes ``[..., 4]`` to images of size ``[..., 2]`` (height, width); NaN stays NaN."""
    return torch.minimum(boxes.clamp(min=0), sizes[..., [1, 0, 1, 0]])


def has_min_size(boxes: Tensor, min_size: float) -> Tensor:
    """Return for boxes ``[..., 4]`` whether both sides reach ``min_size``: bool ``[...]``."""
    return (boxes[..., 2:] - boxes[..., :2] >= min_size).all(dim=-1)
