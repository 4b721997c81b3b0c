"""Soft non-maximum suppression in plain PyTorch: one step takes the best box of every class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rcnn_ext.reference.box_iou import IOU, box_iou
from rcnn_ext.reference.checks import check, check_floating
from rcnn_ext.reference.nms import check_nms, check_segments

LINEAR, GAUSSIAN = 0, 1


def check_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    method: int,
    op: str,
) -> None:
    """Expect boxes ``[N, 4]`` and scores ``[N]``, both floating, and valid thresholds."""
    check_nms(boxes, scores, op)
    check_floating(scores, op, "scores")
    check(boxes.shape[0] < 2**31, f"{op}: expected fewer than 2^31 boxes, got {boxes.shape[0]}")
    check(
        not math.isnan(iou_threshold),
        f"{op}: expected iou_threshold to be a number, got nan",
    )
    check(sigma > 0, f"{op}: expected sigma above 0, got {sigma:g}")
    check(
        score_threshold >= 0,
        f"{op}: expected score_threshold of at least 0, got {score_threshold:g}",
    )
    check(
        method in (LINEAR, GAUSSIAN),
        f"{op}: expected method 0 (linear) or 1 (gaussian), got {method}",
    )


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    method: int,
) -> tuple[Tensor, Tensor]:
    """Return the boxes whose lowered scores reach the threshold, and these scores.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), floating.
        scores: ``[N]``, floating.
        iou_threshold: IoU from which on linear decay lowers scores.
        sigma: Width of the gaussian decay.
        score_threshold: Boxes whose score falls below it are dropped.
        method: 0 for linear, 1 for gaussian.

    Returns:
        int64 indices and scores, by falling score; equal scores by index.

    Raises:
        RuntimeError: Wrong shape, dtype or device, or a number out of range.
    """
    check_soft_nms(boxes, scores, iou_threshold, sigma, score_threshold, method, "soft_nms")
    idxs = torch.zeros(boxes.shape[0], dtype=torch.int64, device=boxes.device)
    return _soft_suppress(boxes, scores, idxs, iou_threshold, sigma, score_threshold, method)


def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    method: int,
) -> tuple[Tensor, Tensor]:
    """Return the boxes whose scores, lowered within each class, reach the threshold.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), floating.
        scores: ``[N]``, floating.
        idxs: ``[N]`` int64, the class of each box.
        iou_threshold: As in :func:`soft_nms`.
        sigma: As in :func:`soft_nms`.
        score_threshold: As in :func:`soft_nms`.
        method: As in :func:`soft_nms`.

    Returns:
        int64 indices and scores, by falling score whatever the class.

    Raises:
        RuntimeError: Wrong shape, dtype or device, or a number out of range.
    """
    op = "batched_soft_nms"
    check_soft_nms(boxes, scores, iou_threshold, sigma, score_threshold, method, op)
    check_segments(idxs, boxes, op)
    return _soft_suppress(boxes, scores, idxs, iou_threshold, sigma, score_threshold, method)


def _soft_suppress(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    method: int,
) -> tuple[Tensor, Tensor]:
    double = torch.float64 in (boxes.dtype, scores.dtype)
    dtype = torch.float64 if double else torch.float32
    boxes, current = boxes.detach().to(dtype), scores.detach().to(dtype, copy=True)
    index = torch.arange(boxes.shape[0], device=boxes.device)
    classes, segment = idxs.unique(return_inverse=True)
    # In float64 as the thresholds are, so that none of them is rounded.
    left = boxes.isfinite().all(dim=1) & (current.double() >= score_threshold)  # [N]
    final = torch.full_like(current, -1)
    while bool(left.any()):
        # The best box of every class, the first of equal ones.
        best = current.new_full(classes.shape, -1)
        best = best.scatter_reduce(0, segment[left], current[left], "amax")
        leads = left & (current == best[segment])
        first = torch.full_like(classes, boxes.shape[0])
        first = first.scatter_reduce(0, segment[leads], index[leads], "amin")
        taken = first[first < boxes.shape[0]]
        final[taken] = current[taken]
        left[taken] = False
        # Every box left beside the one taken of its class.
        rest = left.nonzero()[:, 0]
        pairs = boxes[first[segment[rest]]][:, None], boxes[rest][:, None]
        iou = box_iou(*pairs, IOU, 0.0)[:, 0, 0]
        iou = torch.where(iou > 0, iou, torch.zeros_like(iou))  # NaN is no overlap
        if method == LINEAR:
            weight = torch.where(iou.double() >= iou_threshold, 1 - iou, torch.ones_like(iou))
        else:
            # Where sigma underflows, 0 / sigma has to stay 0.
            weight = torch.exp(-(iou * iou) / max(sigma, torch.finfo(dtype).tiny))
        current[rest] = current[rest] * weight
        left[rest] = current[rest].double() >= score_threshold
    kept = (final >= 0).nonzero()[:, 0]
    kept = kept[torch.sort(final[kept], stable=True, descending=True).indices]
    return kept, final[kept].to(scores.dtype)
