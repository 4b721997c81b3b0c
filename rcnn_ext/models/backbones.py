"""Backbones: torchvision's networks, cut and frozen as detectors need them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from rcnn_ext.models.folding import fold_frozen_norms
from rcnn_ext.models.inputs import backbone_features
from rcnn_ext.models.weights import fetch_state_dict, resolve_weights

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v3_large")

FPN_CHANNELS = 256

NormLayer = str | Callable[..., nn.Module]


class FeatureMap(NamedTuple):
    """A feature map of a backbone."""

    channels: int
    # Image pixels from one position to the next.
    stride: float


class _Stage(NamedTuple):
    """A part of a network from one change of resolution to the next."""

    layers: OrderedDict[str, nn.Module]
    # The layer that a pyramid takes, and its channels.
    output: str
    channels: int


class SingleMapBackbone(nn.Module):
    """The first stages of a network, whose last feature map RoIs are pooled from.

    Args:
        layers: Layers by their names in the network, so that its weights load by name.
    """

    def __init__(self, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(layers)
        self.out_channels = measure_feature_maps(self)["0"].channels

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map [N, C, H / stride, W / stride] of images [N, 3, H, W]."""
        return self.body(images)


class PyramidBackbone(nn.Module):
    """A feature pyramid on a module that gives several feature maps.

    Args:
        body: Module from images [N, 3, H, W] to a dict of maps, finest first.
        feature_maps: Maps of the body, from ``measure_feature_maps``.
    """

    def __init__(self, body: nn.Module, feature_maps: OrderedDict[str, FeatureMap]) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(
            [feature_map.channels for feature_map in feature_maps.values()],
            FPN_CHANNELS,
            extra_blocks=LastLevelMaxPool(),
        )
        self.out_channels = FPN_CHANNELS

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps [N, 256, H_l, W_l] of ``body`` and "pool", of images [N, 3, H, W]."""
        return self.fpn(self.body(images))


def build_fpn_backbone(
    name: str,
    *,
    weights: WeightsEnum | str | None = None,
    norm_layer: NormLayer = "auto",
    trainable_layers: int | None = None,
    returned_layers: Sequence[int] | None = None,
    pyramid_norm_layer: Callable[..., nn.Module] | None = None,
    progress: bool = True,
) -> BackboneWithFPN:
    """Make a backbone with a feature pyramid.

    Args:
        name: One of ``BACKBONES``.
        weights: Published ImageNet weights of the network, their name, or None.
        norm_layer: See ``resolve_norm_layer``. A batch norm in a frozen stage still updates its
            statistics in training; a frozen one does not.
        trainable_layers: Number of trainable stages, counted from the last. None means 3 with
            weights, else all. A ResNet has 5 stages (stem, layer1 to layer4), MobileNetV3-Large 6.
        returned_layers: The stages, counted from 0, that the pyramid is built on. None means
            torchvision's choice: 1 to 4 of a ResNet (strides 4 to 32), the last two of
            MobileNetV3-Large (both of stride 32; for small objects take (2, 3, 4, 5)).
        pyramid_norm_layer: Function from channels to a layer after each convolution of the pyramid.
        progress: Show a progress bar while downloading.

    Returns:
        A module from images [N, 3, H, W] to a dict of maps [N, 256, H_l, W_l], "0", "1", ... and
        "pool" (half the resolution of the last). Parameter names and, with equal seeds, weights
        are those of torchvision's backbone.

    Raises:
        ValueError: An unknown name, norm layer or stage, or too many trainable layers.
        UserError: The weights do not exist or cannot be downloaded.
    """
    stages, is_resnet = _load_stages(name, weights, norm_layer, trainable_layers, progress)
    if returned_layers is None:
        returned_layers = (1, 2, 3, 4) if is_resnet else (4, 5)
    first = 1 if is_resnet else 0  # The stem of a ResNet has the stride of its layer1.
    if (
        len(returned_layers) == 0
        or any(not first <= layer < len(stages) for layer in returned_layers)
        or list(returned_layers) != sorted(set(returned_layers))
    ):
        raise ValueError(
            f"returned_layers of {name} must be ascending numbers from {first} to "
            f"{len(stages) - 1}, got {tuple(returned_layers)}"
        )
    chosen = [stages[layer] for layer in returned_layers]
    backbone = BackboneWithFPN(
        nn.Sequential(_join_layers(stages)),
        return_layers={stage.output: str(level) for level, stage in enumerate(chosen)},
        in_channels_list=[stage.channels for stage in chosen],
        out_channels=FPN_CHANNELS,
        norm_layer=pyramid_norm_layer,
    )
    fold_frozen_norms(backbone)
    return backbone


def build_c4_backbone(
    name: str,
    *,
    weights: WeightsEnum | str | None = None,
    norm_layer: NormLayer = "auto",
    trainable_layers: int | None = None,
    progress: bool = True,
) -> tuple[SingleMapBackbone, nn.Sequential]:
    """Cut a network at stride 16.

    Args:
        name: One of ``BACKBONES``.
        weights: As for ``build_fpn_backbone``.
        norm_layer: As for ``build_fpn_backbone``.
        trainable_layers: As for ``build_fpn_backbone``; the last stage, which is returned apart,
            counts.
        progress: Show a progress bar while downloading.

    Returns:
        The network up to stride 16 (layer3 of a ResNet), and the rest of its convolutions (layer4),
        for ``Res5Head``.

    Raises:
        ValueError: An unknown name or norm layer, or too many trainable layers.
        UserError: The weights do not exist or cannot be downloaded.
    """
    stages, _ = _load_stages(name, weights, norm_layer, trainable_layers, progress)
    # ResNet: stem, layer1, layer2, layer3. MobileNetV3: the stages of strides 2, 4, 8 and 16.
    backbone = SingleMapBackbone(_join_layers(stages[:4]))
    last_stage = nn.Sequential(_join_layers(stages[4:]))
    for part in (backbone, last_stage):
        fold_frozen_norms(part)
    return backbone, last_stage


def build_c5_backbone(
    name: str,
    *,
    weights: WeightsEnum | str | None = None,
    norm_layer: NormLayer = "auto",
    trainable_layers: int | None = None,
    progress: bool = True,
) -> SingleMapBackbone:
    """Take all convolutions of a network: one map of stride 32.

    Args:
        name: One of ``BACKBONES``.
        weights: As for ``build_fpn_backbone``.
        norm_layer: As for ``build_fpn_backbone``.
        trainable_layers: As for ``build_fpn_backbone``.
        progress: Show a progress bar while downloading.

    Raises:
        ValueError: An unknown name or norm layer, or too many trainable layers.
        UserError: The weights do not exist or cannot be downloaded.
    """
    stages, _ = _load_stages(name, weights, norm_layer, trainable_layers, progress)
    backbone = SingleMapBackbone(_join_layers(stages))
    fold_frozen_norms(backbone)
    return backbone


def remove_strides(module: nn.Module) -> None:
    """Set the stride of every convolution in ``module`` to 1, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)


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
        backbone: Module from [N, 3, H, W] to a map or a dict of maps.

    Returns:
        Name of each level ("0" if there is only one) to its measures.

    Raises:
        ValueError: A map does not grow with the image, or not alike in height and width.
    """
    parameter = next(backbone.parameters())
    small, large = 128, 256
    was_training = backbone.training
    backbone.eval()  # Black images must not enter the statistics of a batch norm.
    try:
        with torch.no_grad():
            first, second = (
                backbone_features(backbone, parameter.new_zeros(1, 3, side, side))
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


def resolve_norm_layer(norm_layer: NormLayer, pretrained: bool) -> Callable[..., nn.Module]:
    """Return the class that ``norm_layer`` means.

    Args:
        norm_layer: "frozen" (neither statistics nor scale ever change), "batch" (live batch norm,
            for training from scratch with several images per batch), "auto" (frozen for pretrained
            networks, else batch: torchvision's choice), or a function from the number of channels
            to a layer.
        pretrained: Whether the network starts from published weights.

    Raises:
        ValueError: Unknown string.
    """
    if not isinstance(norm_layer, str):
        return norm_layer
    if norm_layer == "auto":
        norm_layer = "frozen" if pretrained else "batch"
    layers: dict[str, Callable[..., nn.Module]] = {
        "frozen": FrozenBatchNorm2d,
        "batch": nn.BatchNorm2d,
    }
    if norm_layer not in layers:
        raise ValueError(
            f"norm_layer must be 'auto', 'frozen', 'batch' or a class of layer, got {norm_layer!r}"
        )
    return layers[norm_layer]


def _load_stages(
    name: str,
    weights: WeightsEnum | str | None,
    norm_layer: NormLayer,
    trainable_layers: int | None,
    progress: bool,
) -> tuple[list[_Stage], bool]:
    """Make a network with weights and frozen stages; return these and whether it is a ResNet."""
    if name not in BACKBONES:
        raise ValueError(f"there is no backbone {name!r}; there are {', '.join(BACKBONES)}")
    weights = resolve_weights(weights, torchvision.models.get_model_weights(name))
    network = torchvision.models.get_model(
        name, norm_layer=resolve_norm_layer(norm_layer, pretrained=weights is not None)
    )
    if weights is not None:
        network.load_state_dict(
            fetch_state_dict(weights, progress=progress, instead="weights_backbone=None")
        )
    is_resnet = isinstance(network, torchvision.models.ResNet)
    stages = _resnet_stages(network) if is_resnet else _mobilenet_stages(network.features)

    if trainable_layers is None:
        trainable_layers = len(stages) if weights is None else 3
    if not 0 <= trainable_layers <= len(stages):
        raise ValueError(
            f"the number of trainable layers of {name} must lie in [0, {len(stages)}], "
            f"got {trainable_layers}"
        )
    for stage in stages[: len(stages) - trainable_layers]:
        for layer in stage.layers.values():
            layer.requires_grad_(False)
    return stages, is_resnet


def _resnet_stages(network: torchvision.models.ResNet) -> list[_Stage]:
    children = OrderedDict(network.named_children())
    stem = OrderedDict((name, children[name]) for name in ("conv1", "bn1", "relu", "maxpool"))
    stages = [_Stage(stem, "maxpool", network.conv1.out_channels)]
    for index in (1, 2, 3, 4):
        name = f"layer{index}"
        # The last stage has 8 times the channels of the first.
        channels = network.fc.in_features // 2 ** (4 - index)
        stages.append(_Stage(OrderedDict([(name, children[name])]), name, channels))
    return stages


def _mobilenet_stages(features: Any) -> list[_Stage]:
    layers: list[tuple[str, Any]] = list(features.named_children())

    def halves(layer: nn.Module) -> bool:
        return any(isinstance(m, nn.Conv2d) and m.stride[0] > 1 for m in layer.modules())

    # torchvision's stages: each starts where the resolution halves, and gives the pyramid the
    # output of that first layer; the last layer is a stage of its own.
    starts = [i for i, (_, layer) in enumerate(layers) if halves(layer)] + [len(layers) - 1]
    ends = [*starts[1:], len(layers)]
    return [
        _Stage(OrderedDict(layers[start:end]), layers[start][0], layers[start][1].out_channels)
        for start, end in zip(starts, ends, strict=True)
    ]


def _join_layers(stages: list[_Stage]) -> OrderedDict[str, nn.Module]:
    return OrderedDict(item for stage in stages for item in stage.layers.items())
