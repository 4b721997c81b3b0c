"""Operators on boxes under the names of ``torchvision.ops.boxes``; what is not here is its own."""

from __future__ import annotations

from typing import Any

from rcnn_ext.ops._torchvision import torchvision_ops
from rcnn_ext.ops.box_iou import (
    box_iou,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
)
from rcnn_ext.ops.nms import batched_nms, nms

__all__ = [
    "batched_nms",
    "box_iou",
    "complete_box_iou",
    "distance_box_iou",
    "generalized_box_iou",
    "nms",
]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(torchvision_ops().boxes, name)
