"""Proposals and detections of a batch in ONNX: nothing waits for a size that is data."""

from __future__ import annotations

from collections.abc import Sequence

from rcnn_ext.onnx.graph import (
    INT64,
    Value,
    above_zero_where,
    as_float,
    as_type,
    column,
    columns,
    count_up,
    index,
    number,
    numbers,
    op,
    reshape,
    shape_of,
    size,
    suppress,
    unsqueeze,
    wide_type,
)


def generate_proposals(
    logits: Sequence[Value],
    deltas: Sequence[Value],
    anchors: Value,
    image_sizes: Value,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    iou_threshold: float,
    score_threshold: float,
    min_size: float,
    weights: Sequence[float],
    means: Sequence[float],
    max_log_ratio: float,
) -> tuple[Value, Value, Value]:
    """Translate ``generate_proposals``: levels are the classes of one NonMaxSuppression."""
    dtype = wide_type(logits[0])
    own_anchors = len(anchors.shape) == 3  # for each image
    anchors = as_float(anchors)
    boxes, scores, levels = [], [], []
    start = shape_of(0)
    for level, (in_level, delta) in enumerate(zip(logits, deltas, strict=True)):
        images, anchors_per_cell = size(in_level, 0), size(in_level, 1)
        cells = op.Shape(in_level, start=2)  # [2]
        # [N, K, H, W] -> [N, H W K]
        flat = op.Flatten(op.Transpose(as_float(in_level), perm=[0, 2, 3, 1]), axis=1)
        count = size(flat, 1)
        # [N, 4 K, H, W] -> [N, H W K, 4]
        split = reshape(as_float(delta), images, anchors_per_cell, 4, cells)
        changes = reshape(op.Transpose(split, perm=[0, 3, 4, 1, 2]), images, count, 4)
        keys = op.Where(op.IsNaN(flat), number(float("inf")), flat)
        top_count = op.Min(count, shape_of(pre_nms_top_n))
        _, top = op.TopK(keys, top_count, axis=1, largest=1, sorted=1)  # [N, t]
        end = op.Add(start, count)
        here = op.Slice(anchors, start, end, shape_of(1 if own_anchors else 0))
        here = _pick(here, top) if own_anchors else op.Gather(here, top, axis=0)  # [N, t, 4]
        start = end
        boxes.append(_decode(_pick(changes, top), here, weights, means, max_log_ratio))
        scores.append(op.GatherElements(flat, top, axis=1))
        levels.append(op.Expand(index(level), top_count))
    clipped = _clip(_join(boxes, axis=1), unsqueeze(as_float(image_sizes), 1))  # [N, T, 4]
    probabilities = op.Sigmoid(_join(scores, axis=1))  # [N, T]
    valid = op.And(
        _has_min_size(clipped, min_size),
        op.GreaterOrEqual(probabilities, number(score_threshold)),
    )
    probabilities = above_zero_where(valid, probabilities)
    clipped = op.Where(unsqueeze(valid, -1), clipped, number(0.0))
    level_ids = unsqueeze(numbers(range(len(logits)), INT64), 1)
    in_level = op.Equal(unsqueeze(_join(levels, axis=0), 0), level_ids)  # [L, T]
    by_level = above_zero_where(unsqueeze(in_level, 0), unsqueeze(probabilities, 1))  # [N, L, T]
    chosen = suppress(clipped, by_level, iou_threshold)
    positions = op.Gather(chosen, numbers([0, 2], INT64), axis=1)  # [M, 2] image, box
    kept = _scatter(op.Shape(probabilities), positions, op.GatherND(probabilities, positions))
    top_count = op.Min(size(kept, 1), shape_of(post_nms_top_n))
    top_scores, top = op.TopK(kept, top_count, axis=1, largest=1, sorted=1)  # [N, P]
    real = op.Greater(top_scores, number(-0.5))
    return (
        as_type(op.Where(unsqueeze(real, -1), _pick(clipped, top), number(0.0)), dtype),
        as_type(op.Where(real, top_scores, number(0.0)), dtype),
        _count(real),
    )


