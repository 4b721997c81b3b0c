"""Augmentation of training images, with ``torchvision.transforms.v2`` on boxes as tv_tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from rcnn_ext.config.augment import AugmentConfig
from rcnn_ext.data.samples import RawSample, keep_boxes

# What moves into view around a shrunk or shifted image: the gray of ImageNet's mean.
_GRAY = (124, 116, 104)
# That of images with other channels than RGB, which are floats in [0, 1].
_GRAY_UNIT = 0.45

# Boxes of which less than this is left after zooming and shifting are no longer recognizable.
MIN_SIDE_LEFT = 2.0

# Nor are those of which a mosaic, or what was pasted over them, leaves less than this part.
MIN_PART_LEFT = 0.2


def build_augmentation(config: AugmentConfig, channels: int = 3) -> v2.Transform:
    """Build the transform of training samples.

    ``config.mosaic`` and ``config.copy_paste`` are not part of it, since they take several samples:
    see :func:`mosaic` and :func:`rcnn_ext.data.copy_paste.copy_paste`.

    Args:
        config: What to vary.
        channels: Channels of the images.

    Returns:
        A transform of an image (uint8 [3, H, W], or float32 [channels, H, W] in [0, 1]) and a
        target whose ``boxes``, and ``proposals`` if it has any, are ``tv_tensors.BoundingBoxes``
        [N, 4] (XYXY). It keeps the size of the image, draws from torch's global generator, and
        drops boxes that leave the image with their labels.
    """
    fill = list(_GRAY) if channels == 3 else [_GRAY_UNIT] * channels
    steps: list[nn.Module] = []
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(config.horizontal_flip))
    if config.vertical_flip:
        steps.append(v2.RandomVerticalFlip(config.vertical_flip))
    moved = len(steps)
    if tuple(config.zoom) != (1.0, 1.0) or config.shift or config.rotate or config.shear:
        shear = [-config.shear, config.shear] * 2 if config.shear else None
        steps.append(
            v2.RandomAffine(
                degrees=config.rotate,
                translate=(config.shift, config.shift),
                scale=tuple(config.zoom),
                shear=shear,
                interpolation=v2.InterpolationMode.BILINEAR,
                fill={tv_tensors.Image: fill, "others": 0},
            )
        )
    if tuple(config.scale_jitter) != (1.0, 1.0):
        steps.append(ScaleJitter(config.scale_jitter, fill))
    if len(steps) > moved:
        steps.append(DropLostBoxes())
    if config.color or config.hue:
        steps.append(v2.ColorJitter(config.color, config.color, config.color, config.hue))
    if config.blur:
        blur = v2.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))
        steps.append(v2.RandomApply([blur], p=config.blur))
    return v2.Compose(steps) if steps else v2.Identity()


class ScaleJitter(v2.Transform):
    """Resize an image by a random factor, and crop or pad it to its size, at a random place.

    Args:
        factors: The smallest and the largest factor.
        fill: Value of each channel around a smaller image.
    """

    def __init__(self, factors: tuple[float, float], fill: Sequence[float] = _GRAY) -> None:
        super().__init__()
        self.fill = list(fill)
        self.factors = factors

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw factor and place."""
        image = next(value for value in flat_inputs if isinstance(value, tv_tensors.Image))
        height, width = image.shape[-2:]
        # As often half as twice: uniform in the logarithm.
        low, high = (math.log(factor) for factor in self.factors)
        factor = math.exp(low + (high - low) * float(torch.rand(())))
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        places = [
            int(torch.randint(abs(new - old) + 1, ())) * (1 if new > old else -1)
            for new, old in zip(size, (height, width), strict=True)
        ]
        return {"size": size, "top": places[0], "left": places[1], "keep": (height, width)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize, then cut away what is too much or add gray."""
        height, width = params["keep"]
        top, left = params["top"], params["left"]
        value = self._call_kernel(F.resize, inpt, params["size"], antialias=True)
        value = self._call_kernel(
            F.crop,
            value,
            max(0, top),
            max(0, left),
            min(height, params["size"][0]),
            min(width, params["size"][1]),
        )
        above, before = max(0, -top), max(0, -left)
        padding = [
            before,
            above,
            width - before - min(width, params["size"][1]),
            height - above - min(height, params["size"][0]),
        ]
        fill = self.fill if isinstance(inpt, tv_tensors.Image) else 0
        return self._call_kernel(F.pad, value, padding, fill=fill)


class DropLostBoxes(nn.Module):
    """Cut boxes and proposals to the image, and drop those of which nothing is left."""

    def forward(
        self, image: tv_tensors.Image, target: dict[str, Any]
    ) -> tuple[tv_tensors.Image, dict[str, Any]]:
        """Return the image as it is, and what is left of its target."""
        target = {**target, "boxes": F.clamp_bounding_boxes(target["boxes"])}
        target = keep_boxes(target, _large_enough(target["boxes"]))
        if "proposals" in target:
            proposals = F.clamp_bounding_boxes(target["proposals"])
            kept = proposals[_large_enough(proposals)]
            target["proposals"] = tv_tensors.wrap(kept, like=proposals)
        return image, target


def mosaic(samples: list[RawSample]) -> RawSample:
    """Put four images into the corners of one.

    The four meet in a random point of the middle; each is scaled to fill its corner, and cut to it
    at a random place.

    Args:
        samples: Four; the result has the size and the ``image_id`` of the first. Either all have
            proposals or none.

    Returns:
        The image, with the boxes of which a fifth or more is still seen, and the proposals. Where
        the first image has a side of one pixel, it is returned as it is.
    """
    canvas = torch.empty_like(samples[0][0])
    height, width = canvas.shape[-2:]
    if min(height, width) < 2:
        return samples[0]  # A line of pixels has no four corners.
    middle = (torch.rand(2) * 0.4 + 0.3).tolist()
    y, x = (max(1, round(part * side)) for part, side in zip(middle, (height, width), strict=True))
    corners = [(0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width)]
    parts = []
    for (image, target), (top, left, bottom, right) in zip(samples, corners, strict=True):
        tile, target = _fill(image, target, (bottom - top, right - left))
        canvas[:, top:bottom, left:right] = tile
        for name in ("boxes", "proposals"):
            if name in target:
                shift = target[name].new_tensor([left, top, left, top])
                target[name] = target[name].as_subclass(torch.Tensor) + shift
        parts.append(target)
    merged: dict[str, Any] = {"image_id": parts[0]["image_id"]}
    for name in parts[0].keys() - {"image_id"}:
        joined = torch.cat([part[name].as_subclass(torch.Tensor) for part in parts])
        merged[name] = (
            tv_tensors.BoundingBoxes(
                joined,
                format=tv_tensors.BoundingBoxFormat.XYXY,
                canvas_size=(height, width),
            )
            if name in ("boxes", "proposals")
            else joined
        )
    return tv_tensors.Image(canvas), merged


def _fill(
    image: tv_tensors.Image, target: dict[str, Any], size: tuple[int, int]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Scale an image to cover ``size`` (height, width) and cut a random part of that size."""
    height, width = image.shape[-2:]
    factor = max(size[0] / height, size[1] / width)
    scaled = [max(size[0], round(height * factor)), max(size[1], round(width * factor))]
    top, left = (
        int(torch.randint(have - want + 1, ())) for have, want in zip(scaled, size, strict=True)
    )
    tile = F.crop(F.resize(image, scaled, antialias=True), top, left, *size)
    target = dict(target)
    for name in ("boxes", "proposals"):
        if name in target:
            whole = F.resize(target[name], scaled)
            seen = F.crop(whole, top, left, *size)
            keep = _large_enough(seen) & (_areas(seen) >= MIN_PART_LEFT * _areas(whole))
            if name == "boxes":
                target = keep_boxes({**target, name: seen}, keep)
            else:
                target[name] = seen[keep]
    return tile, target


def _large_enough(boxes: torch.Tensor) -> torch.Tensor:  # bool [N]
    return (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE_LEFT).all(dim=1)


def _areas(boxes: torch.Tensor) -> torch.Tensor:  # [N]
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
