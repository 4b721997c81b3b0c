"""The parts that `fast_rcnn` and `faster_rcnn` have in common, from options by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn
from torchvision.models._api import WeightsEnum

from rcnn_ext import ops
from rcnn_ext.models.backbones import (
    FeatureMap,
    NormLayer,
    build_c4_backbone,
    build_fpn_backbone,
    measure_feature_maps,
    out_channels_of,
    remove_strides,
)
from rcnn_ext.models.box_heads import FastRCNNPredictor, Res5Head, TwoMLPHead
from rcnn_ext.models.poolers import RoIPooler

_MLP_CHANNELS = 1024


class DetectorParts(NamedTuple):
    """A backbone, what it gives, and what a RoI goes through."""

    backbone: nn.Module
    feature_maps: OrderedDict[str, FeatureMap]
    box_roi_pool: nn.Module
    box_head: nn.Module
    box_predictor: nn.Module


def build_parts(
    backbone: str,
    *,
    num_classes: int,
    neck: str,
    head: str | None,
    pooler: str,
    pool_size: int,
    sampling_ratio: int,
    class_agnostic: bool,
    dropout: float,
    weights_backbone: WeightsEnum | str | None,
    norm_layer: NormLayer,
    trainable_layers: int | None,
    returned_layers: Sequence[int] | None,
    progress: bool,
) -> DetectorParts:
    """Build the parts of a detector; `fast_rcnn` describes the arguments.

    Raises:
        ValueError: an unknown or contradicting option.
        UserError: the weights do not exist or cannot be downloaded.
    """
    if neck not in ("c4", "fpn"):
        raise ValueError(f"neck must be 'c4' or 'fpn', got {neck!r}")
    head = head or ("res5" if neck == "c4" else "mlp")
    if head not in ("res5", "mlp"):
        raise ValueError(f"head must be 'res5' or 'mlp', got {head!r}")
    if neck == "fpn" and (head != "mlp" or pooler != "align"):
        raise ValueError(
            "neck='fpn' goes with head='mlp' and pooler='align', "
            f"got head={head!r} and pooler={pooler!r}"
        )
    if neck == "c4" and returned_layers is not None:
        raise ValueError("returned_layers chooses the levels of neck='fpn'; this is 'c4'")

    network: nn.Module
    box_roi_pool: nn.Module
    box_head: Res5Head | TwoMLPHead
    if neck == "fpn":
        network = build_fpn_backbone(
            backbone,
            weights=weights_backbone,
            norm_layer=norm_layer,
            trainable_layers=trainable_layers,
            returned_layers=returned_layers,
            progress=progress,
        )
        feature_maps = measure_feature_maps(network)
        # "pool" is for the anchors of the largest objects only.
        levels = [name for name in feature_maps if name != "pool"]
        box_roi_pool = ops.MultiScaleRoIAlign(levels, pool_size, sampling_ratio)
    else:
        network, stage = build_c4_backbone(
            backbone,
            weights=weights_backbone,
            norm_layer=norm_layer,
            trainable_layers=trainable_layers,
            progress=progress,
        )
        feature_maps = measure_feature_maps(network)
        box_roi_pool = RoIPooler(network, pooler, pool_size, sampling_ratio)

    channels = out_channels_of(network)
    if head == "res5":
        if pool_size < 14:
            remove_strides(stage)
        box_head = Res5Head(stage, channels, dropout)
    else:
        box_head = TwoMLPHead(channels * pool_size**2, _MLP_CHANNELS, dropout)
    predictor = FastRCNNPredictor(box_head.out_channels, num_classes, class_agnostic)
    return DetectorParts(network, feature_maps, box_roi_pool, box_head, predictor)