def postprocess_detections(
    logits: Value,
    deltas: Value,
    rois: Value,
    image_ids: Value,
    image_sizes: Value,
    score_threshold: float,
    iou_threshold: float,
    detections_per_image: int,
    min_size: float,
    weights: Sequence[float],
    means: Sequence[float],
    max_log_ratio: float,
) -> tuple[Value, Value, Value, Value, Value]:
    """Translate ``postprocess_detections``.

    Every image with every class is a member of the batch of one NonMaxSuppression, since boxes
    differ by class.
    """
    dtype = wide_type(logits)
    count, all_classes, images = size(logits, 0), size(logits, 1), size(image_sizes, 0)
    classes = op.Sub(all_classes, shape_of(1))  # without the background
    foreground = (shape_of(1), all_classes, shape_of(1))
    probabilities = op.Slice(op.Softmax(as_float(logits), axis=1), *foreground)  # [R, C]
    box_classes = op.Div(size(deltas, 1), shape_of(4))  # 1 for class-agnostic boxes
    changes = reshape(as_float(deltas), count, box_classes, 4)
    boxes = _decode(changes, unsqueeze(as_float(rois), 1), weights, means, max_log_ratio)
    boxes = op.Slice(op.Expand(boxes, shape_of(count, all_classes, 4)), *foreground)  # [R, C, 4]
    last = op.Sub(images, shape_of(1))
    some_image = op.Max(op.Min(image_ids, last), shape_of(0))
    sizes = op.Gather(as_float(image_sizes), some_image, axis=0)  # [R, 2]
    boxes = _clip(boxes, unsqueeze(sizes, 1))
    valid = op.And(
        _has_min_size(boxes, min_size), op.Greater(probabilities, number(score_threshold))
    )
    probabilities = above_zero_where(valid, probabilities)
    boxes = op.Where(unsqueeze(valid, -1), boxes, number(0.0))
    of_image = op.Equal(unsqueeze(image_ids, 0), unsqueeze(count_up(images), 1))  # [N, R]
    by_class = above_zero_where(
        unsqueeze(of_image, 1), unsqueeze(op.Transpose(probabilities, perm=[1, 0]), 0)
    )  # [N, C, R]
    members = op.Mul(images, classes)
    class_boxes = unsqueeze(op.Transpose(boxes, perm=[1, 0, 2]), 0)  # [1, C, R, 4]
    class_boxes = op.Expand(class_boxes, shape_of(images, classes, count, 4))
    chosen = suppress(
        reshape(class_boxes, members, count, 4),
        reshape(by_class, members, 1, count),
        iou_threshold,
    )
    member, roi = column(chosen, 0), column(chosen, 2)
    # In the order of RoI and class, for ties.
    flat = op.Add(op.Mul(roi, classes), op.Mod(member, classes))
    candidates = op.Mul(count, classes)
    kept = _scatter(
        shape_of(images, candidates),
        op.Concat(unsqueeze(op.Div(member, classes), 1), unsqueeze(flat, 1), axis=1),
        op.Gather(reshape(probabilities, candidates), flat, axis=0),
    )  # [N, R C]
    top_count = op.Min(candidates, shape_of(detections_per_image))
    scores, top = op.TopK(kept, top_count, axis=1, largest=1, sorted=1)  # [N, D]
    real = op.Greater(scores, number(-0.5))
    found = op.Gather(reshape(boxes, candidates, 4), top, axis=0)  # [N, D, 4]
    labels = op.Add(op.Mod(top, classes), index(1))
    return (
        as_type(op.Where(unsqueeze(real, -1), found, number(0.0)), dtype),
        as_type(op.Where(real, scores, number(0.0)), dtype),
        op.Where(real, labels, index(0)),
        op.Where(real, op.Div(top, classes), index(0)),
        _count(real),
    )


def _decode(
    deltas: Value,
    anchors: Value,
    weights: Sequence[float],
    means: Sequence[float],
    max_log_ratio: float,
) -> Value:
    """Apply deltas [..., 4] to anchors [..., 4] as ``rcnn_ext.reference.box_coding.decode``."""
    shifts = [mean * weight for mean, weight in zip(means, weights, strict=True)]
    if any(shifts):
        deltas = op.Add(deltas, numbers(shifts))
    if any(weight != 1 for weight in weights):
        deltas = op.Div(deltas, numbers(weights))
    start = columns(anchors, 0, 2)
    sides = op.Sub(columns(anchors, 2, 4), start)
    half = number(0.5)
    middle = op.Add(start, op.Mul(half, sides))
    centers = op.Add(op.Mul(columns(deltas, 0, 2), sides), middle)
    ratios = op.Exp(op.Min(columns(deltas, 2, 4), number(max_log_ratio)))
    halves = op.Mul(half, op.Mul(ratios, sides))
    return op.Concat(op.Sub(centers, halves), op.Add(centers, halves), axis=-1)


def _clip(boxes: Value, sizes: Value) -> Value:
    """Clip boxes [..., 4] to images of sizes [..., 2] (height, width)."""
    limits = op.Gather(sizes, numbers([1, 0, 1, 0], INT64), axis=-1)
    return op.Min(op.Max(boxes, number(0.0)), limits)


def _has_min_size(boxes: Value, min_size: float) -> Value:
    sides = op.Sub(columns(boxes, 2, 4), columns(boxes, 0, 2))
    reached = op.GreaterOrEqual(sides, number(min_size))
    return op.And(column(reached, 0), column(reached, 1))


def _pick(values: Value, positions: Value) -> Value:
    """Gather values [N, M, 4] at positions [N, k]: [N, k, 4]."""
    shape = shape_of(op.Shape(positions), 4)
    return op.GatherElements(values, op.Expand(unsqueeze(positions, -1), shape), axis=1)


def _join(values: list[Value], axis: int) -> Value:
    return values[0] if len(values) == 1 else op.Concat(*values, axis=axis)


def _scatter(shape: Value, positions: Value, values: Value) -> Value:
    """Return values at positions [M, dimensions] of a tensor of -1."""
    return op.ScatterND(op.Expand(number(-1.0), shape), positions, values)


def _count(real: Value) -> Value:
    return op.ReduceSum(op.Cast(real, to=int(INT64)), shape_of(1), keepdims=0)
