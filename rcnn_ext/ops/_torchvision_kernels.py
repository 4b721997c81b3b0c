"""Operators of this package with the signatures of torchvision's, for its dispatcher entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# These register the operators that are called below.
import rcnn_ext.ops.nms
import rcnn_ext.ops.roi_align
import rcnn_ext.ops.roi_pool  # noqa: F401

_ours = torch.ops.rcnn_ext


def _contiguous(tensor: Tensor) -> Tensor:
    """Return a result as torchvision lays it out, and its fake kernels promise: contiguous."""
    tensor = tensor.contiguous()
    # Strides of dimensions of size 1 are left over from channels-last maps.
    return tensor.reshape(-1).view(tensor.shape) if 1 in tensor.shape else tensor


def _nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Any:
    return _ours.nms.default(dets, scores, iou_threshold)


def _roi_align(input: Tensor, rois: Tensor, *options: Any) -> Any:
    return _contiguous(_ours.roi_align.default(input, rois, *options))


def _roi_align_backward(grad: Tensor, rois: Tensor, *options: Any) -> Any:
    return _contiguous(_ours.roi_align_backward.default(grad, rois, *options, False))


def _roi_pool(input: Tensor, rois: Tensor, *options: Any) -> Any:
    pooled, argmax = _ours.roi_pool.default(input, rois, *options)
    return _contiguous(pooled), _contiguous(argmax)


def _roi_pool_backward(
    grad: Tensor,
    rois: Tensor,
    argmax: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    *shape: int,
) -> Any:
    backward = _ours.roi_pool_backward.default
    return _contiguous(backward(grad, argmax, rois, spatial_scale, *shape, False))


# By the name in ``torch.ops.torchvision``.
KERNELS: dict[str, Callable[..., Any]] = {
    "nms": _nms,
    "roi_align": _roi_align,
    "_roi_align_backward": _roi_align_backward,
    "roi_pool": _roi_pool,
    "_roi_pool_backward": _roi_pool_backward,
}


def own_name(name: str) -> str:
    """Return the name in ``torch.ops.rcnn_ext`` of the operator that a kernel runs."""
    return name.removeprefix("_")
