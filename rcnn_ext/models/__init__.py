"""Detection models on the operators of `rcnn_ext.ops`.

`fasterrcnn_resnet50_fpn` and `FasterRCNN` are drop-in replacements for torchvision's;
`faster_rcnn` and `fast_rcnn` build detectors from a backbone by name.
"""

from rcnn_ext.models.anchors import AnchorGenerator
from rcnn_ext.models.backbones import BACKBONES
from rcnn_ext.models.box_coder import BoxCoder
from rcnn_ext.models.box_heads import FastRCNNPredictor, Res5Head, TwoMLPHead
from rcnn_ext.models.fast_rcnn import FastRCNN, fast_rcnn
from rcnn_ext.models.faster_rcnn import FasterRCNN, faster_rcnn, fasterrcnn_resnet50_fpn
from rcnn_ext.models.matcher import Matcher
from rcnn_ext.models.poolers import RoIPooler
from rcnn_ext.models.roi_heads import RoIHeads
from rcnn_ext.models.rpn import RegionProposalNetwork, RPNHead
from rcnn_ext.models.sampler import BalancedPositiveNegativeSampler

__all__ = [
    "BACKBONES",
    "AnchorGenerator",
    "BalancedPositiveNegativeSampler",
    "BoxCoder",
    "FastRCNN",
    "FastRCNNPredictor",
    "FasterRCNN",
    "Matcher",
    "RPNHead",
    "RegionProposalNetwork",
    "Res5Head",
    "RoIHeads",
    "RoIPooler",
    "TwoMLPHead",
    "fast_rcnn",
    "faster_rcnn",
    "fasterrcnn_resnet50_fpn",
]
