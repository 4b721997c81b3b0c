"""Pairwise IoU, and intersection over the smaller area.

CPU: ``csrc/box_iou/box_iou_cpu.cpp``, kernels in ``csrc/box_iou/box_iou_cpu-inl.h``.
CUDA: ``csrc/box_iou/box_iou_cuda.cu``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rcnn_ext import reference
from rcnn_ext.ops._arguments import check_readable
from rcnn_ext.ops._boxes import FORMATS, corners
from rcnn_ext.ops._library import define_operator
from rcnn_ext.ops._public import public_operator
from rcnn_ext.ops._torchvision import torchvision_ops
from rcnn_ext.reference.box_iou import (
    COMPLETE,
    DISTANCE,
    GENERALIZED,
    IOU,
    SMALLER,
    check_box_iou,
)
from rcnn_ext.reference.checks import check_same_device


@public_operator
def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Tensor:
    """Compute the intersection over union of every pair of boxes; differentiable.

    Args:
        boxes1: ``[..., N, 4]`` in the format ``fmt``, any unit; floating or integer.
        boxes2: ``[..., M, 4]``; leading dimensions broadcast against those of boxes1.
        fmt: ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``; the rotated formats of
            :func:`torchvision.ops.box_iou` (``"cxcywhr"``, ``"xywhr"``, ``"xyxyxyxy"``) are
            passed on to it.

    Returns:
        ``[..., N, M]``, float64 for float64 boxes and float32 for every other dtype; NaN where the
        union is empty.

    Raises:
        RuntimeError: Wrong shape, dtype or device.
        ValueError: Unknown format.

    Drop-in replacement for :func:`torchvision.ops.box_iou`.

    Example:
        >>> box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]]))
        tensor([[0.3333]])
    """
    if fmt in ("cxcywhr", "xywhr", "xyxyxyxy"):
        return torchvision_ops().box_iou(boxes1, boxes2, fmt=fmt)
    if fmt not in FORMATS:
        raise ValueError(
            "box_iou: expected fmt 'xyxy', 'xywh', 'cxcywh', 'cxcywhr', 'xywhr' or 'xyxyxyxy', "
            f"got {fmt!r}"
        )
    return _pairwise(corners(boxes1, "box_iou", fmt), corners(boxes2, "box_iou", fmt), IOU, 0.0)


@public_operator
def box_ios(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Tensor:
    """Compute the intersection over the smaller area of every pair of boxes; differentiable.

    1 where one box lies within the other, however small it is: the measure by which parts of an
    object are found in the whole, as in the overlap of two image tiles.

    Args:
        boxes1: ``[..., N, 4]`` in the format ``fmt``, any unit; floating or integer.
        boxes2: ``[..., M, 4]``; leading dimensions broadcast against those of boxes1.
        fmt: ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``.

    Returns:
        ``[..., N, M]``, float64 for float64 boxes and float32 for every other dtype; NaN where the
        smaller area is 0.

    Raises:
        RuntimeError: Wrong shape, dtype or device.
        ValueError: Unknown format.

    Example:
        >>> box_ios(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 5, 2]]))
        tensor([[0.5000]])
    """
    if fmt not in FORMATS:
        raise ValueError(f"box_ios: expected fmt 'xyxy', 'xywh' or 'cxcywh', got {fmt!r}")
    return _pairwise(corners(boxes1, "box_ios", fmt), corners(boxes2, "box_ios", fmt), SMALLER, 0.0)


@public_operator
def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Compute the generalized IoU of every pair of boxes; differentiable.

    IoU less the fraction of the smallest enclosing box that the union leaves empty (Rezatofighi et
    al., "Generalized Intersection over Union", CVPR 2019).

    Args:
        boxes1: ``[..., N, 4]`` (x1, y1, x2, y2), any unit; floating or integer.
        boxes2: ``[..., M, 4]``; leading dimensions broadcast against those of boxes1.

    Returns:
        ``[..., N, M]`` in (-1, 1], float64 for float64 boxes, else float32.

    Raises:
        RuntimeError: Wrong shape, dtype or device.

    Drop-in replacement for :func:`torchvision.ops.generalized_box_iou`.

    Example:
        >>> generalized_box_iou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]]))
        tensor([[-0.3333]])
    """
    op = "generalized_box_iou"
    return _pairwise(corners(boxes1, op), corners(boxes2, op), GENERALIZED, 0.0)


@public_operator
def distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Compute the distance IoU of every pair of boxes; differentiable.

    IoU less the squared distance of the centers over the squared diagonal of the smallest enclosing
    box (Zheng et al., "Distance-IoU Loss", AAAI 2020).

    Args:
        boxes1: ``[..., N, 4]`` (x1, y1, x2, y2), any unit; floating or integer.
        boxes2: ``[..., M, 4]``; leading dimensions broadcast against those of boxes1.
        eps: Added to the squared diagonal against division by zero.

    Returns:
        ``[..., N, M]``, float64 for float64 boxes, else float32.

    Raises:
        RuntimeError: Wrong shape, dtype or device.

    Drop-in replacement for :func:`torchvision.ops.distance_box_iou`.

    Example:
        >>> distance_box_iou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]]))
        tensor([[-0.4000]])
    """
    op = "distance_box_iou"
    return _pairwise(corners(boxes1, op), corners(boxes2, op), DISTANCE, eps)


@public_operator
def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Compute the complete IoU of every pair of boxes; differentiable.

    Distance IoU less a term for different aspect ratios, whose weight is a constant for the
    derivative (Zheng et al., "Distance-IoU Loss", AAAI 2020).

    Args:
        boxes1: ``[..., N, 4]`` (x1, y1, x2, y2), any unit; floating or integer.
        boxes2: ``[..., M, 4]``; leading dimensions broadcast against those of boxes1.
        eps: Added to denominators against division by zero.

    Returns:
        ``[..., N, M]``, float64 for float64 boxes, else float32.

    Raises:
        RuntimeError: Wrong shape, dtype or device.

    Drop-in replacement for :func:`torchvision.ops.complete_box_iou`.

    Example:
        >>> complete_box_iou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]]))
        tensor([[-0.4000]])
    """
    op = "complete_box_iou"
    return _pairwise(corners(boxes1, op), corners(boxes2, op), COMPLETE, eps)


