"""Detection operators under torchvision's names, with native CPU and CUDA kernels.

``from rcnn_ext import ops`` replaces ``from torchvision import ops``: what this package accelerates
has torchvision's signature, defaults and results; every other name is torchvision's own.
"""

from __future__ import annotations

from typing import Any

from rcnn_ext.ops._backend import has_native_kernel, use_backend
from rcnn_ext.ops.box_iou import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou
from rcnn_ext.ops.generate_proposals import Proposals, generate_proposals
from rcnn_ext.ops.match_boxes import batched_match_boxes, match_boxes
from rcnn_ext.ops.multiscale_roi_align import MultiScaleRoIAlign, multiscale_roi_align
from rcnn_ext.ops.nms import batched_nms, batched_nms_padded, nms, nms_padded
from rcnn_ext.ops.postprocess_detections import Detections, postprocess_detections
from rcnn_ext.ops.roi_align import RoIAlign, roi_align
from rcnn_ext.ops.roi_pool import RoIPool, roi_pool
from rcnn_ext.ops.soft_nms import batched_soft_nms, soft_nms

_OWN = (
    "Detections",
    "MultiScaleRoIAlign",
    "Proposals",
    "RoIAlign",
    "RoIPool",
    "batched_match_boxes",
    "batched_nms",
    "batched_nms_padded",
    "batched_soft_nms",
    "box_iou",
    "complete_box_iou",
    "distance_box_iou",
    "generalized_box_iou",
    "generate_proposals",
    "has_native_kernel",
    "match_boxes",
    "multiscale_roi_align",
    "nms",
    "nms_padded",
    "postprocess_detections",
    "roi_align",
    "roi_pool",
    "soft_nms",
    "use_backend",
)


def __getattr__(name: str) -> Any:
    # torchvision is imported when one of its names is asked for, so that it is not needed to import
    # or run the operators of this package.
    if name == "__all__":
        return _all_names()
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torchvision import ops as torchvision_ops

    # Its modules too: `from torchvision.ops import boxes` is common.
    if not hasattr(torchvision_ops, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(torchvision_ops, name)


def _all_names() -> list[str]:
    try:
        from torchvision import ops as torchvision_ops
    except ModuleNotFoundError:
        return sorted(_OWN)
    return sorted({*_OWN, *torchvision_ops.__all__})


def __dir__() -> list[str]:
    return _all_names()
