"""Greedy non-maximum suppression in plain PyTorch, in memory proportional to the kept boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from rcnn_ext.reference.box_iou import IOU, box_iou
from rcnn_ext.reference.checks import check, check_boxes, check_floating, check_per_box, name_of

# Boxes decided at a time: the largest temporary is [kept, _CHUNK].
_CHUNK = 1024


def check_nms(boxes: Tensor, scores: Tensor, op: str) -> None:
    """Expect boxes ``[N, 4]`` and scores ``[N]``, floating boxes."""
    check_boxes(boxes, op)
    check_floating(boxes, op, "boxes")
    check_per_box(scores, boxes, op, "scores")
    check(
        not scores.is_complex(),
        f"{op}: expected scores to be real numbers, got {name_of(scores.dtype)}",
    )
    check(
        not scores.is_floating_point() or scores.dtype.itemsize > 1,
        f"{op}: expected scores of a dtype that sorts, got {name_of(scores.dtype)}",
    )


def check_batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, op: str = "batched_nms") -> None:
    """Expect arguments of :func:`check_nms` and idxs ``[N]`` int64."""
    check_nms(boxes, scores, op)
    check_segments(idxs, boxes, op)


def check_max_output(max_output: int, op: str) -> None:
    """Expect a count of at least 0."""
    check(max_output >= 0, f"{op}: expected max_output of at least 0, got {max_output}")


def check_segments(idxs: Tensor, boxes: Tensor, op: str) -> None:
    """Expect idxs ``[N]`` int64."""
    check_per_box(idxs, boxes, op, "idxs")
    check(
        idxs.dtype == torch.int64,
        f"{op}: expected idxs to be int64, got {name_of(idxs.dtype)}",
    )


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices of the boxes that greedy suppression keeps, in order of score.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), floating.
        scores: ``[N]``.
        iou_threshold: A box is dropped if its IoU with a kept one is above this.

    Returns:
        int64 indices; equal scores keep the order of the input.

    Raises:
        RuntimeError: Wrong shape, dtype or device.
    """
    check_nms(boxes, scores, "nms")
    return _suppress(boxes, scores, None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices of the boxes that suppression within each class keeps.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), floating.
        scores: ``[N]``.
        idxs: ``[N]`` int64, the class of each box. Boxes of different classes never suppress one
            another.
        iou_threshold: As in :func:`nms`.

    Returns:
        int64 indices in order of score, whatever the class.

    Raises:
        RuntimeError: Wrong shape, dtype or device.
    """
    check_batched_nms(boxes, scores, idxs)
    return _suppress(boxes, scores, idxs, iou_threshold)


def nms_padded(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """Return the first ``max_output`` indices of :func:`nms`, padded, and their number.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), floating.
        scores: ``[N]``.
        iou_threshold: As in :func:`nms`.
        max_output: Size of the result.

    Returns:
        int64 indices ``[max_output]``, padded with -1, and their number, int64 ``[]``.

    Raises:
        RuntimeError: Wrong shape, dtype, device or ``max_output``.
    """
    check_nms(boxes, scores, "nms_padded")
    check_max_output(max_output, "nms_padded")
    return _pad(_suppress(boxes, scores, None, iou_threshold), max_output)


def batched_nms_padded(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """Return the first ``max_output`` indices of :func:`batched_nms`, padded, and their number.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), floating.
        scores: ``[N]``.
        idxs: ``[N]`` int64, the class of each box.
        iou_threshold: As in :func:`nms`.
        max_output: Size of the result, over all classes.

    Returns:
        int64 indices ``[max_output]``, padded with -1, and their number, int64 ``[]``.

    Raises:
        RuntimeError: Wrong shape, dtype, device or ``max_output``.
    """
    check_batched_nms(boxes, scores, idxs, "batched_nms_padded")
    check_max_output(max_output, "batched_nms_padded")
    return _pad(_suppress(boxes, scores, idxs, iou_threshold), max_output)


def _pad(kept: Tensor, size: int) -> tuple[Tensor, Tensor]:
    kept = kept[:size]
    indices = kept.new_full((size,), -1)
    indices[: len(kept)] = kept
    return indices, kept.new_full((), len(kept))


def _suppress(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    order = torch.sort(scores, stable=True, descending=True).indices  # [N]
    order = order[boxes[order].isfinite().all(dim=1)]
    kept = order[:0]
    for candidates in order.split(_CHUNK):
        before = _overlaps(boxes, idxs, kept, candidates, iou_threshold).any(dim=0)
        candidates = candidates[~before]
        among = _overlaps(boxes, idxs, candidates, candidates, iou_threshold).triu(diagonal=1)
        # A box stays where no kept box before it overlaps it. Each round settles at least the next
        # undecided box for good, and usually very many.
        keep = torch.ones_like(candidates, dtype=torch.bool)
        while True:
            settled = ~(among & keep[:, None]).any(dim=0)
            if torch.equal(settled, keep):
                break
            keep = settled
        kept = torch.cat([kept, candidates[keep]])
    return kept


def _overlaps(
    boxes: Tensor, idxs: Tensor | None, first: Tensor, second: Tensor, iou_threshold: float
) -> Tensor:
    """Return whether IoUs are above the threshold, for indices ``[A]`` and ``[B]``: ``[A, B]``."""
    iou = box_iou(boxes[first][None], boxes[second][None], IOU, 0.0)[0]  # [A, B]
    # In float64, as torchvision compares: a float32 threshold would be another one.
    overlaps = iou.to(torch.float64) > iou_threshold
    if idxs is not None:
        overlaps &= idxs[first][:, None] == idxs[second][None, :]
    return overlaps


def per_image_nms(
    boxes: Tensor,
    scores: Tensor,
    image_ids: Tensor,
    groups: Tensor,
    iou_threshold: float,
    num_images: int,
    max_per_image: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress boxes within each (image, group) and keep the best of each image.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), floating.
        scores: ``[N]``.
        image_ids: int64 ``[N]``, the image of each box, below ``num_images``.
        groups: int64 ``[N]``, the level or class of each box.
        iou_threshold: IoU above which the worse of two boxes is dropped.
        num_images: Number of images in the batch.
        max_per_image: Maximum number of boxes kept per image, over all groups.

    Returns:
        Indices ``[K]`` of the boxes kept, their positions ``[K]`` in a flat result of
        ``num_images * max_per_image`` boxes, and the number of boxes per image ``[num_images]``;
        all int64.
    """
    if boxes.shape[0] == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return empty, empty, empty.new_zeros(num_images)
    kept = batched_nms(boxes, scores, image_ids * (groups.max() + 1) + groups, iou_threshold)
    kept = kept[image_ids[kept].sort(stable=True).indices]  # by image, then by score
    counts = torch.bincount(image_ids[kept], minlength=num_images)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(kept.shape[0], device=kept.device) - starts[image_ids[kept]]
    kept, rank = kept[rank < max_per_image], rank[rank < max_per_image]
    positions = image_ids[kept] * max_per_image + rank
    return kept, positions, counts.clamp(max=max_per_image)


def pad_per_image(values: Tensor, positions: Tensor, num_images: int, max_per_image: int) -> Tensor:
    """Scatter values ``[K, ...]`` to ``[num_images, max_per_image, ...]``, padded with zeros."""
    result = values.new_zeros(num_images * max_per_image, *values.shape[1:])
    result[positions] = values
    return result.view(num_images, max_per_image, *values.shape[1:])
