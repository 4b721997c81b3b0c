"""Modules that run their layers together: sequences, residual blocks, pyramids and heads.

Each falls back to the forward of its own class where a layer is hooked, was replaced, or computes
in its own way, so that a change of the model after its preparation never goes unnoticed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import faster_rcnn, rpn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from rcnn_ext.models.backbones import PyramidBackbone
from rcnn_ext.models.box_heads import FastRCNNPredictor, TwoMLPHead
from rcnn_ext.models.fusion.buffers import MapBuffers
from rcnn_ext.models.fusion.classes import FusedLayer, is_unhooked
from rcnn_ext.models.fusion.layers import (
    FusedConv2d,
    FusedLinear,
    PackedWeights,
    computes_packed,
    run_as_one,
)
from rcnn_ext.models.fusion.onednn import epilogue_of
from rcnn_ext.models.rpn import RPNHead

_PACKED = (FusedConv2d, FusedLinear)


class FusedSequential(FusedLayer, nn.Module):
    """Layers one after the other: activations run in the layer before them.

    A residual block may write its results over those of the block before it, which nobody else
    reads.
    """

    def forward(self, x: Any) -> Any:
        """Run the layers."""
        return run_layers(list(self._modules.values()), x)


class FusedLayerGetter(FusedLayer, nn.Module):
    """Layers one after the other, some of whose outputs are returned."""

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return the outputs of the layers in ``return_layers``, by their new names."""
        returned: dict[str, str] = self.return_layers  # type: ignore[assignment]
        outputs: OrderedDict[str, Tensor] = OrderedDict()
        layers: list[Any] = []
        for name, layer in self._modules.items():
            layers.append(layer)
            if name in returned:
                x = outputs[returned[name]] = run_layers(layers, x)
                layers = []
        return outputs


class FusedResNet(FusedLayer, nn.Module):
    """A network for classification: its stem as one sequence."""

    def _forward_impl(self, x: Tensor) -> Tensor:
        model: Any = self
        stem = [model.conv1, model.bn1, model.relu, model.maxpool]
        stages = [model.layer1, model.layer2, model.layer3, model.layer4]
        x = model.avgpool(run_layers([*stem, *stages], x))
        return model.fc(torch.flatten(x, 1))


class FusedResidualBlock(FusedLayer, nn.Module):
    """``BasicBlock`` or ``Bottleneck``: activations and the sum run in the convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, C_out, H', W'] for [N, C_in, H, W]."""
        return self.run(x)

    def layers_packed_late(self) -> list[nn.Module]:
        """Return the convolution that adds: on large maps it reads its plain weights."""
        return [self.conv3] if isinstance(self, Bottleneck) else []

    def run(self, x: Tensor, *, overwrite: bool = False) -> Tensor:
        """Run the block, with ``overwrite`` in the memory of ``x`` if that fits."""
        block: Any = self
        numbers = (1, 2, 3) if isinstance(self, Bottleneck) else (1, 2)
        convs = [getattr(block, f"conv{i}") for i in numbers]
        norms = [getattr(block, f"bn{i}") for i in numbers]
        if (
            not all(isinstance(conv, FusedConv2d) for conv in convs)
            or not all(type(norm) is nn.Identity for norm in norms)
            or epilogue_of(block.relu) is None
            or not is_unhooked(*convs, *norms, block.relu)
        ):
            return super().forward(x)
        identity = x
        if block.downsample is not None:
            identity = block.downsample(x)
            overwrite = overwrite if identity is x else is_unhooked(*block.downsample.modules())
        y = x
        for conv in convs[:-1]:
            y = conv.run(y, activation=block.relu)
        return convs[-1].run(y, identity, block.relu, overwrite=overwrite)


