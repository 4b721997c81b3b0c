"""Matching of boxes to ground truth.

CPU: ``csrc/match_boxes/match_boxes_cpu.cpp``, kernels in
``csrc/match_boxes/match_boxes_cpu-inl.h`` and
``csrc/match_boxes/match_boxes_blocks_cpu-inl.h``.
CUDA: ``csrc/match_boxes/match_boxes_cuda.cu``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rcnn_ext import reference
from rcnn_ext.ops._arguments import check_readable
from rcnn_ext.ops._boxes import corners
from rcnn_ext.ops._library import define_operator
from rcnn_ext.ops._public import public_operator
from rcnn_ext.reference.match_boxes import check_match_boxes


@public_operator
def match_boxes(
    gt_boxes: Tensor,
    boxes: Tensor,
    high_threshold: float,
    low_threshold: float,
    allow_low_quality_matches: bool = False,
) -> tuple[Tensor, Tensor]:
    """Match each box to the ground-truth box that it overlaps most, in one pass.

    The results are those of :func:`torchvision.ops.box_iou` followed by torchvision's
    ``models.detection._utils.Matcher``, without the matrix between: memory is O(G + P). IoUs are
    those of :func:`rcnn_ext.ops.box_iou`; ties go to the first ground truth, and a NaN counts as
    the highest.

    Args:
        gt_boxes: ``[G, 4]`` (x1, y1, x2, y2), any unit; floating or integer. G may be 0, which
            torchvision's Matcher refuses: then all boxes are background.
        boxes: ``[P, 4]`` anchors or proposals.
        high_threshold: A box with an IoU of at least this is matched.
        low_threshold: A box below it is background; one between the two is neither.
        allow_low_quality_matches: Also match, below the thresholds, the boxes with the highest IoU
            of each ground truth, all of them on ties. Such a box is matched to the ground truth
            that it overlaps most itself, which may be another one. For a ground truth that overlaps
            nothing the highest IoU is 0, and every box with an IoU of 0 is matched.

    Returns:
        matches: int64 ``[P]``, the index of a ground truth, -1 below ``low_threshold`` or -2
            between the thresholds.
        best_iou: ``[P]``, float64 for float64 boxes, else float32; 0 without ground truth.

    Raises:
        RuntimeError: Wrong shape, dtype or device, or ``low_threshold > high_threshold``.

    Not differentiable.

    Example:
        >>> gt = torch.tensor([[0.0, 0, 4, 4], [10, 10, 14, 14]])
        >>> anchors = torch.tensor([[0.0, 0, 4, 5], [0, 2, 4, 6], [10, 13, 14, 15]])
        >>> match_boxes(gt, anchors, 0.7, 0.3)[0]
        tensor([ 0, -2, -1])
        >>> match_boxes(gt, anchors, 0.7, 0.3, allow_low_quality_matches=True)[0]
        tensor([ 0, -2,  1])
    """
    gt_boxes, boxes = corners(gt_boxes, "match_boxes"), corners(boxes, "match_boxes")
    gt_boxes, boxes = _promote_and_detach(gt_boxes, boxes)
    return _match_boxes(
        gt_boxes,
        [gt_boxes.shape[0]] if gt_boxes.dim() else [],
        boxes,
        [],
        high_threshold,
        low_threshold,
        allow_low_quality_matches,
    )


@public_operator
def batched_match_boxes(
    gt_boxes: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    high_threshold: float,
    low_threshold: float,
    allow_low_quality_matches: bool = False,
) -> tuple[Tensor, Tensor]:
    """Match the boxes of all images of a batch in one call of :func:`match_boxes`.

    Args:
        gt_boxes: For each image ``[G_i, 4]``.
        boxes: Anchors that all images share, ``[P, 4]``; or as many boxes for each image,
            ``[B, P, 4]``; or a list of ``[P_i, 4]``, one for each image.
        high_threshold: As for :func:`match_boxes`.
        low_threshold: As for :func:`match_boxes`.
        allow_low_quality_matches: As for :func:`match_boxes`.

    Returns:
        matches: int64 ``[B, P]``, or ``[sum of P_i]`` for a list of boxes, the images one after the
            other; indices count within an image.
        best_iou: of the same shape.

    Raises:
        RuntimeError: As :func:`match_boxes`, or ground truth and boxes of different numbers of
            images.

    Example:
        >>> gt = [torch.tensor([[0.0, 0, 4, 4]]), torch.empty(0, 4)]
        >>> batched_match_boxes(gt, torch.tensor([[0.0, 0, 4, 5]]), 0.7, 0.3)[0]
        tensor([[ 0],
                [-1]])
    """
    op = "batched_match_boxes"
    gt_boxes = [corners(of_image, op) for of_image in gt_boxes]
    if isinstance(boxes, Tensor):
        boxes = corners(boxes, op)
    else:
        boxes = [corners(of_image, op) for of_image in boxes]
    images = len(gt_boxes)
    in_image = boxes.shape[0] if isinstance(boxes, Tensor) and boxes.dim() == 3 else len(boxes)
    shared = isinstance(boxes, Tensor) and boxes.dim() != 3
    if not shared and in_image != images:
        raise RuntimeError(
            "match_boxes: expected gt_boxes and boxes of as many images, "
            f"got {images} and {in_image}"
        )
    for image, gt in enumerate(gt_boxes):
        if gt.dim() != 2 or gt.shape[1] != 4:
            raise RuntimeError(
                f"match_boxes: expected gt_boxes[{image}] of shape [G, 4], got {list(gt.shape)}"
            )
        check_readable(gt, "match_boxes", f"gt_boxes[{image}]")
    box_counts: list[int] = []
    if isinstance(boxes, Tensor):
        flat = boxes
        if boxes.dim() == 3:
            # Boxes that Tensor.expand() repeats for all images are read once.
            if images > 1 and boxes.stride(0) == 0:
                flat = boxes[0]
            else:
                check_readable(boxes, "match_boxes", "boxes")
                flat = boxes.flatten(0, 1)
                box_counts = [boxes.shape[1]] * images
        per_image = [flat.shape[0] // max(images, 1) if box_counts else flat.shape[0]]
    else:
        for image, image_boxes in enumerate(boxes):
            if image_boxes.dim() != 2 or image_boxes.shape[1] != 4:
                raise RuntimeError(
                    f"match_boxes: expected boxes[{image}] of shape [P, 4], "
                    f"got {list(image_boxes.shape)}"
                )
            check_readable(image_boxes, "match_boxes", f"boxes[{image}]")
        flat = torch.cat(list(boxes)) if images else torch.empty(0, 4)
        box_counts = [image_boxes.shape[0] for image_boxes in boxes]
        per_image = []
    gts = torch.cat(list(gt_boxes)) if images else flat.new_empty(0, 4)
    gts, flat = _promote_and_detach(gts, flat)
    matches, best = _match_boxes(
        gts,
        [gt.shape[0] for gt in gt_boxes],
        flat,
        box_counts,
        high_threshold,
        low_threshold,
        allow_low_quality_matches,
    )
    if per_image:
        return matches.view(images, *per_image), best.view(images, *per_image)
    return matches, best


def _promote_and_detach(gt_boxes: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Promote and detach both sets of boxes as box_iou does; a match has no gradient."""
    if gt_boxes.dtype != boxes.dtype or not boxes.is_floating_point():
        check_readable(gt_boxes, "match_boxes", "gt_boxes")
        check_readable(boxes, "match_boxes", "boxes")
    if gt_boxes.dtype != boxes.dtype:
        dtype = torch.promote_types(gt_boxes.dtype, boxes.dtype)
        gt_boxes, boxes = gt_boxes.to(dtype), boxes.to(dtype)
    if not boxes.is_floating_point() and not boxes.is_complex():
        return gt_boxes.to(torch.int64), boxes.to(torch.int64)
    if gt_boxes.requires_grad or boxes.requires_grad:
        return gt_boxes.detach(), boxes.detach()
    return gt_boxes, boxes


