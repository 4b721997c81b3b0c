"""Box heads: from the pooled features of a RoI to class logits and box deltas."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead


class TwoMLPHead(nn.Module):
    """Two fully connected layers on the pooled features.

    Args:
        in_channels: C * pooled height * pooled width.
        representation_size: Length D of the output.
        dropout: Probability of dropping each output of each layer in training, as Fast R-CNN does.

    Parameter names and, without dropout, results are those of torchvision's ``TwoMLPHead``.
    """

    def __init__(self, in_channels: int, representation_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc6 = nn.Linear(in_channels, representation_size)
        self.fc7 = nn.Linear(representation_size, representation_size)
        self.out_channels = representation_size
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return [R, D] for pooled features [R, C, h, w]."""
        x = self.flatten(x)  # [R, C, h, w] -> [R, C * h * w]
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        return x


class ChannelsLastFlatten(nn.Module):
    """Flatten features with channels last without a copy: in the order of height, width, channel.

    Made by ``flatten_channels_last``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return [R, h * w * C] for [R, C, h, w]."""
        return x.permute(0, 2, 3, 1).flatten(start_dim=1)


@torch.no_grad()
def flatten_channels_last(head: nn.Module, channels: int) -> None:
    """Make a box head take pooled features with channels last as they are, in place.

    Features flattened in the order of channel, height, width would be copied, which for a thousand
    RoIs takes about a tenth of the time of the linear layer that reads them. So this layer's
    weights take the order of the features.

    Args:
        head: ``TwoMLPHead`` or torchvision's ``FastRCNNConvFCHead``; others stay as they are.
        channels: Number of channels of the pooled features.
    """
    position = "flatten"
    linear: nn.Module | None = None
    if type(head) is TwoMLPHead:
        linear = head.fc6
    elif type(head) is FastRCNNConvFCHead:
        for index, (layer, follower) in enumerate(itertools.pairwise(head.children())):
            if type(layer) is nn.Flatten:
                position, linear = str(index), follower
        convs = [layer for layer in head.modules() if isinstance(layer, nn.Conv2d)]
        channels = convs[-1].out_channels if convs else channels
    # It is not nn.Flatten any more where this was done before.
    if type(linear) is not nn.Linear or type(head.get_submodule(position)) is not nn.Flatten:
        return
    setattr(head, position, ChannelsLastFlatten())
    weight = linear.weight.unflatten(1, (channels, -1))  # [D, C, h * w]
    weight = weight.transpose(1, 2).flatten(start_dim=1)  # [D, h * w * C]
    linear.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)


def _output_channels(stage: nn.Module, in_channels: int) -> int:
    was_training = stage.training
    stage.eval()  # Zeros must not enter the statistics of a batch norm.
    try:
        with torch.no_grad():
            pooled = next(stage.parameters()).new_zeros(1, in_channels, 7, 7)
            return stage(pooled).shape[1]
    finally:
        stage.train(was_training)


class Res5Head(nn.Module):
    """The last stage of a backbone, run on each RoI and averaged: the C4 head of ResNets.

    Args:
        stage: The stage (layer4 of a ResNet), [R, C, h, w] to [R, D, h', w'].
        in_channels: Channels C of the pooled features.
        dropout: Probability of dropping each averaged channel in training.

    Source: He et al., "Deep Residual Learning", 2016, appendix A.
    """

    def __init__(self, stage: nn.Module, in_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.stage = stage
        self.out_channels = _output_channels(stage, in_channels)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return [R, D] for pooled features [R, C, h, w]."""
        x = self.stage(x).mean(dim=(2, 3))  # [R, D, h', w'] -> [R, D]
        return F.dropout(x, self.dropout, self.training)


class FastRCNNPredictor(nn.Module):
    """Classify a RoI and refine its box.

    Args:
        in_channels: Length D of the head's output.
        num_classes: Number of classes K, background (class 0) included.
        class_agnostic: One box per RoI instead of one for each class.

    Parameter names and, with a box for each class, results are those of torchvision's
    ``FastRCNNPredictor``.
    """

    def __init__(self, in_channels: int, num_classes: int, class_agnostic: bool = False) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                f"num_classes counts the background too and must be at least 2, got {num_classes}"
            )
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, 4 * (1 if class_agnostic else num_classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [R, K] and deltas [R, K * 4] or [R, 4] for features [R, D]."""
        x = x.flatten(start_dim=1)  # [R, D, 1, 1] of a convolutional head -> [R, D]
        return self.cls_score(x), self.bbox_pred(x)


def default_box_branch(
    in_channels: int,
    num_classes: int | None,
    box_roi_pool: nn.Module,
    box_head: nn.Module | None,
    box_predictor: nn.Module | None,
) -> tuple[nn.Module, nn.Module]:
    """Return the box head and the predictor, torchvision's default ones where none are given.

    Args:
        in_channels: Channels of the pooled features.
        num_classes: Number of classes, background included; None if and only if ``box_predictor``
            is given.
        box_roi_pool: Pooler; its ``output_size`` (height, width) gives the length of the pooled
            features.
        box_head: None means a ``TwoMLPHead`` with 1024 outputs.
        box_predictor: None means a ``FastRCNNPredictor``.

    Raises:
        ValueError: ``num_classes`` and ``box_predictor`` are both given, or neither.
    """
    if (num_classes is None) == (box_predictor is None):
        raise ValueError("give either num_classes or box_predictor, and not both")
    if box_head is None:
        height, width = cast("tuple[int, int]", box_roi_pool.output_size)
        box_head = TwoMLPHead(in_channels * height * width, 1024)
    if num_classes is not None:
        box_predictor = FastRCNNPredictor(getattr(box_head, "out_channels", 1024), num_classes)
    assert box_predictor is not None
    return box_head, box_predictor
