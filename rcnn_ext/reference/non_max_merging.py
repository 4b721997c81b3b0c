"""Greedy non-maximum merging in plain PyTorch: one step takes an unclaimed box of every segment."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rcnn_ext.reference.box_iou import IOU, SMALLER, box_iou
from rcnn_ext.reference.checks import check
from rcnn_ext.reference.nms import check_batched_nms

METRICS = (IOU, SMALLER)


def check_non_max_merging(
    boxes: Tensor, scores: Tensor, idxs: Tensor, threshold: float, metric: int
) -> None:
    """Expect boxes ``[N, 4]``, scores ``[N]``, idxs ``[N]`` int64, a threshold and a metric."""
    op = "non_max_merging"
    check_batched_nms(boxes, scores, idxs, op)
    check(boxes.shape[0] < 2**31, f"{op}: expected fewer than 2^31 boxes, got {boxes.shape[0]}")
    check(not math.isnan(threshold), f"{op}: expected threshold to be a number, got nan")
    check(metric in (0, 1), f"{op}: expected metric 0 (iou) or 1 (ios), got {metric}")


def non_max_merging(
    boxes: Tensor, scores: Tensor, idxs: Tensor, threshold: float, metric: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge each box into the best one of its segment that it overlaps enough.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), floating.
        scores: ``[N]``.
        idxs: ``[N]`` int64, the segment of each box. Boxes of different segments never merge.
        threshold: Two boxes match if their overlap is at least this.
        metric: 0 for IoU, 1 for intersection over the smaller area.

    Returns:
        The merged boxes ``[K, 4]`` and the index ``[K]`` of the best box of each, by falling score,
        equal scores by index; and for each box ``[N]`` the number of its result, -1 for none.

    Raises:
        RuntimeError: Wrong shape, dtype or device, or a number out of range.
    """
    check_non_max_merging(boxes, scores, idxs, threshold, metric)
    order = torch.sort(scores, stable=True, descending=True).indices  # [N]
    compute = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    ranked = boxes.detach().to(compute)[order]
    segments, segment = idxs[order].unique(return_inverse=True)
    owners = _claim(ranked, segment, len(segments), threshold, METRICS[metric])
    merged = _merge(ranked, owners, threshold, METRICS[metric])
    rank = torch.arange(len(order), device=boxes.device)
    kept = owners == rank
    groups = torch.full_like(order, -1)
    numbers = kept.cumsum(0) - 1
    groups[order] = torch.where(owners >= 0, numbers[owners.clamp(min=0)], owners)
    return merged[kept].to(boxes.dtype), order[kept], groups


def _matches(a: Tensor, b: Tensor, threshold: float, metric: int) -> Tensor:
    """Return whether each of the boxes ``[P, 4]`` matches the other one of its row, ``[P]``."""
    overlap = box_iou(a[:, None], b[:, None], metric, 0.0)[:, 0, 0]
    # In float64 as the threshold is, so that it is not rounded.
    return overlap.to(torch.float64) >= threshold


def _claim(
    boxes: Tensor, segment: Tensor, num_segments: int, threshold: float, metric: int
) -> Tensor:
    """Return the rank ``[N]`` of the box that claims each one, its own if none, -1 if dropped."""
    count = len(boxes)
    rank = torch.arange(count, device=boxes.device)
    owners = torch.full_like(rank, -1)
    left = boxes.isfinite().all(dim=1)
    while bool(left.any()):
        rest = left.nonzero()[:, 0]
        first = rest.new_full((num_segments,), count)
        first = first.scatter_reduce(0, segment[rest], rest, "amin")
        taker = first[segment[rest]]
        claimed = _matches(boxes[taker], boxes[rest], threshold, metric) | (taker == rest)
        owners[rest[claimed]] = taker[claimed]
        left[rest[claimed]] = False
    return owners


def _merge(boxes: Tensor, owners: Tensor, threshold: float, metric: int) -> Tensor:
    """Return the boxes ``[N, 4]``, those that own others extended by these in turn."""
    merged = boxes.clone()
    rank = torch.arange(len(boxes), device=boxes.device)
    members = ((owners >= 0) & (owners != rank)).nonzero()[:, 0]
    while len(members) > 0:
        # The first member left of every group.
        first = torch.full_like(rank, len(boxes))
        first = first.scatter_reduce(0, owners[members], members, "amin")
        is_first = first[owners[members]] == members
        turn, members = members[is_first], members[~is_first]
        turn = turn[_matches(merged[owners[turn]], boxes[turn], threshold, metric)]
        into = owners[turn]
        low = torch.minimum(merged[into, :2], boxes[turn, :2])
        high = torch.maximum(merged[into, 2:], boxes[turn, 2:])
        merged[into] = torch.cat([low, high], dim=1)
    return merged
