"""Inference on a CPU in fewer passes over memory: packed weights, sums and activations fused.

Layers stay the objects they are, with their parameters; only their classes change, see
``classes``. PyTorch's oneDNN operators compute, see ``onednn``; under ``torch.compile``, export and
tracing, on other devices and where gradients are recorded, layers are made of PyTorch's public
operators, as before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import ResNet
from torchvision.ops import FrozenBatchNorm2d

from rcnn_ext.models.folding import fold_norms
from rcnn_ext.models.fusion import onednn
from rcnn_ext.models.fusion.blocks import BLOCKS, FusedResidualBlock, FusedResNet, FusedSequential
from rcnn_ext.models.fusion.buffers import MapBuffers
from rcnn_ext.models.fusion.classes import FusedLayer, fuse_class, restore_classes
from rcnn_ext.models.fusion.layers import (
    FusedConv2d,
    FusedLinear,
    PackedWeights,
    why_not_packed,
)
from rcnn_ext.models.fusion.report import FusionReport

__all__ = ["FusionReport", "fuse_layers", "fuse_model", "restore_classes"]

_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)
# Modules of PyTorch that only hold others.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def fuse_model(module: nn.Module) -> FusionReport:
    """Make evaluation of any module on a CPU fast, in place; training is no longer possible.

    Batch norms go into the convolutions before them, weights of convolutions are stored with
    channels last, no gradient of parameters is recorded, and layers compute with packed weights
    together with the activations and sums after them. Outputs stay the same within rounding;
    feature maps have channels last. It suits torchvision's detectors and classification networks,
    and any module of convolutions, norms and linear layers.

    Args:
        module: A module on a CPU in float32, bfloat16 or float16.

    Returns:
        What was changed and what was not, with the reason.

    Example:
        >>> model = torchvision.models.detection.retinanet_resnet50_fpn(weights="DEFAULT")
        >>> print(fuse_model(model))
    """
    restore_classes(module)
    module.eval().requires_grad_(False)
    fold_norms(module)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)
    return fuse_layers(module)


def fuse_layers(module: nn.Module) -> FusionReport:
    """Let the layers of a module in evaluation mode, without gradients, compute together.

    Args:
        module: Its batch norms were folded, and the weights of its convolutions have channels last.

    Returns:
        What was changed and what was not, with the reason.
    """
    reason = onednn.why_unavailable()
    if reason is not None:
        return FusionReport(kept={"": reason})
    packed, fused, kept = [], {}, {}
    buffers = MapBuffers()
    names = {layer: name for name, layer in module.named_modules()}
    for layer, name in names.items():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not isinstance(layer, FusedLayer):
            why = why_not_packed(layer)
            if why is None:
                fuse_class(layer, FusedConv2d if isinstance(layer, nn.Conv2d) else FusedLinear)
                _attach(layer, buffers)
                packed.append(name)
            else:
                kept[name] = why
        elif isinstance(layer, _NORMS):
            kept[name] = "no convolution before this batch norm could take it into its weights"
    # Inner modules first, since outer ones look at their classes.
    for layer, name in reversed(names.items()):
        if isinstance(layer, FusedLayer):
            continue
        why = _fuse_block(layer, buffers)
        if isinstance(layer, FusedLayer):
            fused[name] = type(layer).__name__
        elif why is not None:
            kept[name] = why
    _pack_early(names)
    caches = [vars(layer).get("_fused_weights") for layer in names]
    return FusionReport(
        tuple(packed),
        dict(reversed(fused.items())),
        kept,
        sum(cache.num_bytes for cache in caches if cache is not None),
    )


def _attach(layer: Any, buffers: MapBuffers) -> None:
    layer._fused_weights = PackedWeights()
    layer._fused_buffers = buffers


def _fuse_block(module: nn.Module, buffers: MapBuffers) -> str | None:
    """Derive the class of a module that runs its layers together.

    Returns:
        Why it was not done, where layers of the module could run together; else None.
    """
    children = list(module.children())
    has_layers = any(isinstance(child, FusedConv2d | FusedLinear) for child in children)
    own: Any = type(module)
    for base, mixin in BLOCKS.items():
        if not isinstance(module, base):
            continue
        if own.forward is not base.forward or "forward" in vars(module):
            break
        if mixin is FusedResNet and own._forward_impl is not ResNet._forward_impl:
            break
        if mixin is FusedSequential and not (
            has_layers or any(isinstance(child, FusedResidualBlock) for child in children)
        ):
            return None
        if mixin is FusedResidualBlock and any(isinstance(child, _NORMS) for child in children):
            return "its batch norms are not folded, so its layers run one by one"
        fuse_class(module, mixin)
        _attach(module, buffers)
        return None
    if has_layers and not isinstance(module, _CONTAINERS):
        return f"{type(module).__name__} is no block known here, so its layers run one by one"
    return None


def _pack_early(layers: Iterable[nn.Module]) -> None:
    """Pack what every call needs, so that the first is as fast as the others."""
    late = {
        child
        for layer in layers
        if isinstance(layer, FusedLayer)
        for child in layer.layers_packed_late()
    }
    for layer in layers:
        if isinstance(layer, FusedConv2d | FusedLinear) and layer not in late:
            layer.pack()
