"""Frozen stages of a backbone run fused in training on a CPU, since nothing is learned there."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from rcnn_ext.models.folding import FoldedConv2d, FoldedFrozenBatchNorm2d
from rcnn_ext.models.fusion import fuse_model, onednn
from rcnn_ext.models.fusion.classes import FusedLayer, fuse_class, is_unhooked, restore_classes
from rcnn_ext.models.fusion.layers import state_of

# Modules whose results are the same in training and in evaluation, if batch norm is frozen.
_KNOWN = {
    nn.Sequential,
    BasicBlock,
    Bottleneck,
    nn.Conv2d,
    FoldedConv2d,
    nn.BatchNorm2d,
    FrozenBatchNorm2d,
    FoldedFrozenBatchNorm2d,
    nn.ReLU,
    nn.MaxPool2d,
    nn.Identity,
}


def fuse_frozen_stages(model: nn.Module) -> None:
    """Let the frozen stages of a ResNet compute as a prepared model does, while training on a CPU.

    The frozen stages before the first trainable one run with packed weights and folded batch norms,
    in fewer passes over memory, and their feature maps have channels last; they change by rounding
    (about 1e-6 of their size). Parameters, state dicts and gradients stay those of the layers, and
    there is a copy of the frozen weights. It is checked in each call which stages are frozen and
    whether their weights have changed; stages with hooks, with live batch norm or with other layers
    than a ResNet's, and other devices, autocast and ``torch.compile``, compute as before.
    Evaluation is not concerned. It saves time where the whole backbone is frozen and the model has
    channels last.

    Args:
        model: A detector whose ``backbone.body`` has stages as its children, such as those that
            :func:`rcnn_ext.models.faster_rcnn` builds; changed in place.

    Raises:
        ValueError: The model has no such backbone.

    Example:
        >>> frozen = {"weights_backbone": "DEFAULT", "trainable_layers": 0}
        >>> model = faster_rcnn("resnet50", num_classes=4, **frozen)
        >>> model = model.to(memory_format=torch.channels_last)
        >>> fuse_frozen_stages(model)
    """
    body: Any = getattr(getattr(model, "backbone", None), "body", None)
    if isinstance(body, FrozenStages):
        return
    if type(body) not in (nn.Sequential, IntermediateLayerGetter):
        raise ValueError(
            f"{type(model).__name__} has no stages in backbone.body: expected a detector on a "
            "ResNet, as faster_rcnn() and fast_rcnn() build it"
        )
    fuse_class(body, FrozenStages)
    body._fused_copy = _FusedCopy()


class FrozenStages(FusedLayer, nn.Module):
    """Stages in a row; in training the frozen ones at the beginning run as a fused copy."""

    _fused_copy: _FusedCopy

    def forward(self, x: Tensor) -> Any:
        """Return what the stages return: the last map, or a dict of maps."""
        names = self._frozen_names(x)
        if not names:
            return super().forward(x)
        fused = self._fused_copy.get(self, names)
        with torch.no_grad():
            outputs = fused(x)
        returned: dict[str, str] | None = getattr(self, "return_layers", None)
        rest = [(name, layer) for name, layer in self._modules.items() if name not in names]
        if returned is None:
            for _, layer in rest:
                outputs = layer(outputs)  # type: ignore[misc]
            return outputs
        maps = OrderedDict((returned[name], outputs[name]) for name in names if name in returned)
        x = outputs[names[-1]]
        for name, layer in rest:
            x = layer(x)  # type: ignore[misc]
            if name in returned:
                maps[returned[name]] = x
        return maps

    def _frozen_names(self, x: Tensor) -> list[str]:
        """Return the names of the stages that can run as a fused copy here and now."""
        names: list[str] = []
        if not self.training or not onednn.is_eager(x) or x.requires_grad:
            return names
        for name, stage in self._modules.items():
            if stage is None or not _is_constant(stage):
                break
            names.append(name)
        # Its batch norm, which it may apply through its weights, has to run fused too.
        if names and isinstance(self._modules[names[-1]], nn.Conv2d):
            names.pop()
        has_weights = any(True for name in names for _ in self._modules[name].parameters())  # type: ignore[union-attr]
        return names if has_weights else []


class _FusedCopy:
    """A fused copy of frozen stages, made anew when their layers or weights change.

    Copies and pickles start empty.
    """

    def __init__(self) -> None:
        self._known: tuple[list[Any], list[Any], nn.Module] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _FusedCopy, ()

    def get(self, body: Any, names: list[str]) -> nn.Module:
        """Return the fused copy of the stages of a body."""
        stages = [body._modules[name] for name in names]
        # They are held, so that others cannot have come into their place unseen.
        parts = [m for stage in stages for m in stage.modules()]
        parts += [t for stage in stages for t in (*stage.parameters(), *stage.buffers())]
        state = [
            value
            for part in parts
            for value in (id(part), *(state_of(part) if isinstance(part, Tensor) else ()))
        ]
        known = self._known
        if known is not None and known[1] == state:
            return known[2]
        fused = _copy_stages(body, names)
        self._known = (parts, state, fused)
        return fused


def _copy_stages(body: Any, names: list[str]) -> nn.Module:
    """Return a fused copy of stages: a dict of the maps that are read, or the last one."""
    # The whole, since folded layers know the module that holds them.
    fused = copy.deepcopy(body)
    restore_classes(fused)
    for name in list(fused._modules):
        if name not in names:
            del fused._modules[name]
    if isinstance(fused, IntermediateLayerGetter):
        read = [name for name in names if name in fused.return_layers or name == names[-1]]
        fused.return_layers = {name: name for name in read}
    fuse_model(fused)
    return fused


def _is_constant(stage: nn.Module) -> bool:
    """Return whether a stage learns nothing, and does in training what it does in evaluation."""
    for layer in stage.modules():
        if type(layer) not in _KNOWN or not is_unhooked(layer) or layer._backward_hooks:
            return False
        if type(layer) is nn.BatchNorm2d and (layer.training or layer.running_var is None):
            return False
    return not any(parameter.requires_grad for parameter in stage.parameters())
