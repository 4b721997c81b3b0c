"""Batch norm folded into the convolution before it.

A batch norm whose statistics do not change is a scale and a shift of each channel, and so is part
of the convolution before it: (w * x) * scale + shift = (w * scale) * x + shift. Applied to the
weights it costs next to nothing; applied to the feature maps it is a pass over all of them, and in
training a copy to keep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d


class _Pair(NamedTuple):
    """A convolution and the batch norm that alone reads its output, by name in ``parent``."""

    parent: nn.Module
    conv_name: str
    norm_name: str

    @property
    def conv(self) -> Any:
        return getattr(self.parent, self.conv_name, None)

    @property
    def norm(self) -> Any:
        return getattr(self.parent, self.norm_name, None)

    def is_folded(self) -> bool:
        """Return whether neither layer has been replaced since the two were folded."""
        conv, norm = self.conv, self.norm
        return (
            isinstance(conv, FoldedConv2d)
            and isinstance(norm, FoldedFrozenBatchNorm2d)
            and conv.pair.parent is norm.pair.parent is self.parent
        )


class FoldedConv2d(nn.Conv2d):
    """A convolution that applies the frozen batch norm after it through its own weights.

    Made by ``fold_frozen_norms``. Parameters, their names and their gradients are those of the
    convolution.
    """

    # A tuple, so that the parent and the norm do not become submodules.
    pair: _Pair

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[N, C_in, H, W]``, scale and shift."""
        if self.pair.conv is self and self.pair.is_folded():
            return self._conv_forward(x, *_folded_weights(self, self.pair.norm))
        return super().forward(x)


class FoldedFrozenBatchNorm2d(FrozenBatchNorm2d):
    """A frozen batch norm that the convolution before it applies; it returns its input.

    Made by ``fold_frozen_norms``. If either layer is replaced, it is a batch norm again.
    """

    pair: _Pair

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, C, H, W]`` as it is."""
        if self.pair.norm is self and self.pair.is_folded():
            return x
        return super().forward(x)


# Layers that are a scale and a shift of each channel, and nothing else.
_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d, FoldedFrozenBatchNorm2d)


def fold_frozen_norms(model: nn.Module) -> None:
    """Make convolutions apply the frozen batch norm after them through their weights, in place.

    The two layers become a ``FoldedConv2d`` and a ``FoldedFrozenBatchNorm2d``: the same objects of
    a derived class, as ``torch.nn.utils.parametrize`` does it. Parameters, state dicts and
    gradients stay what they were, so that optimizers and checkpoints are not concerned; results
    change by rounding. The backbones that this package builds with ``norm_layer="frozen"`` have it
    done; call it for a backbone of your own.

    Args:
        model: Any module; pairs are found in torchvision's ResNets and in ``nn.Sequential``.
    """
    for pair in list(_find_pairs(model)):
        conv: Any = pair.conv
        norm: Any = pair.norm
        if isinstance(norm, FrozenBatchNorm2d) and not pair.is_folded():
            for layer, folded in ((conv, FoldedConv2d), (norm, FoldedFrozenBatchNorm2d)):
                layer.__class__ = folded
                layer.pair = pair


@torch.no_grad()
def fold_norms(model: nn.Module) -> None:
    """Put every batch norm after a convolution into its weights for good, in place.

    Args:
        model: Any module, to be used in evaluation only; pairs are found as by
            ``fold_frozen_norms``.
    """
    for pair in list(_find_pairs(model)):
        conv, norm = pair.conv, pair.norm
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        conv.requires_grad_(False)
        conv.__class__ = nn.Conv2d
        vars(conv).pop("pair", None)
        setattr(pair.parent, pair.norm_name, nn.Identity())


def _find_pairs(model: nn.Module) -> Iterator[_Pair]:
    """Find convolutions that are followed by a batch norm, and by it alone."""
    # A layer with two positions in the model, or behind a hook, must stay as it is.
    positions = Counter(id(child) for parent in model.modules() for child in parent.children())
    for parent in model.modules():
        names = [name for name, _ in parent.named_children()]
        sequential = type(parent).forward in (
            nn.Sequential.forward,
            IntermediateLayerGetter.forward,
        )
        if sequential:
            candidates = list(zip(names, names[1:], strict=False))
        elif isinstance(parent, BasicBlock | Bottleneck | ResNet):
            candidates = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3) if f"conv{i}" in names]
        else:
            continue
        # A pyramid takes the output of the last layer of a stage.
        outputs = getattr(parent, "return_layers", {})
        for conv_name, norm_name in candidates:
            pair = _Pair(parent, conv_name, norm_name)
            if (
                type(pair.conv) in (nn.Conv2d, FoldedConv2d)
                # Derived ones may compute more: timm's have the activation after them inside.
                and isinstance(pair.norm, _NORMS)
                and type(pair.norm).forward in [norm.forward for norm in _NORMS]
                and pair.norm.running_var is not None
                and pair.conv.out_channels == pair.norm.running_var.numel()
                and conv_name not in outputs
                and positions[id(pair.conv)] == positions[id(pair.norm)] == 1
                and not any(layer._forward_hooks for layer in (pair.conv, pair.norm))
            ):
                yield pair


def _folded_weights(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight [C_out, C_in, h, w] and bias [C_out] of convolution and norm together.

    As ``fuse_conv_bn_weights``, but differentiable in the weights of the convolution.
    """
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # [C_out]
    shift = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    dtype = conv.weight.dtype
    return conv.weight * scale.to(dtype).reshape(-1, 1, 1, 1), shift.to(dtype)
