"""Matching of boxes to ground truth in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rcnn_ext.reference.box_iou import IOU, box_iou
from rcnn_ext.reference.checks import check, check_boxes, check_floating, check_same_device, name_of

# Values of `matches` that are not an index, as torchvision's Matcher.BELOW_LOW_THRESHOLD and
# BETWEEN_THRESHOLDS.
BELOW_LOW_THRESHOLD = -1
BETWEEN_THRESHOLDS = -2

_MAX_BOXES = 2**31 - 1


def check_match_boxes(
    gt_boxes: Tensor,
    gt_counts: Sequence[int],
    boxes: Tensor,
    box_counts: Sequence[int],
    high_threshold: float,
    low_threshold: float,
) -> int:
    """Expect boxes ``[G, 4]`` and ``[P, 4]``, and counts of theirs.

    Returns:
        The number of results.
    """
    check_boxes(gt_boxes, "match_boxes", "gt_boxes")
    check_boxes(boxes, "match_boxes", "boxes")
    check(
        gt_boxes.dtype == boxes.dtype,
        "match_boxes: expected gt_boxes and boxes of one dtype, "
        f"got {name_of(gt_boxes.dtype)} and {name_of(boxes.dtype)}",
    )
    check_same_device(gt_boxes, boxes, "match_boxes", "gt_boxes", "boxes")
    if boxes.dtype != torch.int64:
        check_floating(boxes, "match_boxes", "boxes")
    check(
        low_threshold <= high_threshold,
        "match_boxes: expected low_threshold of at most high_threshold, "
        f"got {low_threshold:g} and {high_threshold:g}",
    )
    _check_counts(gt_counts, gt_boxes.shape[0], "gt_counts", "gt_boxes")
    if len(box_counts) == 0:
        return len(gt_counts) * boxes.shape[0]
    check(
        len(box_counts) == len(gt_counts),
        "match_boxes: expected as many box_counts as gt_counts, or none, "
        f"got {len(box_counts)} and {len(gt_counts)}",
    )
    _check_counts(box_counts, boxes.shape[0], "box_counts", "boxes")
    return boxes.shape[0]


def _check_counts(counts: Sequence[int], total: int, name: str, of: str) -> None:
    for count in counts:
        check(
            0 <= count <= _MAX_BOXES,
            f"match_boxes: expected {name} between 0 and 2^31 - 1, got {count}",
        )
    check(
        sum(counts) == total,
        f"match_boxes: expected {name} that sum up to the {total} boxes of {of}, got {sum(counts)}",
    )


def match_boxes(
    gt_boxes: Tensor,
    gt_counts: Sequence[int],
    boxes: Tensor,
    box_counts: Sequence[int],
    high_threshold: float,
    low_threshold: float,
    allow_low_quality_matches: bool,
) -> tuple[Tensor, Tensor]:
    """Match the boxes of each image of a batch to its ground truth.

    Args:
        gt_boxes: ``[G, 4]`` (x1, y1, x2, y2), those of all images one after the other; floating or
            int64.
        gt_counts: How many of them each image has.
        boxes: ``[P, 4]``, of the dtype of gt_boxes.
        box_counts: How many of them each image has; empty where every image has all of them.
        high_threshold: A box with an IoU of at least this is matched.
        low_threshold: A box below it is background.
        allow_low_quality_matches: Also match the boxes with the highest IoU of each
            ground truth.

    Returns:
        matches: int64 ``[R]``, image by image: an index into the ground truth of the image,
            BELOW_LOW_THRESHOLD or BETWEEN_THRESHOLDS.
        best: ``[R]``, the best IoU of each box; 0 without ground truth.

    Raises:
        RuntimeError: Wrong shape, dtype or device, counts that do not add up, thresholds in the
            wrong order.
    """
    check_match_boxes(gt_boxes, gt_counts, boxes, box_counts, high_threshold, low_threshold)
    gts = gt_boxes.split(list(gt_counts))
    sets = boxes.split(list(box_counts)) if box_counts else [boxes] * len(gt_counts)
    thresholds = high_threshold, low_threshold
    results = [
        _match_image(gt, in_image, *thresholds, allow_low_quality_matches)
        for gt, in_image in zip(gts, sets, strict=True)
    ]
    if not results:
        dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
        return boxes.new_empty(0, dtype=torch.int64), boxes.new_empty(0, dtype=dtype)
    return torch.cat([matches for matches, _ in results]), torch.cat([best for _, best in results])


def _match_image(
    gt_boxes: Tensor,
    boxes: Tensor,
    high_threshold: float,
    low_threshold: float,
    allow_low_quality_matches: bool,
) -> tuple[Tensor, Tensor]:
    iou = box_iou(gt_boxes[None], boxes[None], IOU, 0.0)[0]  # [G, P]
    if iou.numel() == 0:
        return (
            boxes.new_full((len(boxes),), BELOW_LOW_THRESHOLD, dtype=torch.int64),
            iou.new_zeros(len(boxes)),
        )
    best, index = iou.max(dim=0)  # [P], [P]
    matches = index.masked_fill(best < low_threshold, BELOW_LOW_THRESHOLD)
    between = (best >= low_threshold) & (best < high_threshold)
    matches = matches.masked_fill(between, BETWEEN_THRESHOLDS)
    if allow_low_quality_matches:
        low_quality = (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)  # [P]
        matches = torch.where(low_quality, index, matches)
    return matches, best