class FusedPyramid(FusedLayer, nn.Module):
    """A feature pyramid: the lateral convolutions add the maps from above."""

    _fused_buffers: MapBuffers

    def layers_packed_late(self) -> list[nn.Module]:
        """Return the lateral convolutions that add: on large maps they read plain weights."""
        pyramid: Any = self
        return [layer for block in pyramid.inner_blocks[:-1] for layer in block.modules()]

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the maps of the pyramid, finest first."""
        return self.run(x)

    def run(self, x: dict[str, Tensor], *, consume: bool = False) -> dict[str, Tensor]:
        """Run the pyramid.

        Args:
            x: Maps by name, finest first.
            consume: Whether to empty ``x``, so that the memory of a map that was read can take the
                next result.
        """
        pyramid: Any = self
        laterals = [_only_convolution(block) for block in pyramid.inner_blocks]
        if any(lateral is None for lateral in laterals):
            return super().forward(x)
        names, maps = list(x), list(x.values())
        consume = consume and type(pyramid.extra_blocks) in (type(None), LastLevelMaxPool)
        if consume:
            x.clear()
        top: Tensor | None = None
        results: list[Tensor] = []
        for level in reversed(range(len(maps))):
            lateral = laterals[level]
            if top is None:
                top = lateral.run(maps[level])
            else:
                above = self._upsample(top, lateral.output_size(maps[level]))
                # Never the map that a hook may have seen.
                top = lateral.run(maps[level], above, overwrite=above is not top)
                del above
            if consume:
                maps[level] = top  # LastLevelMaxPool reads none of them.
            results.insert(0, pyramid.layer_blocks[level](top))
        if pyramid.extra_blocks is not None:
            results, names = pyramid.extra_blocks(results, maps, names)
        return OrderedDict(zip(names, results, strict=False))

    def _upsample(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``x`` [N, C, H, W] in a size, by nearest neighbor."""
        if computes_packed(x):
            buffer = self._fused_buffers.take((*x.shape[:2], *size), x.dtype)
            if buffer is not None:
                return torch.ops.aten.upsample_nearest2d.out(x, list(size), out=buffer)
        return F.interpolate(x, size=size, mode="nearest")


class FusedPyramidBackbone(FusedLayer, nn.Module):
    """A body and the pyramid on it: each map of the body is given up when it was read."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps of the pyramid, finest first, of images [N, C, H, W]."""
        backbone: Any = self
        body, pyramid = backbone.body, backbone.fpn
        # Only a body whose result is known to be made anew in each call, and read by nobody else.
        if not isinstance(body, FusedLayerGetter) or not isinstance(pyramid, FusedPyramid):
            return super().forward(x)
        if not is_unhooked(body, pyramid):
            return super().forward(x)
        return pyramid.run(body(x), consume=True)