def _pairwise(boxes1: Tensor, boxes2: Tensor, measure: int, eps: float) -> Tensor:
    """Bring boxes to the operator's ``[B, N, 4]`` and its result back."""
    if boxes1.dtype != boxes2.dtype or not boxes1.is_floating_point():
        check_readable(boxes1, "box_iou", "boxes1")
        check_readable(boxes2, "box_iou", "boxes2")
    if boxes1.dtype != boxes2.dtype:
        dtype = torch.promote_types(boxes1.dtype, boxes2.dtype)
        boxes1, boxes2 = boxes1.to(dtype), boxes2.to(dtype)
    if not boxes1.is_floating_point() and not boxes1.is_complex():
        boxes1, boxes2 = boxes1.to(torch.int64), boxes2.to(torch.int64)
    if boxes1.dim() == 2 and boxes2.dim() == 2:
        return _box_iou(boxes1[None], boxes2[None], measure, eps)[0]
    if boxes1.dim() < 2 or boxes2.dim() < 2:
        raise RuntimeError(
            "box_iou: expected boxes1 of shape [..., N, 4] and boxes2 of shape [..., M, 4], "
            f"got {list(boxes1.shape)} and {list(boxes2.shape)}"
        )
    try:
        leading = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    except RuntimeError:
        raise RuntimeError(
            "box_iou: expected leading dimensions of boxes1 and boxes2 that broadcast, "
            f"got {list(boxes1.shape)} and {list(boxes2.shape)}"
        ) from None
    rows, columns = boxes1.shape[-2], boxes2.shape[-2]
    boxes1 = boxes1.expand(*leading, *boxes1.shape[-2:]).flatten(0, -3)  # [B, N, 4]
    boxes2 = boxes2.expand(*leading, *boxes2.shape[-2:]).flatten(0, -3)  # [B, M, 4]
    return _box_iou(boxes1, boxes2, measure, eps).reshape(*leading, rows, columns)


def _fake(boxes1: Tensor, boxes2: Tensor, measure: int, eps: float) -> Tensor:
    check_box_iou(boxes1, boxes2)
    dtype = torch.float64 if boxes1.dtype == torch.float64 else torch.float32
    return boxes1.new_empty((boxes1.shape[0], boxes1.shape[1], boxes2.shape[1]), dtype=dtype)


def _fake_backward(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, measure: int, eps: float
) -> tuple[Tensor, Tensor]:
    check_box_iou(boxes1, boxes2)
    check_same_device(grad, boxes1, "box_iou_backward", "grad", "boxes1")
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


def _save_boxes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    boxes1, boxes2, ctx.measure, ctx.eps = inputs
    ctx.save_for_backward(boxes1, boxes2)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    boxes1, boxes2 = ctx.saved_tensors
    grad1, grad2 = _box_iou_backward(grad, boxes1, boxes2, ctx.measure, ctx.eps)
    return grad1, grad2, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, boxes1, boxes2, ctx.measure, ctx.eps = inputs
    ctx.save_for_backward(grad, boxes1, boxes2)


def _double_backward(ctx: Any, grad1: Tensor, grad2: Tensor) -> tuple[Any, ...]:
    # The reference's gradient is made of differentiable operators; the fourth derivative of an IoU
    # does not need a kernel.
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views under create_graph: derivatives are taken with respect to them, not their sources.
        inputs = [
            t.view_as(t) if create_graph and t.requires_grad else t.detach().requires_grad_()
            for t in ctx.saved_tensors
        ]
        grad, boxes1, boxes2 = inputs
        outputs = reference.box_iou_backward(grad, boxes1, boxes2, ctx.measure, ctx.eps)
        gradients = torch.autograd.grad(outputs, inputs, (grad1, grad2), create_graph=create_graph)
    return *gradients, None, None


def _vmap(
    info: Any, in_dims: tuple[int | None, ...], boxes1: Tensor, boxes2: Tensor, *options: Any
) -> tuple[Tensor, int]:
    sets = []
    for boxes, dim in zip((boxes1, boxes2), in_dims, strict=False):
        moved = (
            boxes.expand(info.batch_size, *boxes.shape) if dim is None else boxes.movedim(dim, 0)
        )
        sets.append(moved)  # [V, B, N, 4]
    flat = [boxes.flatten(0, 1) for boxes in sets]  # [V * B, N, 4]
    return _box_iou(*flat, *options).unflatten(0, sets[0].shape[:2]), 0


_box_iou_backward = define_operator(
    "box_iou_backward",
    "(Tensor grad, Tensor boxes1, Tensor boxes2, int measure, float eps) -> (Tensor, Tensor)",
    reference=reference.box_iou_backward,
    fake=_fake_backward,
    backward=_double_backward,
    setup_context=_save_backward,
    composite="transforms",
)
_box_iou = define_operator(
    "box_iou",
    "(Tensor boxes1, Tensor boxes2, int measure, float eps) -> Tensor",
    reference=reference.box_iou,
    fake=_fake,
    backward=_backward,
    setup_context=_save_boxes,
    vmap=_vmap,
    composite="forward mode",
)
