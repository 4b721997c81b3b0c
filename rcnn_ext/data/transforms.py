"""Augmentation of training images, with ``torchvision.transforms.v2`` on boxes as tv_tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

# What moves into view around a shrunk or shifted image: the grey of ImageNet's mean.
_GREY = (124, 116, 104)

# Boxes of which less than this is left after zooming and shifting are no longer recognisable.
_MIN_SIDE_LEFT = 2.0


@dataclass
class AugmentConfig:
    """How training images are varied. All off gives the images as they are.

    Attributes:
        horizontal_flip: Probability of mirroring left and right.
        vertical_flip: Probability of mirroring top and bottom.
        color: Brightness, contrast and saturation are scaled by 1 - color to 1 + color, drawn for
            each image; 0 leaves them.
        zoom: Smallest and largest factor of an enlargement drawn for each image; the size of the
            image stays, what is left over is grey. ``[1, 1]`` leaves it.
        shift: The image is moved by up to this part of its sides.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    color: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0


def build_augmentation(config: AugmentConfig) -> v2.Transform:
    """Builds the transform of training samples.

    Args:
        config: What to vary.

    Returns:
        A transform of an image (uint8, [3, H, W]) and a target whose ``boxes`` are
        ``tv_tensors.BoundingBoxes`` [N, 4] (XYXY). It keeps the size of the image, draws from
        torch's global generator, and drops boxes that leave the image with their labels.
    """
    steps: list[v2.Transform] = []
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(config.horizontal_flip))
    if config.vertical_flip:
        steps.append(v2.RandomVerticalFlip(config.vertical_flip))
    if tuple(config.zoom) != (1.0, 1.0) or config.shift:
        steps.append(
            v2.RandomAffine(
                degrees=0,
                translate=(config.shift, config.shift),
                scale=tuple(config.zoom),
                interpolation=v2.InterpolationMode.BILINEAR,
                fill={tv_tensors.Image: _GREY, "others": 0},
            )
        )
        steps.append(v2.SanitizeBoundingBoxes(_MIN_SIDE_LEFT, labels_getter=_per_box))
    if config.color:
        steps.append(v2.ColorJitter(config.color, config.color, config.color))
    return v2.Compose(steps) if steps else v2.Identity()


def _per_box(sample: tuple[Any, dict[str, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
    """The entries of a target that have one value a box."""
    target = sample[1]
    return tuple(target[name] for name in ("labels", "areas", "crowd"))