class FusedRPNHead(FusedLayer, nn.Module):
    """The head of an RPN: both predictors run as one convolution."""

    _fused_weights: PackedWeights

    def layers_packed_late(self) -> list[nn.Module]:
        """Return the predictors, whose joined weights are packed."""
        head: Any = self
        return [head.cls_logits, head.bbox_pred]

    def forward(self, feature_maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits [N, K, H_l, W_l] and deltas [N, K * 4, H_l, W_l] for each level l."""
        head: Any = self
        predictors = [head.cls_logits, head.bbox_pred]
        joined = all(_is_joinable(layer) for layer in predictors)
        outputs = []
        for feature_map in feature_maps:
            hidden = head.conv(feature_map)
            both = run_as_one(self._fused_weights, hidden, predictors) if joined else None
            outputs.append(both or [predictor(hidden) for predictor in predictors])
        logits, deltas = zip(*outputs, strict=True) if outputs else ((), ())
        return list(logits), list(deltas)


class FusedMLPHead(FusedLayer, nn.Module):
    """``TwoMLPHead``: activations run in the linear layers."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [R, D] for pooled features [R, C, h, w]."""
        head: Any = self
        layers = (head.fc6, head.fc7)
        if self.training or not all(isinstance(layer, FusedLinear) for layer in layers):
            return super().forward(x)
        # torchvision's head has no layer for it.
        x = head.flatten(x) if hasattr(head, "flatten") else x.flatten(start_dim=1)
        for layer in layers:
            x = layer.run(x, _RELU) if is_unhooked(layer) else F.relu(layer(x))
        return x


class FusedBoxPredictor(FusedLayer, nn.Module):
    """``FastRCNNPredictor``: both linear layers run as one."""

    _fused_weights: PackedWeights

    def layers_packed_late(self) -> list[nn.Module]:
        """Return the two layers, whose joined weights are packed."""
        predictor: Any = self
        return [predictor.cls_score, predictor.bbox_pred]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [R, K] and deltas [R, K * 4] or [R, 4] for features [R, D]."""
        predictor: Any = self
        layers = [predictor.cls_score, predictor.bbox_pred]
        if x.dim() == 2 and all(_is_joinable(layer) for layer in layers):
            both = run_as_one(self._fused_weights, x, layers)
            if both is not None:
                return both[0], both[1]
        return super().forward(x)


# Classes whose forward is that of the key, and what they become.
BLOCKS: dict[type[nn.Module], type[FusedLayer]] = {
    nn.Sequential: FusedSequential,
    IntermediateLayerGetter: FusedLayerGetter,
    BasicBlock: FusedResidualBlock,
    Bottleneck: FusedResidualBlock,
    FeaturePyramidNetwork: FusedPyramid,
    BackboneWithFPN: FusedPyramidBackbone,
    PyramidBackbone: FusedPyramidBackbone,
    RPNHead: FusedRPNHead,
    rpn.RPNHead: FusedRPNHead,
    TwoMLPHead: FusedMLPHead,
    faster_rcnn.TwoMLPHead: FusedMLPHead,
    FastRCNNPredictor: FusedBoxPredictor,
    faster_rcnn.FastRCNNPredictor: FusedBoxPredictor,
    ResNet: FusedResNet,
}

_RELU = nn.ReLU()


def run_layers(layers: list[Any], x: Any) -> Any:
    """Run layers one after the other, activations in the layer before them."""
    # Whether ``x`` is the result of a residual block, which only the next layer reads.
    unread = False
    index = 0
    while index < len(layers):
        layer = layers[index]
        index += 1
        if isinstance(layer, _PACKED) and is_unhooked(layer):
            last = _find_activation(layers, index)
            x = layer.run(x, activation=None if last is None else layers[last])
            index = index if last is None else last + 1
            unread = False
        elif isinstance(layer, FusedResidualBlock) and is_unhooked(layer):
            x = layer.run(x, overwrite=unread)
            unread = True
        else:
            x = layer(x)
            unread = False
    return x


def _find_activation(layers: list[Any], index: int) -> int | None:
    """Return the position of an activation that follows, but for layers that do nothing."""
    for position in range(index, len(layers)):
        layer = layers[position]
        if not is_unhooked(layer):
            return None
        if epilogue_of(layer) is not None:
            return position
        if type(layer) is not nn.Identity:
            return None
    return None


def _only_convolution(block: nn.Module) -> Any:
    """Return the convolution that a block of a pyramid consists of, or None."""
    layers = list(block.modules()) if not isinstance(block, FusedConv2d) else [block]
    convs = [layer for layer in layers if isinstance(layer, FusedConv2d)]
    others = [layer for layer in layers if layer is not block and not isinstance(layer, _PACKED)]
    if len(convs) != 1 or any(type(layer) is not nn.Identity for layer in others):
        return None
    return convs[0] if is_unhooked(*layers) else None


def _is_joinable(layer: nn.Module) -> bool:
    if isinstance(layer, FusedConv2d) and not (layer.is_pointwise and layer.stride == (1, 1)):
        return False
    return isinstance(layer, _PACKED) and layer.bias is not None and is_unhooked(layer)
