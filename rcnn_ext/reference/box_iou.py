"""Pairwise measures of boxes in plain PyTorch: differentiable, any number of times."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rcnn_ext.reference.checks import check, check_floating, check_same_device, name_of

# The numbers of MeasureId in csrc/core/box_math.h.
IOU, GENERALIZED, DISTANCE, COMPLETE, SMALLER = range(5)


def check_box_iou(boxes1: Tensor, boxes2: Tensor) -> None:
    """Expect boxes ``[B, N, 4]`` and ``[B, M, 4]`` of one dtype on one device."""
    check(
        boxes1.dim() == 3 and boxes1.shape[2] == 4,
        f"box_iou: expected boxes1 of shape [B, N, 4], got {list(boxes1.shape)}",
    )
    check(
        boxes2.dim() == 3 and boxes2.shape[2] == 4,
        f"box_iou: expected boxes2 of shape [B, M, 4], got {list(boxes2.shape)}",
    )
    check(
        boxes1.shape[0] == boxes2.shape[0],
        "box_iou: expected boxes1 and boxes2 of one batch size, "
        f"got {boxes1.shape[0]} and {boxes2.shape[0]}",
    )
    check(
        boxes1.dtype == boxes2.dtype,
        "box_iou: expected boxes1 and boxes2 of one dtype, "
        f"got {name_of(boxes1.dtype)} and {name_of(boxes2.dtype)}",
    )
    check_same_device(boxes1, boxes2, "box_iou", "boxes1", "boxes2")
    if boxes1.dtype != torch.int64:
        check_floating(boxes1, "box_iou", "boxes1")


def box_iou(boxes1: Tensor, boxes2: Tensor, measure: int, eps: float) -> Tensor:
    """Measure every pair of boxes1 ``[B, N, 4]`` and boxes2 ``[B, M, 4]``.

    Args:
        boxes1: ``[B, N, 4]`` (x1, y1, x2, y2), floating or int64.
        boxes2: ``[B, M, 4]``, of the dtype of boxes1.
        measure: IOU, GENERALIZED, DISTANCE, COMPLETE or SMALLER.
        eps: Keeps DISTANCE and COMPLETE from dividing by zero; squared pixels.

    Returns:
        ``[B, N, M]``, float64 for float64 boxes, else float32.

    Raises:
        RuntimeError: Wrong shape, dtype, device or measure.
    """
    check_box_iou(boxes1, boxes2)
    _check_measure(measure)
    wide = boxes1.dtype in (torch.float64, torch.int64)
    compute = torch.float64 if wide else torch.float32
    a = boxes1.to(compute)[:, :, None, :]  # [B, N, 1, 4]
    b = boxes2.to(compute)[:, None, :, :]  # [B, 1, M, 4]
    result = _measure(a, b, measure, eps)  # [B, N, M]
    # Contiguous whatever the layout of the boxes, which PyTorch's arithmetic would hand on.
    result = result.contiguous()
    return result if boxes1.dtype == torch.float64 else result.to(torch.float32)


def _check_measure(measure: int) -> None:
    check(
        IOU <= measure <= SMALLER,
        f"box_iou: expected measure 0, 1, 2, 3 or 4, got {measure}",
    )


def _measure(a: Tensor, b: Tensor, measure: int, eps: float) -> Tensor:
    size_a = a[..., 2:] - a[..., :2]  # [B, N, 1, 2] (width, height)
    size_b = b[..., 2:] - b[..., :2]  # [B, 1, M, 2]
    area_a = size_a[..., 0] * size_a[..., 1]  # [B, N, 1]
    area_b = size_b[..., 0] * size_b[..., 1]  # [B, 1, M]
    # [B, N, M, 2]
    overlap = (torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]  # [B, N, M]
    if measure == SMALLER:
        return intersection / torch.min(area_a, area_b)
    union = area_a + area_b - intersection
    iou = intersection / union
    if measure == IOU:
        return iou
    # The smallest box around both, [B, N, M, 2]
    hull = (torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])).clamp(min=0)
    if measure == GENERALIZED:
        hull_area = hull[..., 0] * hull[..., 1]
        return iou - (hull_area - union) / hull_area
    offset = (a[..., :2] + a[..., 2:]) / 2 - (b[..., :2] + b[..., 2:]) / 2
    distance = offset[..., 0] ** 2 + offset[..., 1] ** 2
    diagonal = hull[..., 0] ** 2 + hull[..., 1] ** 2 + eps
    distance_iou = iou - distance / diagonal
    if measure == DISTANCE:
        return distance_iou
    angle = _angle(size_a) - _angle(size_b)
    v = (4 / math.pi**2) * angle**2
    # A constant, also for forward-mode derivatives, which torch.no_grad() does not stop.
    alpha = (v / (1 - iou + v + eps)).detach()
    return distance_iou - alpha * v


def box_iou_backward(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, measure: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of :func:`box_iou` with respect to both sets of boxes.

    Args:
        grad: ``[B, N, M]``.
        boxes1: ``[B, N, 4]``, floating.
        boxes2: ``[B, M, 4]``, floating.
        measure: As in the forward call.
        eps: As in the forward call.

    Returns:
        ``[B, N, 4]`` and ``[B, M, 4]`` in the dtype of the boxes.
    """
    check_box_iou(boxes1, boxes2)
    expected = [boxes1.shape[0], boxes1.shape[1], boxes2.shape[1]]
    check(
        list(grad.shape) == expected,
        f"box_iou_backward: expected grad of shape {expected}, got {list(grad.shape)}",
    )
    check_floating(boxes1, "box_iou_backward", "boxes1")
    check_same_device(grad, boxes1, "box_iou_backward", "grad", "boxes1")
    _check_measure(measure)
    dtype = boxes1.dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    grad = grad.to(compute)
    a = boxes1.to(compute)[:, :, None, :]  # [B, N, 1, 4]
    b = boxes2.to(compute)[:, None, :, :]  # [B, 1, M, 4]
    low_a, high_a, low_b, high_b = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]
    size_a, size_b = high_a - low_a, high_b - low_b  # [B, N, 1, 2] and [B, 1, M, 2]
    raw_overlap = torch.min(high_a, high_b) - torch.max(low_a, low_b)  # [B, N, M, 2]
    overlap = raw_overlap.clamp(min=0)
    intersection = overlap.prod(dim=-1)  # [B, N, M]
    area_a, area_b = size_a.prod(dim=-1), size_b.prod(dim=-1)  # [B, N, 1] and [B, 1, M]
    union = area_a + area_b - intersection
    raw_hull = torch.max(high_a, high_b) - torch.min(low_a, low_b)
    hull = raw_hull.clamp(min=0)

    # From the measure back to the intersection, the areas and the sides of the hull.
    grad_union = -grad * intersection / union**2
    grad_hull = torch.zeros_like(overlap)
    grad_offset = torch.zeros_like(overlap)
    grad_size_a = torch.zeros_like(overlap)
    grad_size_b = torch.zeros_like(overlap)
    if measure == GENERALIZED:
        hull_area = hull.prod(dim=-1)
        grad_union = grad_union + grad / hull_area
        grad_hull = (-grad * union / hull_area**2)[..., None] * hull.flip(-1)
    elif measure in (DISTANCE, COMPLETE):
        offset = (low_a + high_a) / 2 - (low_b + high_b) / 2
        diagonal = (hull**2).sum(dim=-1) + eps
        grad_hull = (grad * (offset**2).sum(dim=-1) / diagonal**2)[..., None] * 2 * hull
        grad_offset = (-grad / diagonal)[..., None] * 2 * offset
    if measure == COMPLETE:
        angle = _angle(size_a) - _angle(size_b)
        v = (4 / math.pi**2) * angle**2
        alpha = (v / (1 - intersection / union + v + eps)).detach()
        grad_angle = -grad * alpha * (8 / math.pi**2) * angle
        grad_size_a = grad_angle[..., None] * _angle_derivative(size_a)
        grad_size_b = -grad_angle[..., None] * _angle_derivative(size_b)

    if measure == SMALLER:
        smaller, first = torch.min(area_a, area_b), _fraction_of_first(area_a, area_b)
        grad_intersection = grad / smaller
        grad_smaller = -grad * intersection / smaller**2
        grad_area_a, grad_area_b = grad_smaller * first, grad_smaller * (1 - first)
    else:
        grad_intersection = grad / union - grad_union
        grad_area_a = grad_area_b = grad_union

    # From those back to corners; minimum and maximum share the gradient between equal corners.
    grad_overlap = grad_intersection[..., None] * overlap.flip(-1) * (raw_overlap >= 0)
    grad_hull = grad_hull * (raw_hull >= 0)
    grad_size_a = grad_size_a + grad_area_a[..., None] * size_a.flip(-1)
    grad_size_b = grad_size_b + grad_area_b[..., None] * size_b.flip(-1)
    high_a_smaller = _fraction_of_first(high_a, high_b)
    low_a_smaller = _fraction_of_first(low_a, low_b)
    grad_high_a = grad_overlap * high_a_smaller + grad_hull * (1 - high_a_smaller)
    grad_high_b = grad_overlap * (1 - high_a_smaller) + grad_hull * high_a_smaller
    grad_low_a = -grad_overlap * (1 - low_a_smaller) - grad_hull * low_a_smaller
    grad_low_b = -grad_overlap * low_a_smaller - grad_hull * (1 - low_a_smaller)
    grad_a = torch.cat(
        [grad_low_a - grad_size_a + grad_offset / 2, grad_high_a + grad_size_a + grad_offset / 2],
        dim=-1,
    ).sum(dim=2)  # [B, N, 4]
    grad_b = torch.cat(
        [grad_low_b - grad_size_b - grad_offset / 2, grad_high_b + grad_size_b - grad_offset / 2],
        dim=-1,
    ).sum(dim=1)  # [B, M, 4]
    return grad_a.to(dtype).contiguous(), grad_b.to(dtype).contiguous()


def _fraction_of_first(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 where a is the smaller, 0 where b is, 1/2 where they are equal."""
    return torch.where(a < b, 1.0, torch.where(a > b, 0.0, 0.5)).to(a.dtype)


def _angle(size: Tensor) -> Tensor:
    """Return the angle of the diagonal ``[...]`` of sizes ``[..., 2]`` (width, height)."""
    return torch.atan(size[..., 0] / size[..., 1])


def _angle_derivative(size: Tensor) -> Tensor:
    """Return the derivative of atan(width / height) by both; size and result ``[..., 2]``."""
    width, height = size[..., 0], size[..., 1]
    return torch.stack([height, -width], dim=-1) / (width**2 + height**2)[..., None]
