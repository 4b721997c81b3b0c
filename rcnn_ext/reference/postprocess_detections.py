"""Detections from the predictions of a detector's second stage, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rcnn_ext.reference.box_coding import clip, decode, has_min_size
from rcnn_ext.reference.checks import (
    check,
    check_box_coding,
    check_floating,
    check_image_sizes,
    check_positive,
    check_same_device,
    name_of,
)
from rcnn_ext.reference.nms import pad_per_image, per_image_nms


def check_postprocess_detections(
    logits: Tensor,
    deltas: Tensor,
    rois: Tensor,
    image_ids: Tensor,
    image_sizes: Tensor,
    detections_per_image: int,
    weights: Sequence[float],
    means: Sequence[float],
) -> None:
    """Expect predictions of one set of RoIs."""
    op = "postprocess_detections"
    check_floating(logits, op, "logits")
    check(
        logits.dim() == 2 and logits.shape[1] > 0,
        f"{op}: expected logits of shape [R, K], got {list(logits.shape)}",
    )
    count, classes = logits.shape
    check(
        deltas.shape == (count, 4 * classes) or deltas.shape == (count, 4),
        f"{op}: expected deltas of shape {[count, 4 * classes]} or {[count, 4]}, "
        f"got {list(deltas.shape)}",
    )
    check(
        deltas.dtype == logits.dtype,
        f"{op}: expected logits and deltas of one dtype, got {name_of(logits.dtype)} "
        f"and {name_of(deltas.dtype)}",
    )
    check_floating(rois, op, "rois")
    check(
        rois.shape == (count, 4),
        f"{op}: expected rois of shape {[count, 4]}, got {list(rois.shape)}",
    )
    check(
        image_ids.shape == (count,),
        f"{op}: expected image_ids of shape {[count]}, got {list(image_ids.shape)}",
    )
    check(
        image_ids.dtype == torch.int64,
        f"{op}: expected image_ids to be int64, got {name_of(image_ids.dtype)}",
    )
    check_same_device(deltas, logits, op, "deltas", "logits")
    check_same_device(rois, logits, op, "rois", "logits")
    check_same_device(image_ids, logits, op, "image_ids", "logits")
    check_image_sizes(image_sizes, logits, op)
    check_positive(detections_per_image, op, "detections_per_image")
    check_box_coding(weights, means, op)


def postprocess_detections(
    logits: Tensor,
    deltas: Tensor,
    rois: Tensor,
    image_ids: Tensor,
    image_sizes: Tensor,
    score_threshold: float,
    iou_threshold: float,
    detections_per_image: int,
    min_size: float,
    weights: Sequence[float],
    means: Sequence[float],
    max_log_ratio: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Select the best detections of each image.

    Args:
        logits: ``[R, K]``, background first.
        deltas: ``[R, 4 K]``, or ``[R, 4]`` for class-agnostic boxes.
        rois: ``[R, 4]``.
        image_ids: ``[R]`` int64; RoIs of no image of the batch are left out.
        image_sizes: ``[N, 2]`` (height, width).
        score_threshold: A probability has to be above it.
        iou_threshold: IoU above which the worse of two boxes of a class is dropped.
        detections_per_image: Maximum number of detections per image.
        min_size: Minimum width and height after clipping, in image pixels.
        weights: Factors that the deltas were multiplied by.
        means: Values that were subtracted from the deltas before that.
        max_log_ratio: dw and dh are clamped to this.

    Returns:
        boxes ``[N, D, 4]``, scores ``[N, D]``, labels ``[N, D]``, RoIs ``[N, D]`` and counts
        ``[N]``, the last three int64; padded with zeros.
    """
    check_postprocess_detections(
        logits,
        deltas,
        rois,
        image_ids,
        image_sizes,
        detections_per_image,
        weights,
        means,
    )
    dtype = torch.promote_types(logits.dtype, torch.float32)
    images, (count, classes) = image_sizes.shape[0], logits.shape
    probabilities = logits.to(dtype).softmax(dim=1)[:, 1:]  # [R, K - 1]
    in_batch = (image_ids >= 0) & (image_ids < images)
    above = (probabilities > score_threshold) & in_batch[:, None]
    roi_ids, labels = above.nonzero(as_tuple=True)  # [M]
    scores, labels = probabilities[roi_ids, labels], labels + 1
    per_class = deltas.to(dtype).reshape(count, deltas.shape[1] // 4, 4)
    box_of = labels if deltas.shape[1] == 4 * classes else torch.zeros_like(labels)
    boxes = decode(
        per_class[roi_ids, box_of], rois.to(dtype)[roi_ids], weights, means, max_log_ratio
    )
    boxes = clip(boxes, image_sizes.to(dtype)[image_ids[roi_ids]])  # [M, 4]
    valid = has_min_size(boxes, min_size)
    boxes, scores, labels, roi_ids = (v[valid] for v in (boxes, scores, labels, roi_ids))
    size = min(detections_per_image, count * (classes - 1))
    kept, positions, counts = per_image_nms(
        boxes, scores, image_ids[roi_ids], labels, iou_threshold, images, size
    )
    padded = [
        pad_per_image(v[kept], positions, images, size) for v in (boxes, scores, labels, roi_ids)
    ]
    return padded[0], padded[1], padded[2], padded[3], counts
