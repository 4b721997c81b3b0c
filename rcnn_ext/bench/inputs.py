"""The random boxes, RoIs and feature maps that the cases run on.

Everything is drawn on the CPU in float32 from a seed and converted afterwards, so that a case means
the same numbers on every device and, up to rounding, in every dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Width and height, in pixels, of an image whose shorter side was resized to 800: the usual input of
# the detection models.
IMAGE_SIZE = (1333, 800)
BOX_SIDES = (8.0, 208.0)


def generator(seed: int) -> torch.Generator:
    """Return a new CPU generator, so that a case does not touch the global one."""
    return torch.Generator().manual_seed(seed)


def random_boxes(
    count: int,
    random: torch.Generator,
    image_size: tuple[int, int] = IMAGE_SIZE,
    sides: tuple[float, float] = BOX_SIDES,
) -> Tensor:
    """Draw boxes with uniform centers and uniform sides; they may reach over the image's border.

    Args:
        count: Number of boxes, N.
        random: Source of the numbers.
        image_size: Width and height within which the centers lie, in image pixels.
        sides: Smallest and largest side, in image pixels.

    Returns:
        [N, 4] (x1, y1, x2, y2), image pixels, float32, CPU.
    """
    low, high = sides
    centers = torch.rand(count, 2, generator=random) * torch.tensor(image_size)  # [N, 2] (x, y)
    halves = (low + (high - low) * torch.rand(count, 2, generator=random)) / 2  # [N, 2]
    return torch.cat([centers - halves, centers + halves], dim=1)


def random_scores(count: int, random: torch.Generator) -> Tensor:
    """Draw scores, uniform in [0, 1): [N], float32, CPU."""
    return torch.rand(count, generator=random)


def random_rois(
    count: int,
    random: torch.Generator,
    map_size: tuple[int, int],
    spatial_scale: float,
    sides: tuple[float, float] = BOX_SIDES,
) -> Tensor:
    """Draw RoIs as a detector makes them: boxes clipped to the image.

    Args:
        count: Number of RoIs, K.
        random: Source of the numbers.
        map_size: Height and width of the feature map that the RoIs are pooled from.
        spatial_scale: Feature pixels per image pixel.
        sides: Smallest and largest side before clipping, in image pixels.

    Returns:
        [K, 4] (x1, y1, x2, y2), image pixels, float32, CPU.
    """
    height, width = (round(side / spatial_scale) for side in map_size)
    boxes = random_boxes(count, random, (width, height), sides)
    limit = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    return boxes.clamp(min=0).minimum(limit)


def features(
    shape: tuple[int, int, int, int],
    random: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool = False,
) -> Tensor:
    """Draw a normally distributed map: [N, C, H, W] of ``shape``, in either memory layout."""
    values = torch.randn(shape, generator=random).to(device, dtype)
    return values.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
