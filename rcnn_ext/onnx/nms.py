"""Non-maximum suppression in ONNX.

Boxes are sorted by TopK, which is exact for every type and takes the lower index first among equal
scores, and then suppressed by their ranks: so the order among equals does not depend on the
runtime's NonMaxSuppression, and scores may be infinite or negative.
"""

from __future__ import annotations

from rcnn_ext.onnx.graph import (
    DOUBLE,
    FLOAT,
    INT64,
    Value,
    above_zero_where,
    as_float,
    as_scalar,
    column,
    columns,
    count_up,
    index,
    ir,
    number,
    numbers,
    op,
    reshape,
    shape_of,
    size,
    suppress,
    unsqueeze,
)

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def nms(boxes: Value, scores: Value, iou_threshold: float) -> Value:
    """Translate ``nms``."""
    return _keep(boxes, scores, None, iou_threshold)


def batched_nms(boxes: Value, scores: Value, idxs: Value, iou_threshold: float) -> Value:
    """Translate ``batched_nms``: each class is a class of NonMaxSuppression, without offsets."""
    return _keep(boxes, scores, idxs, iou_threshold)


def nms_padded(
    boxes: Value, scores: Value, iou_threshold: float, max_output: Value
) -> tuple[Value, Value]:
    """Translate ``nms_padded``."""
    return _pad(_keep(boxes, scores, None, iou_threshold), max_output)


def batched_nms_padded(
    boxes: Value, scores: Value, idxs: Value, iou_threshold: float, max_output: Value
) -> tuple[Value, Value]:
    """Translate ``batched_nms_padded``."""
    return _pad(_keep(boxes, scores, idxs, iou_threshold), max_output)


def _keep(boxes: Value, scores: Value, idxs: Value | None, iou_threshold: float) -> Value:
    count = size(boxes, 0)
    order = _descending(scores, count)  # [T]
    boxes = op.Gather(as_float(boxes), order, axis=0)
    # x - x is NaN for what is not finite. Such boxes are never kept.
    usable = op.Not(op.IsNaN(op.ReduceSum(op.Sub(boxes, boxes), numbers([1], INT64), keepdims=0)))
    # NonMaxSuppression exchanges the corners of an inverted box, which here overlaps nothing, as a
    # box without area.
    start = columns(boxes, 0, 2)
    boxes = op.Concat(start, op.Max(start, columns(boxes, 2, 4)), axis=1)
    boxes = op.Where(unsqueeze(usable, 1), boxes, number(0.0))
    ranks = op.Cast(op.Sub(count, count_up(count)), to=int(FLOAT))  # [T], the best first
    ranks = unsqueeze(above_zero_where(usable, ranks), 0)  # [1, T]
    if idxs is not None:
        ranks = _class_rows(ranks, op.Gather(idxs, order, axis=0))  # [C, T]
    chosen = suppress(unsqueeze(boxes, 0), unsqueeze(ranks, 0), iou_threshold)
    # Runtimes differ in the order of what is kept.
    kept = op.ScatterElements(
        op.Expand(index(0), count),
        column(chosen, 2),
        op.Expand(index(1), size(chosen, 0)),
        axis=0,
    )
    positions = reshape(op.NonZero(kept), -1)
    return op.Gather(order, positions, axis=0)


def _descending(scores: Value, count: Value) -> Value:
    """Return the order by descending score, equal scores by index: int64 [T]."""
    if scores.dtype in (FLOAT, DOUBLE, *_HALF):
        if scores.dtype in _HALF:
            scores = as_float(scores)
        infinity = number(float("inf"), scores.dtype if scores.dtype == DOUBLE else FLOAT)
        scores = op.Where(op.IsNaN(scores), infinity, scores)
    elif scores.dtype != INT64:
        scores = op.Cast(scores, to=int(INT64))
    _, order = op.TopK(scores, count, axis=0, largest=1, sorted=1)
    return order


def _class_rows(ranks: Value, idxs: Value) -> Value:
    """Return ranks [1, T] in the row of their class: [C, T], -1 elsewhere."""
    _, _, inverse, _ = op.Unique(idxs, sorted=1)  # [T], classes from 0 on
    # The 0 keeps a maximum of no classes from having no value.
    last = op.ReduceMax(op.Concat(inverse, numbers([0], INT64), axis=0), keepdims=1)
    classes = count_up(op.Add(last, numbers([1], INT64)))
    return above_zero_where(op.Equal(unsqueeze(inverse, 0), unsqueeze(classes, 1)), ranks)


def _pad(kept: Value, max_output: Value) -> tuple[Value, Value]:
    limit = (
        numbers([max_output], INT64)
        if isinstance(max_output, int)
        else reshape(op.Cast(max_output, to=int(INT64)), 1)
    )
    count = op.Min(size(kept, 0), limit)
    padding = op.Expand(index(-1), op.Sub(limit, count))
    first = op.Slice(kept, shape_of(0), count, shape_of(0))
    return op.Concat(first, padding, axis=0), as_scalar(count)
