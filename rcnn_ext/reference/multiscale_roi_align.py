"""RoIAlign over the levels of a feature pyramid in plain PyTorch: level by level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rcnn_ext._memory_format import empty_map, is_channels_last
from rcnn_ext.reference.checks import (
    check,
    check_feature_shape,
    check_pooled_gradient,
    check_pooled_size,
    check_roi_arguments,
    check_sampling_ratio,
    check_spatial_scale,
    name_of,
    valid_batch_indices,
)
from rcnn_ext.reference.roi_align import compute_dtype, roi_align, roi_align_backward

_MAX_LEVELS = 32


def check_pyramid(
    levels: int,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    canonical_scale: float,
    op: str,
) -> None:
    """Check the options as the native kernels do."""
    check(1 <= levels <= _MAX_LEVELS, f"{op}: expected 1 to {_MAX_LEVELS} levels, got {levels}")
    check(
        len(spatial_scales) == levels,
        f"{op}: expected a spatial_scale for each of the {levels} levels, "
        f"got {len(spatial_scales)}",
    )
    for scale in spatial_scales:
        check_spatial_scale(scale, op)
    check(
        spatial_scales[0] >= spatial_scales[-1],
        f"{op}: expected the finest level first, got spatial_scales from {spatial_scales[0]:g} "
        f"to {spatial_scales[-1]:g}",
    )
    check_pooled_size(pooled_height, pooled_width, op)
    check_sampling_ratio(sampling_ratio, op)
    check(
        0 < canonical_scale <= torch.finfo(torch.float32).max,
        f"{op}: expected a positive, finite canonical_scale, got {canonical_scale:g}",
    )


def check_multiscale_roi_align(
    inputs: Sequence[Tensor],
    rois: Tensor,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    canonical_scale: float,
) -> None:
    """Check the arguments as the native kernels do."""
    op = "multiscale_roi_align"
    check_pyramid(
        len(inputs),
        spatial_scales,
        pooled_height,
        pooled_width,
        sampling_ratio,
        canonical_scale,
        op,
    )
    for input in inputs:
        check_roi_arguments(input, rois, op)
        check(
            input.dtype == inputs[0].dtype and input.shape[:2] == inputs[0].shape[:2],
            f"{op}: expected inputs of one dtype, batch size and depth, got "
            f"{name_of(inputs[0].dtype)} {list(inputs[0].shape)} and "
            f"{name_of(input.dtype)} {list(input.shape)}",
        )


def check_multiscale_roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_ratio: int,
    canonical_scale: float,
) -> None:
    """Check the arguments as the native kernels do."""
    op = "multiscale_roi_align_backward"
    check_pyramid(
        len(heights),
        spatial_scales,
        pooled_height,
        pooled_width,
        sampling_ratio,
        canonical_scale,
        op,
    )
    check(
        len(heights) == len(widths),
        f"{op}: expected as many heights as widths, got {len(heights)} and {len(widths)}",
    )
    for height, width in zip(heights, widths, strict=True):
        check_feature_shape((batch_size, channels, height, width), op)
    check_pooled_gradient(grad, rois, (channels, pooled_height, pooled_width), op)


def pyramid_levels(
    rois: Tensor, spatial_scales: Sequence[float], canonical_scale: float, canonical_level: int
) -> Tensor:
    """Return the index of the map that each RoI is pooled from, by torchvision's ``LevelMapper``.

    Args:
        rois: ``[K, 5]`` (batch index, x1, y1, x2, y2), image pixels, float32 or float64.
        spatial_scales: 1 / stride of each map, finest first.
        canonical_scale: Side of a box, image pixels.
        canonical_level: Log2 of the stride of the map that such a box is pooled from.

    Returns:
        ``[K]`` int64; 0 where the box is NaN.
    """
    finest, coarsest = (int(-math.log2(scale)) for scale in (spatial_scales[0], spatial_scales[-1]))
    side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()  # [K]
    # The small number keeps a box of exactly the canonical side from rounding a level down.
    small = torch.tensor(1e-6, dtype=side.dtype, device=side.device)
    level = torch.floor(canonical_level + torch.log2(side / canonical_scale) + small)
    level = level.nan_to_num(nan=finest).clamp(min=finest, max=coarsest).long() - finest
    return level.clamp(max=len(spatial_scales) - 1)


def multiscale_roi_align(
    inputs: Sequence[Tensor],
    rois: Tensor,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> Tensor:
    """Apply :func:`roi_align` to every RoI on the level that fits its size.

    Args:
        inputs: Maps ``[N, C, H, W]``, finest first, of one dtype, batch size and depth.
        rois: ``[K, 5]`` (batch index, x1, y1, x2, y2), image pixels, floating.
        spatial_scales: Feature pixels per image pixel, of each map.
        pooled_height: Bins in y.
        pooled_width: Bins in x.
        sampling_ratio: As in :func:`roi_align`.
        aligned: As in :func:`roi_align`.
        canonical_scale: Side of a box, image pixels.
        canonical_level: Log2 of the stride of the map that such a box is pooled from.

    Returns:
        ``[K, C, PH, PW]`` in the dtype of the inputs, channels-last where the first is.

    Raises:
        RuntimeError: Wrong shape, dtype, device or option.
        IndexError: A batch index outside the batch (on the CPU).
    """
    check_multiscale_roi_align(
        inputs, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio, canonical_scale
    )
    first = inputs[0]
    valid_batch_indices(rois, first.shape[0], "multiscale_roi_align")
    shape = (rois.shape[0], first.shape[1], pooled_height, pooled_width)
    output = empty_map(first, shape, channels_last=is_channels_last(first))
    rois = rois.to(compute_dtype(first))
    levels = pyramid_levels(rois, spatial_scales, canonical_scale, canonical_level)
    for level, (input, scale) in enumerate(zip(inputs, spatial_scales, strict=True)):
        members = (levels == level).nonzero()[:, 0]
        output[members] = roi_align(
            input, rois[members], scale, pooled_height, pooled_width, sampling_ratio, aligned
        )
    return output


def multiscale_roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
    channels_last: bool,
) -> list[Tensor]:
    """Compute the gradients of :func:`multiscale_roi_align` with respect to its inputs.

    Args:
        grad: ``[K, C, PH, PW]``.
        rois: ``[K, 5]``, as in the forward call.
        spatial_scales: As in the forward call.
        pooled_height: As in the forward call.
        pooled_width: As in the forward call.
        batch_size: N of the inputs.
        channels: C of the inputs.
        heights: H of each input.
        widths: W of each input.
        sampling_ratio: As in the forward call.
        aligned: As in the forward call.
        canonical_scale: As in the forward call.
        canonical_level: As in the forward call.
        channels_last: Memory format of the results.

    Returns:
        ``[N, C, H, W]`` of every level, in the dtype of grad.
    """
    check_multiscale_roi_align_backward(
        grad,
        rois,
        spatial_scales,
        pooled_height,
        pooled_width,
        batch_size,
        channels,
        heights,
        widths,
        sampling_ratio,
        canonical_scale,
    )
    valid_batch_indices(rois, batch_size, "multiscale_roi_align_backward")
    rois = rois.to(compute_dtype(grad))
    levels = pyramid_levels(rois, spatial_scales, canonical_scale, canonical_level)
    results = []
    for level, (height, width) in enumerate(zip(heights, widths, strict=True)):
        members = (levels == level).nonzero()[:, 0]
        results.append(
            roi_align_backward(
                grad[members],
                rois[members],
                spatial_scales[level],
                pooled_height,
                pooled_width,
                batch_size,
                channels,
                height,
                width,
                sampling_ratio,
                aligned,
                channels_last,
            )
        )
    return results
