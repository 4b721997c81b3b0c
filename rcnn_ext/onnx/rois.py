"""RoI pooling in ONNX."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import torch

from rcnn_ext.onnx.graph import (
    INT64,
    Value,
    as_float,
    as_type,
    column,
    columns,
    count_up,
    index,
    ir,
    number,
    op,
    reshape,
    size,
)
from rcnn_ext.reference.multiscale_roi_align import pyramid_levels


def roi_align(
    input: Value,
    rois: Value,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Value:
    """Translate ``roi_align``."""
    pooled = _align(
        as_float(input),
        as_float(rois),
        spatial_scale,
        pooled_height,
        pooled_width,
        sampling_ratio,
        aligned,
    )
    return as_type(pooled, input.dtype)


def multiscale_roi_align(
    inputs: Sequence[Value],
    rois: Value,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> Value:
    """Translate ``multiscale_roi_align``: RoIAlign level by level, then the order of the RoIs."""
    dtype = inputs[0].dtype
    rois = as_float(rois)
    widths, heights = (op.Sub(column(rois, corner + 2), column(rois, corner)) for corner in (1, 2))
    side = op.Sqrt(op.Mul(widths, heights))  # [K], NaN for half inverted boxes
    # Comparisons instead of logarithms, which differ between runtimes.
    level = op.Cast(op.Expand(index(0), size(rois, 0)), to=int(INT64))
    for least in _least_sides(spatial_scales, canonical_scale, canonical_level):
        reached = op.GreaterOrEqual(side, number(least))
        level = op.Add(level, op.Cast(reached, to=int(INT64)))
    pooled, order = [], []
    for position, (features, scale) in enumerate(zip(inputs, spatial_scales, strict=True)):
        here = reshape(op.NonZero(op.Equal(level, index(position))), -1)  # [k]
        order.append(here)
        pooled.append(
            _align(
                as_float(features),
                op.Gather(rois, here, axis=0),
                scale,
                pooled_height,
                pooled_width,
                sampling_ratio,
                aligned,
            )
        )
    if len(pooled) == 1:
        return as_type(pooled[0], dtype)
    positions = op.Concat(*order, axis=0)  # [K]
    count = size(rois, 0)
    inverse = op.ScatterElements(op.Expand(index(0), count), positions, count_up(count), axis=0)
    return as_type(op.Gather(op.Concat(*pooled, axis=0), inverse, axis=0), dtype)


def roi_pool(
    input: Value, rois: Value, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Value, Value]:
    """Translate ``roi_pool``, without the indices of the maxima."""
    pooled = op.MaxRoiPool(
        as_float(input),
        as_float(rois),
        pooled_shape=[pooled_height, pooled_width],
        spatial_scale=float(spatial_scale),
    )
    no_indices = op.Constant(value=ir.tensor([], dtype=ir.DataType.INT32))
    return as_type(pooled, input.dtype), no_indices


def _align(
    input: Value,
    rois: Value,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Value:
    return op.RoiAlign(
        input,
        columns(rois, 1, 5),
        op.Cast(column(rois, 0), to=int(INT64)),
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        mode="avg",
        output_height=pooled_height,
        output_width=pooled_width,
        sampling_ratio=max(sampling_ratio, 0),
        spatial_scale=float(spatial_scale),
    )


def _least_sides(
    spatial_scales: Sequence[float], canonical_scale: float, canonical_level: int
) -> list[float]:
    """Return for each level but the finest the smallest float32 side of a box that goes there."""

    def level(bits: int) -> int:
        (side,) = struct.unpack("<f", struct.pack("<I", bits))
        # Through the area, whose square root is the side again where it neither over- nor
        # underflows.
        roi = torch.tensor([[0.0, 0.0, 0.0, side, side]])
        return int(pyramid_levels(roi, spatial_scales, canonical_scale, canonical_level)[0])

    sides = []
    for wanted in range(1, len(spatial_scales)):
        low, high = 0, struct.unpack("<I", struct.pack("<f", math.inf))[0]
        if level(high) < wanted:
            sides.append(math.inf)
            continue
        while low < high:
            middle = (low + high) // 2
            if level(middle) >= wanted:
                high = middle
            else:
                low = middle + 1
        sides.append(struct.unpack("<f", struct.pack("<I", low))[0])
    return sides