def _fake(
    gt_boxes: Tensor,
    gt_counts: Sequence[int],
    boxes: Tensor,
    box_counts: Sequence[int],
    high_threshold: float,
    low_threshold: float,
    allow_low_quality_matches: bool,
) -> tuple[Tensor, Tensor]:
    count = check_match_boxes(gt_boxes, gt_counts, boxes, box_counts, high_threshold, low_threshold)
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    return boxes.new_empty(count, dtype=torch.int64), boxes.new_empty(count, dtype=dtype)


def _vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    gt_boxes: Tensor,
    gt_counts: list[int],
    boxes: Tensor,
    box_counts: list[int],
    *options: Any,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Match the images of all members of the batch in one call."""
    size, images = info.batch_size, len(gt_counts)
    gt_dim, boxes_dim = in_dims[0], in_dims[2]
    gts = gt_boxes.expand(size, -1, -1) if gt_dim is None else gt_boxes.movedim(gt_dim, 0)
    if boxes_dim is not None:
        boxes = boxes.movedim(boxes_dim, 0)  # [V, P, 4]
        if not box_counts:
            # Boxes that all images of a member share.
            box_counts = [boxes.shape[1]] * images
            boxes = boxes.repeat(1, images, 1)
        boxes = boxes.flatten(0, 1)
    elif box_counts:
        boxes = boxes.repeat(size, 1)
    matches, best = _match_boxes(
        gts.flatten(0, 1), gt_counts * size, boxes, box_counts * size, *options
    )
    return (matches.view(size, -1), best.view(size, -1)), (0, 0)


_match_boxes = define_operator(
    "match_boxes",
    "(Tensor gt_boxes, SymInt[] gt_counts, Tensor boxes, SymInt[] box_counts, "
    "float high_threshold, float low_threshold, bool allow_low_quality_matches) "
    "-> (Tensor, Tensor)",
    reference=reference.match_boxes,
    fake=_fake,
    vmap=_vmap,
)
