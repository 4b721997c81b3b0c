"""Small parts that the translations of operators are built of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from onnxscript import opset18

# A tensor of the graph; torch.onnx takes the types of arguments from annotations, and Any for
# every type.
Value: TypeAlias = Any

# Its annotations are of the arrays that it takes outside of an export.
op: Any = opset18

INT64 = ir.DataType.INT64
FLOAT = ir.DataType.FLOAT
DOUBLE = ir.DataType.DOUBLE


def number(value: float, dtype: ir.DataType = FLOAT) -> Value:
    """Return a constant of no dimensions."""
    return op.Constant(value=ir.tensor(np.array(value, dtype.numpy())))


def numbers(values: Sequence[float], dtype: ir.DataType = FLOAT) -> Value:
    """Return a constant of one dimension."""
    return op.Constant(value=ir.tensor(np.array(values, dtype.numpy())))


def index(value: int) -> Value:
    """Return an int64 constant of no dimensions."""
    return number(value, INT64)


def shape_of(*values: int | Value) -> Value:
    """Join sizes, each a whole number or a tensor [1], to a shape."""
    parts = [numbers([v], INT64) if isinstance(v, int) else v for v in values]
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)


def size(tensor: Value, axis: int) -> Value:
    """Return the size along an axis from 0 on, int64 [1]."""
    return op.Shape(tensor, start=axis, end=axis + 1)


def as_scalar(tensor: Value) -> Value:
    """Return a tensor [1] as one of no dimensions."""
    return op.Squeeze(tensor, numbers([0], INT64))


def reshape(tensor: Value, *sizes: int | Value) -> Value:
    """Reshape to sizes as :func:`shape_of` takes them; 0 means no elements."""
    return op.Reshape(tensor, shape_of(*sizes), allowzero=1)


def unsqueeze(tensor: Value, *axes: int) -> Value:
    """Insert axes of size 1."""
    return op.Unsqueeze(tensor, numbers(axes, INT64))


def column(tensor: Value, position: int) -> Value:
    """Return what is at a position of the last axis, without that axis."""
    return op.Gather(tensor, index(position), axis=-1)


def columns(tensor: Value, start: int, end: int) -> Value:
    """Return a part of the last axis."""
    return op.Slice(tensor, numbers([start], INT64), numbers([end], INT64), numbers([-1], INT64))


def count_up(end: Value) -> Value:
    """Return 0, 1, ... below a number [1]: int64 [end]."""
    return op.Range(index(0), as_scalar(end), index(1))


def as_float(tensor: Value) -> Value:
    """Return a tensor in float32."""
    return tensor if tensor.dtype == FLOAT else op.Cast(tensor, to=int(FLOAT))


def as_type(tensor: Value, dtype: ir.DataType) -> Value:
    """Return a float32 tensor in another type."""
    return tensor if dtype == FLOAT else op.Cast(tensor, to=int(dtype))


def wide_type(tensor: Value) -> ir.DataType:
    """Return float64 for a tensor of float64, else float32."""
    return DOUBLE if tensor.dtype == DOUBLE else FLOAT


def float_at_most(value: float) -> float:
    """Return the largest float32 that is at most a number.

    A float32 is above the number where it is above this, also if the number is between two.
    """
    rounded = np.float32(value)
    if float(rounded) > value:
        rounded = np.nextafter(rounded, np.float32(-math.inf))
    return float(rounded)


def above_zero_where(condition: Value, values: Value) -> Value:
    """Return values of at least 0 where a condition holds, -1 elsewhere."""
    return op.Where(condition, values, number(-1.0))


def suppress(boxes: Value, scores: Value, iou_threshold: float) -> Value:
    """Apply NonMaxSuppression, which is greedy, to scores of at least 0.

    Args:
        boxes: [N, T, 4] (x1, y1, x2, y2), float32, finite where a score is not negative.
        scores: [N, C, T], float32; negative for boxes that don't take part.
        iou_threshold: Boxes that overlap a better one by more are dropped.

    Returns:
        int64 [M, 3]: image, class and box of what is kept.
    """
    if iou_threshold < 0:
        raise ValueError(
            f"ONNX has no NonMaxSuppression with a threshold below 0, got {iou_threshold:g}"
        )
    # That the last size is 4 gets lost on the way here, and tools for quantization ask for it.
    boxes = op.Reshape(boxes, numbers([0, -1, 4], INT64))
    return op.NonMaxSuppression(
        boxes,
        scores,
        size(boxes, 1),
        numbers([float_at_most(min(iou_threshold, 1.0))]),
        numbers([-0.5]),
    )
