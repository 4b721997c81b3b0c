"""Backbones: torchvision's networks, cut and frozen as detectors need them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torchvision
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from rcnn_ext.models.channels import in_channels_of, replace_first_convolution
from rcnn_ext.models.feature_maps import FeatureMap, measure_feature_maps
from rcnn_ext.models.folding import fold_frozen_norms
from rcnn_ext.models.timm_backbones import PREFIX, build_timm_backbone
from rcnn_ext.models.weights import fetch_state_dict, resolve_weights

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v3_large")

FPN_CHANNELS = 256

NormLayer = str | Callable[..., nn.Module]


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
        in_channels: Channels of the images.
    """

    def __init__(self, layers: OrderedDict[str, nn.Module], in_channels: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.body = nn.Sequential(layers)
        self.out_channels = measure_feature_maps(self)["0"].channels

    def forward(self, images: Tensor) -> Tensor:
        """Return the map [N, C, H / stride, W / stride] of images [N, in_channels, H, W]."""
        return self.body(images)


class PyramidBackbone(nn.Module):
    """A feature pyramid on a module that gives several feature maps.

    Args:
        body: Module from images [N, 3, H, W] to a dict of maps, finest first.
        feature_maps: Maps of the body, from ``measure_feature_maps``.
        norm_layer: Function from channels to a layer after each convolution of the pyramid.
    """

    def __init__(
        self,
        body: nn.Module,
        feature_maps: OrderedDict[str, FeatureMap],
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels_of(body) or 3
        self.body = body
        self.fpn = FeaturePyramidNetwork(
            [feature_map.channels for feature_map in feature_maps.values()],
            FPN_CHANNELS,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=norm_layer,
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
    in_channels: int = 3,
    progress: bool = True,
) -> nn.Module:
    """Make a backbone with a feature pyramid.

    Args:
        name: One of ``BACKBONES``, or ``timm:`` and the name of a network of timm.
        weights: Published ImageNet weights of the network, their name, or None.
        norm_layer: See ``resolve_norm_layer``. A batch norm in a frozen stage still updates its
            statistics in training; a frozen one does not.
        trainable_layers: Number of trainable stages, counted from the last. None means 3 with
            weights, else all. A ResNet has 5 stages (stem, layer1 to layer4), MobileNetV3-Large 6.
        returned_layers: The stages, counted from 0, that the pyramid is built on. None means
            torchvision's choice: 1 to 4 of a ResNet (strides 4 to 32), the last two of
            MobileNetV3-Large (both of stride 32; for small objects take (2, 3, 4, 5)).
        pyramid_norm_layer: Function from channels to a layer after each convolution of the pyramid.
        in_channels: Channels of the images. Published weights of the first convolution are adapted
            to other than three, see ``adapt_channels``.
        progress: Show a progress bar while downloading.

    Returns:
        A module from images [N, 3, H, W] to a dict of maps [N, 256, H_l, W_l], "0", "1", ... and
        "pool" (half the resolution of the last). Parameter names and, with equal seeds, weights
        are those of torchvision's backbone.

    Raises:
        ValueError: An unknown name, norm layer or stage, or too many trainable layers.
        UserError: The weights do not exist or cannot be downloaded.
    """
    if name.startswith(PREFIX):
        return build_timm_backbone(
            name,
            "fpn",
            weights=weights,
            norm_layer=norm_layer,
            trainable_layers=trainable_layers,
            returned_layers=returned_layers,
            pyramid_norm_layer=pyramid_norm_layer,
            in_channels=in_channels,
            pyramid_channels=FPN_CHANNELS,
        )
    stages, is_resnet = _load_stages(
        name, weights, norm_layer, trainable_layers, in_channels, progress
    )
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
    backbone.in_channels = in_channels
    fold_frozen_norms(backbone)
    return backbone


def build_c4_backbone(
    name: str,
    *,
    weights: WeightsEnum | str | None = None,
    norm_layer: NormLayer = "auto",
    trainable_layers: int | None = None,
    in_channels: int = 3,
    progress: bool = True,
) -> tuple[nn.Module, nn.Sequential | None]:
    """Cut a network at stride 16.

    Args:
        name: One of ``BACKBONES``.
        weights: As for ``build_fpn_backbone``.
        norm_layer: As for ``build_fpn_backbone``.
        trainable_layers: As for ``build_fpn_backbone``; the last stage, which is returned apart,
            counts.
        in_channels: As for ``build_fpn_backbone``.
        progress: Show a progress bar while downloading.

    Returns:
        The network up to stride 16 (layer3 of a ResNet), and the rest of its convolutions (layer4),
        for ``Res5Head``; None for a network of timm.

    Raises:
        ValueError: An unknown name or norm layer, or too many trainable layers.
        UserError: The weights do not exist or cannot be downloaded.
    """
    if name.startswith(PREFIX):
        timm_backbone = build_timm_backbone(
            name,
            "c4",
            weights=weights,
            norm_layer=norm_layer,
            trainable_layers=trainable_layers,
            in_channels=in_channels,
        )
        return timm_backbone, None
    stages, _ = _load_stages(name, weights, norm_layer, trainable_layers, in_channels, progress)
    # ResNet: stem, layer1, layer2, layer3. MobileNetV3: the stages of strides 2, 4, 8 and 16.
    backbone = SingleMapBackbone(_join_layers(stages[:4]), in_channels)
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
    in_channels: int = 3,
    progress: bool = True,
) -> nn.Module:
    """Take all convolutions of a network: one map of stride 32.

    Args:
        name: One of ``BACKBONES``.
        weights: As for ``build_fpn_backbone``.
        norm_layer: As for ``build_fpn_backbone``.
        trainable_layers: As for ``build_fpn_backbone``.
        in_channels: As for ``build_fpn_backbone``.
        progress: Show a progress bar while downloading.

    Raises:
        ValueError: An unknown name or norm layer, or too many trainable layers.
        UserError: The weights do not exist or cannot be downloaded.
    """
    if name.startswith(PREFIX):
        return build_timm_backbone(
            name,
            "c5",
            weights=weights,
            norm_layer=norm_layer,
            trainable_layers=trainable_layers,
            in_channels=in_channels,
        )
    stages, _ = _load_stages(name, weights, norm_layer, trainable_layers, in_channels, progress)
    backbone = SingleMapBackbone(_join_layers(stages), in_channels)
    fold_frozen_norms(backbone)
    return backbone


def remove_strides(module: nn.Module) -> None:
    """Set the stride of every convolution in ``module`` to 1, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)


def move_strides(module: nn.Module | None) -> None:
    """Move the stride of each bottleneck block from its 3x3 convolution to the 1x1 before it.

    In place; None has none.
    """
    for block in module.modules() if module is not None else ():
        if isinstance(block, Bottleneck) and block.conv2.stride != (1, 1):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


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
    in_channels: int,
    progress: bool,
) -> tuple[list[_Stage], bool]:
    """Make a network with weights and frozen stages; return these and whether it is a ResNet."""
    if name not in BACKBONES:
        raise ValueError(
            f"there is no backbone {name!r}; there are {', '.join(BACKBONES)}, and timm:NAME"
        )
    weights = resolve_weights(weights, torchvision.models.get_model_weights(name))
    network = torchvision.models.get_model(
        name, norm_layer=resolve_norm_layer(norm_layer, pretrained=weights is not None)
    )
    if weights is not None:
        network.load_state_dict(
            fetch_state_dict(weights, progress=progress, instead="weights_backbone=None")
        )
    if in_channels != 3:
        replace_first_convolution(network, in_channels, pretrained=weights is not None)
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
