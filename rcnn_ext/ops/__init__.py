"""Detection operators under torchvision's names, with native CPU and CUDA kernels.

``from rcnn_ext import ops`` replaces ``from torchvision import ops``: what this package accelerates
has torchvision's signature, defaults and results; every other name is torchvision's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rcnn_ext.ops import _flops
from rcnn_ext.ops import boxes as boxes
from rcnn_ext.ops import conv_winograd as conv_winograd
from rcnn_ext.ops import poolers as poolers
from rcnn_ext.ops._backend import has_native_kernel, use_backend
from rcnn_ext.ops._torchscript import mark_unscriptable
from rcnn_ext.ops._torchvision import install_finder, torchvision_ops
from rcnn_ext.ops.box_iou import (
    box_ios,
    box_iou,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
)
from rcnn_ext.ops.generate_proposals import Proposals, generate_proposals
from rcnn_ext.ops.match_boxes import batched_match_boxes, match_boxes
from rcnn_ext.ops.multiscale_roi_align import multiscale_roi_align
from rcnn_ext.ops.nms import batched_nms, batched_nms_padded, nms, nms_padded
from rcnn_ext.ops.non_max_merging import MergedBoxes, non_max_merging
from rcnn_ext.ops.poolers import MultiScaleRoIAlign
from rcnn_ext.ops.postprocess_detections import Detections, postprocess_detections
from rcnn_ext.ops.roi_align import RoIAlign, roi_align
from rcnn_ext.ops.roi_pool import RoIPool, roi_pool
from rcnn_ext.ops.soft_nms import batched_soft_nms, soft_nms

__all__ = [
    "Detections",
    "MergedBoxes",
    "MultiScaleRoIAlign",
    "Proposals",
    "RoIAlign",
    "RoIPool",
    "batched_match_boxes",
    "batched_nms",
    "batched_nms_padded",
    "batched_soft_nms",
    "box_ios",
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
    "non_max_merging",
    "postprocess_detections",
    "roi_align",
    "roi_pool",
    "soft_nms",
    "use_backend",
]

if TYPE_CHECKING:
    # For editors and type checkers: the modules of torchvision.ops, and its names that are not
    # replaced here.
    from torchvision.ops import (
        MLP,
        Conv2dNormActivation,
        Conv3dNormActivation,
        DeformConv2d,
        DropBlock2d,
        DropBlock3d,
        FeaturePyramidNetwork,
        FrozenBatchNorm2d,
        Permute,
        PSRoIAlign,
        PSRoIPool,
        SqueezeExcitation,
        StochasticDepth,
        box_area,
        box_convert,
        clip_boxes_to_image,
        complete_box_iou_loss,
        deform_conv2d,
        distance_box_iou_loss,
        drop_block2d,
        drop_block3d,
        generalized_box_iou_loss,
        masks_to_boxes,
        ps_roi_align,
        ps_roi_pool,
        remove_small_boxes,
        sigmoid_focal_loss,
        stochastic_depth,
    )
    from torchvision.ops import ciou_loss as ciou_loss
    from torchvision.ops import deform_conv as deform_conv
    from torchvision.ops import diou_loss as diou_loss
    from torchvision.ops import drop_block as drop_block
    from torchvision.ops import feature_pyramid_network as feature_pyramid_network
    from torchvision.ops import focal_loss as focal_loss
    from torchvision.ops import giou_loss as giou_loss
    from torchvision.ops import misc as misc

    __all__ += [
        "Conv2dNormActivation",
        "Conv3dNormActivation",
        "DeformConv2d",
        "DropBlock2d",
        "DropBlock3d",
        "FeaturePyramidNetwork",
        "FrozenBatchNorm2d",
        "MLP",
        "PSRoIAlign",
        "PSRoIPool",
        "Permute",
        "SqueezeExcitation",
        "StochasticDepth",
        "box_area",
        "box_convert",
        "clip_boxes_to_image",
        "complete_box_iou_loss",
        "deform_conv2d",
        "distance_box_iou_loss",
        "drop_block2d",
        "drop_block3d",
        "generalized_box_iou_loss",
        "masks_to_boxes",
        "ps_roi_align",
        "ps_roi_pool",
        "remove_small_boxes",
        "sigmoid_focal_loss",
        "stochastic_depth",
    ]
else:
    # torchvision is imported when one of its names, or the list of all names, is asked for, so that
    # the operators of this package can be imported and run without it.
    _OWN = tuple(__all__)
    del __all__
    for _name in _OWN:
        mark_unscriptable(globals()[_name])

    def __getattr__(name: str) -> Any:
        if name == "__all__":
            return _all_names()
        # Its modules too: `from torchvision.ops import misc` is common.
        if not name.startswith("_") and hasattr(torchvision_ops(), name):
            return getattr(torchvision_ops(), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def _all_names() -> list[str]:
        try:
            return sorted({*_OWN, *torchvision_ops().__all__})
        except ModuleNotFoundError:
            return sorted(_OWN)

    def __dir__() -> list[str]:
        return _all_names()

    install_finder()

_flops.install()
