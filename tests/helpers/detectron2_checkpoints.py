"""State dicts with the names and shapes of detectron2's, and what its layers compute."""

from __future__ import annotations

import copy
import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
CLASSES = 5  # without background


class Weights(dict):
    """A state dict of detectron2, filled with random numbers of a trained network's size."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise
        self.used = 0

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers; drawing millions anew for every tensor would take most of the time."""
        self.used += 1
        start = 4999 * self.used % 1_000_000
        return self.noise[start : start + math.prod(shape)].view(shape)

    def conv(self, name: str, outputs: int, inputs: int, side: int, *, norm: bool) -> None:
        scale = (2 / (inputs * side * side)) ** 0.5
        shape = (outputs, inputs, side, side)
        self[f"{name}.weight"] = scale * self.normal(*shape)
        if not norm:
            self[f"{name}.bias"] = 0.1 * self.normal(outputs)
            return
        for kind in ("weight", "running_var"):
            self[f"{name}.norm.{kind}"] = 0.8 + 0.2 * self.normal(outputs).sigmoid()
        for kind in ("bias", "running_mean"):
            self[f"{name}.norm.{kind}"] = 0.1 * self.normal(outputs)

    def linear(self, name: str, outputs: int, inputs: int) -> None:
        self[f"{name}.weight"] = self.normal(outputs, inputs) / inputs**0.5
        self[f"{name}.bias"] = 0.1 * self.normal(outputs)

    def stage(self, name: str, number: int) -> None:
        width = 64 * 2 ** (number - 2)
        inputs = 64 if number == 2 else width * 2
        for block in range(BLOCKS[number]):
            if block == 0:
                self.conv(f"{name}.0.shortcut", width * 4, inputs, 1, norm=True)
            self.conv(f"{name}.{block}.conv1", width, inputs, 1, norm=True)
            self.conv(f"{name}.{block}.conv2", width, width, 3, norm=True)
            self.conv(f"{name}.{block}.conv3", width * 4, width, 1, norm=True)
            inputs = width * 4


@functools.cache
def noise() -> Tensor:
    return torch.randn(14_000_000, generator=torch.Generator().manual_seed(0))


@functools.cache
def make_checkpoint(fpn: bool, rpn: bool, agnostic: bool, pixels: bool) -> Weights:
    state = Weights(noise())
    if pixels:  # Checkpoints of 2019 and 2020 hold these.
        state["pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
        state["pixel_std"] = torch.ones(3, 1, 1)
        state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(15, 4)
    body = "backbone.bottom_up" if fpn else "backbone"
    if fpn:
        for number in BLOCKS:
            channels = 64 * 2**number
            state.conv(f"backbone.fpn_lateral{number}", 256, channels, 1, norm=False)
            state.conv(f"backbone.fpn_output{number}", 256, 256, 3, norm=False)
    state.conv(f"{body}.stem.conv1", 64, 3, 7, norm=True)
    for number in (2, 3, 4, 5) if fpn else (2, 3, 4):
        state.stage(f"{body}.res{number}", number)
    if not fpn:
        state.stage("roi_heads.res5", 5)
    if rpn:
        channels, anchors = (256, 3) if fpn else (1024, 15)
        head = "proposal_generator.rpn_head"
        state.conv(f"{head}.conv", channels, channels, 3, norm=False)
        state.conv(f"{head}.objectness_logits", anchors, channels, 1, norm=False)
        state.conv(f"{head}.anchor_deltas", anchors * 4, channels, 1, norm=False)
    if fpn:
        state.linear("roi_heads.box_head.fc1", 1024, 256 * 49)
        state.linear("roi_heads.box_head.fc2", 1024, 1024)
    features = 1024 if fpn else 2048
    state.linear("roi_heads.box_predictor.cls_score", CLASSES + 1, features)
    state.linear("roi_heads.box_predictor.bbox_pred", 4 if agnostic else CLASSES * 4, features)
    return state


class Detectron2:
    """The computations of detectron2 with such weights."""

    def __init__(self, state: dict[str, Tensor], prefix: str, stride_in_1x1: bool) -> None:
        self.state, self.prefix, self.stride_in_1x1 = state, prefix, stride_in_1x1

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        x = F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)
        if f"{name}.norm.weight" not in self.state:
            return x
        norm = [self.state[f"{name}.norm.{k}"] for k in ("running_mean", "running_var")]
        scale, shift = (self.state[f"{name}.norm.{k}"] for k in ("weight", "bias"))
        return F.batch_norm(x, *norm, scale, shift, training=False, eps=1e-5)

    def stage(self, name: str, number: int, x: Tensor) -> Tensor:
        for block in range(BLOCKS[number]):
            stride = 2 if block == 0 and number > 2 else 1
            first, second = (stride, 1) if self.stride_in_1x1 else (1, stride)
            y = self.conv(f"{name}.{block}.conv1", x, first).relu()
            y = self.conv(f"{name}.{block}.conv2", y, second).relu()
            y = self.conv(f"{name}.{block}.conv3", y)
            shortcut = self.conv(f"{name}.0.shortcut", x, stride) if block == 0 else x
            x = (y + shortcut).relu()
        return x

    def features(self, image: Tensor, order: str, mean: Tensor, std: Tensor) -> list[Tensor]:
        """Maps of res2 to the last stage, from an RGB image [3, H, W] in [0, 1]."""
        pixels = (image.flip(0) if order == "BGR" else image) * 255
        x = ((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))[None]
        x = self.conv(f"{self.prefix}.stem.conv1", x, 2).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        maps = []
        for number in BLOCKS:
            if f"{self.prefix}.res{number}.0.conv1.weight" in self.state:
                x = self.stage(f"{self.prefix}.res{number}", number, x)
                maps.append(x)
        return maps

    def pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        """P2 to P6."""
        merged: list[Tensor] = []
        for number, feature in zip((5, 4, 3, 2), reversed(maps), strict=True):
            lateral = self.conv(f"backbone.fpn_lateral{number}", feature)
            if merged:
                lateral = lateral + F.interpolate(merged[-1], scale_factor=2.0, mode="nearest")
            merged.append(lateral)
        outputs = [
            self.conv(f"backbone.fpn_output{n}", m)
            for n, m in zip((5, 4, 3, 2), merged, strict=True)
        ][::-1]
        return [*outputs, F.max_pool2d(outputs[-1], 1, 2)]


def checkpoint(
    *, fpn: bool, rpn: bool = True, agnostic: bool = False, pixels: bool = False
) -> Weights:
    """Names and shapes of detectron2's R50 Faster R-CNN (or Fast R-CNN), C4 or FPN."""
    return copy.copy(make_checkpoint(fpn, rpn, agnostic, pixels))
