"""The operators in plain PyTorch: the fallback on any device and the oracle of the tests.

Each function has the name and the arguments of the operator ``torch.ops.rcnn_ext.<name>``; the
public functions with torchvision's signatures are in :mod:`rcnn_ext.ops`.
"""

from rcnn_ext.reference.box_iou import box_iou, box_iou_backward
from rcnn_ext.reference.conv_winograd import conv3x3_winograd, conv3x3_winograd_out
from rcnn_ext.reference.generate_proposals import generate_proposals
from rcnn_ext.reference.match_boxes import match_boxes
from rcnn_ext.reference.multiscale_roi_align import (
    multiscale_roi_align,
    multiscale_roi_align_backward,
)
from rcnn_ext.reference.nms import batched_nms, batched_nms_padded, nms, nms_padded
from rcnn_ext.reference.non_max_merging import non_max_merging
from rcnn_ext.reference.postprocess_detections import postprocess_detections
from rcnn_ext.reference.roi_align import roi_align, roi_align_backward
from rcnn_ext.reference.roi_pool import roi_pool, roi_pool_backward
from rcnn_ext.reference.soft_nms import batched_soft_nms, soft_nms

__all__ = [
    "batched_nms",
    "batched_nms_padded",
    "batched_soft_nms",
    "box_iou",
    "box_iou_backward",
    "conv3x3_winograd",
    "conv3x3_winograd_out",
    "generate_proposals",
    "match_boxes",
    "multiscale_roi_align",
    "multiscale_roi_align_backward",
    "nms",
    "nms_padded",
    "non_max_merging",
    "postprocess_detections",
    "roi_align",
    "roi_align_backward",
    "roi_pool",
    "roi_pool_backward",
    "soft_nms",
]
