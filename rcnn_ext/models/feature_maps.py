"""Feature maps of a backbone: their channels and strides, measured."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import nn

from rcnn_ext.models.channels import in_channels_of
from rcnn_ext.models.inputs import backbone_features


class FeatureMap(NamedTuple):
    """A feature map of a backbone."""

    channels: int
    # Image pixels from one position to the next.
    stride: float


def out_channels_of(backbone: nn.Module) -> int:
    """Return the channels of the maps of a backbone.

    Raises:
        ValueError: The backbone has no such attribute.
    """
    channels = getattr(backbone, "out_channels", None)
    if not isinstance(channels, int):
        raise ValueError(
            f"the backbone ({type(backbone).__name__}) needs an attribute out_channels, the number "
            "of channels of each feature map"
        )
    return channels


def measure_feature_maps(backbone: nn.Module) -> OrderedDict[str, FeatureMap]:
    """Measure the channels and the stride of each feature map of a backbone.

    It runs the backbone on two sizes of black image. The stride is how much the image grew for
    each added position, which is exact also for networks whose border positions are special.

    Args:
        backbone: Module from [N, C, H, W] to a map or a dict of maps, where C is its
            ``in_channels`` or 3.

    Returns:
        Name of each level ("0" if there is only one) to its measures.

    Raises:
        ValueError: A map does not grow with the image, or not alike in height and width.
    """
    parameter = next(backbone.parameters())
    small, large = 128, 256
    channels = in_channels_of(backbone) or 3
    was_training = backbone.training
    backbone.eval()  # Black images must not enter the statistics of a batch norm.
    try:
        with torch.no_grad():
            first, second = (
                backbone_features(backbone, parameter.new_zeros(1, channels, side, side))
                for side in (small, large)
            )
    finally:
        backbone.train(was_training)
    maps = OrderedDict()
    for name, feature in first.items():
        rows = second[name].shape[2] - feature.shape[2]
        columns = second[name].shape[3] - feature.shape[3]
        if rows < 1 or rows != columns:
            raise ValueError(
                f"feature map {name!r} of the backbone is {list(feature.shape)} for an image of "
                f"{small}x{small} and {list(second[name].shape)} for {large}x{large}: it has no "
                "stride"
            )
        maps[name] = FeatureMap(feature.shape[1], (large - small) / rows)
    return maps
