"""The IoU family in ONNX, in the order of operations of :mod:`rcnn_ext.reference.box_iou`."""

from __future__ import annotations

import math

from rcnn_ext.onnx.graph import (
    DOUBLE,
    FLOAT,
    INT64,
    Value,
    column,
    columns,
    ir,
    number,
    op,
    unsqueeze,
)
from rcnn_ext.reference.box_iou import DISTANCE, GENERALIZED, IOU, SMALLER


def box_iou(boxes1: Value, boxes2: Value, measure: int, eps: float) -> Value:
    """Translate ``box_iou``: every measure, float32 and float64."""
    given = boxes1.dtype
    dtype = DOUBLE if given in (DOUBLE, INT64) else FLOAT
    if given != dtype:
        boxes1, boxes2 = (op.Cast(boxes, to=int(dtype)) for boxes in (boxes1, boxes2))
    result = _measure(unsqueeze(boxes1, 2), unsqueeze(boxes2, 1), measure, eps, dtype)
    return result if given == DOUBLE or dtype == FLOAT else op.Cast(result, to=int(FLOAT))


def _measure(a: Value, b: Value, measure: int, eps: float, dtype: ir.DataType) -> Value:
    """Measure boxes [B, N, 1, 4] and [B, 1, M, 4]: [B, N, M]."""
    zero = number(0.0, dtype)
    start_a, end_a, start_b, end_b = (
        columns(boxes, first, first + 2) for boxes in (a, b) for first in (0, 2)
    )
    size_a, size_b = op.Sub(end_a, start_a), op.Sub(end_b, start_b)
    area_a, area_b = _product(size_a), _product(size_b)
    overlap = op.Max(op.Sub(op.Min(end_a, end_b), op.Max(start_a, start_b)), zero)
    intersection = _product(overlap)
    if measure == SMALLER:
        return op.Div(intersection, op.Min(area_a, area_b))
    union = op.Sub(op.Add(area_a, area_b), intersection)
    iou = op.Div(intersection, union)
    if measure == IOU:
        return iou
    hull = op.Max(op.Sub(op.Max(end_a, end_b), op.Min(start_a, start_b)), zero)
    if measure == GENERALIZED:
        hull_area = _product(hull)
        return op.Sub(iou, op.Div(op.Sub(hull_area, union), hull_area))
    half = number(0.5, dtype)
    offset = op.Sub(op.Mul(op.Add(start_a, end_a), half), op.Mul(op.Add(start_b, end_b), half))
    diagonal = op.Add(_squares(hull), number(eps, dtype))
    distance_iou = op.Sub(iou, op.Div(_squares(offset), diagonal))
    if measure == DISTANCE:
        return distance_iou
    angle = op.Sub(_angle(size_a, dtype), _angle(size_b, dtype))
    v = op.Mul(op.Mul(angle, angle), number(4 / math.pi**2, dtype))
    rest = op.Add(op.Add(op.Sub(number(1.0, dtype), iou), v), number(eps, dtype))
    return op.Sub(distance_iou, op.Mul(op.Div(v, rest), v))


def _product(pairs: Value) -> Value:
    return op.Mul(column(pairs, 0), column(pairs, 1))


def _squares(pairs: Value) -> Value:
    squares = op.Mul(pairs, pairs)
    return op.Add(column(squares, 0), column(squares, 1))


def _angle(sizes: Value, dtype: ir.DataType) -> Value:
    """Return the angle of the diagonal; runtimes have the arc tangent of float32 only."""
    ratio = op.Cast(op.Div(column(sizes, 0), column(sizes, 1)), to=int(FLOAT))
    return op.Cast(op.Atan(ratio), to=int(dtype))
