"""Inputs of the operators, and how near results have to be."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
HALF = [torch.float16, torch.bfloat16]
WIDE = [torch.float32, torch.float64]


def make_boxes(count: int, size: int = 64, seed: int = 0) -> Tensor:
    """Boxes ``[count, 4]`` inside a square of ``size`` pixels, sides at least one pixel.

    Coordinates are multiples of a quarter: below 64 every floating dtype holds them exactly.
    """
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 4 * size, (2, count, 2), generator=generator) / 4
    low = torch.minimum(corners[0], corners[1]).clamp(max=size - 1.25)
    high = torch.maximum(corners[0], corners[1])
    return torch.cat([low, torch.maximum(high, low + 1)], dim=1)


def make_rois(count: int, images: int, size: int = 64, seed: int = 0) -> Tensor:
    """RoIs ``[count, 5]`` (batch index, box of :func:`make_boxes`)."""
    generator = torch.Generator().manual_seed(seed + 1000)
    index = torch.randint(0, images, (count, 1), generator=generator)
    return torch.cat([index.to(torch.float32), make_boxes(count, size, seed)], dim=1)


def make_scores(count: int, seed: int = 0) -> Tensor:
    """Distinct scores ``[count]`` in (0, 1), in no order; distinct in float32."""
    generator = torch.Generator().manual_seed(seed + 2000)
    return (torch.randperm(count, generator=generator) + 1) / (count + 1)


def channels_last(tensor: Tensor) -> Tensor:
    """A copy that is channels-last and not contiguous."""
    result = tensor.clone(memory_format=torch.channels_last)
    assert not result.is_contiguous(), "a map with one channel or one pixel is both"
    return result


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """Equal but for rounding: that of float32 arithmetic, or of one store in a half type.

    Args:
        actual: of any dtype and device; NaN where ``expected`` is.
        expected: the same in float64 or so.
        dtype: that of the computation, where it is not ``actual``'s.
    """
    epsilon = torch.finfo(dtype or actual.dtype).eps
    torch.testing.assert_close(
        actual.detach().cpu().double(),
        expected.detach().cpu().double(),
        rtol=max(epsilon, 1e-12) if epsilon > 1e-5 else 40 * epsilon,
        atol=max(40 * min(epsilon, 1.2e-7), 1e-12),
        equal_nan=True,
    )
