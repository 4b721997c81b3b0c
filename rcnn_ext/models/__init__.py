"""Detection models on the operators of ``rcnn_ext.ops``.

``FasterRCNN`` and the presets under torchvision's names (``fasterrcnn_resnet50_fpn``, ...) are
drop-in replacements for torchvision's; ``faster_rcnn`` and ``fast_rcnn`` build detectors from
options by name, on a backbone by name or on any module that gives feature maps.
"""

from rcnn_ext import torchvision_compat  # noqa: F401 - before torchvision
from rcnn_ext.models.anchors import AnchorGenerator
from rcnn_ext.models.backbones import BACKBONES
from rcnn_ext.models.box_coder import BoxCoder
from rcnn_ext.models.box_heads import FastRCNNPredictor, Res5Head, TwoMLPHead
from rcnn_ext.models.builder import fast_rcnn, faster_rcnn
from rcnn_ext.models.detector import Detector
from rcnn_ext.models.detectron2 import convert_detectron2, load_detectron2
from rcnn_ext.models.fast_rcnn import FastRCNN
from rcnn_ext.models.faster_rcnn import FasterRCNN
from rcnn_ext.models.folding import fold_frozen_norms
from rcnn_ext.models.localizer import Localizer, localizer
from rcnn_ext.models.matcher import Matcher
from rcnn_ext.models.poolers import RoIPooler
from rcnn_ext.models.presets import (
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_c4,
    fasterrcnn_resnet50_c5_roipool,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    fastrcnn_resnet50_c4,
    fastrcnn_resnet50_fpn,
)
from rcnn_ext.models.roi_heads import RoIHeads
from rcnn_ext.models.rpn import RegionProposalNetwork, RPNHead
from rcnn_ext.models.sampler import BalancedPositiveNegativeSampler

__all__ = [
    "BACKBONES",
    "AnchorGenerator",
    "BalancedPositiveNegativeSampler",
    "BoxCoder",
    "Detector",
    "FastRCNN",
    "FastRCNNPredictor",
    "FasterRCNN",
    "Localizer",
    "Matcher",
    "RPNHead",
    "RegionProposalNetwork",
    "Res5Head",
    "RoIHeads",
    "RoIPooler",
    "TwoMLPHead",
    "convert_detectron2",
    "fast_rcnn",
    "faster_rcnn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_c4",
    "fasterrcnn_resnet50_c5_roipool",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fastrcnn_resnet50_c4",
    "fastrcnn_resnet50_fpn",
    "fold_frozen_norms",
    "load_detectron2",
    "localizer",
]
