"""Which convolutions run by Winograd's algorithm, by a table: two preparations choose alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rcnn_ext.ops import conv_winograd

# Measured by CPU time on AMD EPYC (Zen 5) with PyTorch 2.14, November 2026. From these numbers of
# input and output channels on the products that are saved outweigh the transforms; in bfloat16 the
# rounding of fewer channels would weigh more than the gain.
_MIN_CHANNELS = {torch.float32: 64, torch.bfloat16: 128}
# In bfloat16 a tile of 4 loses a digit.
_TILES = {torch.float32: 4, torch.bfloat16: 2}
# Each call reads all packed weights, which on smaller maps takes as long as a direct convolution.
_MIN_PIXELS = 64


def find_tile(conv: nn.Conv2d, dtype: torch.dtype) -> int | None:
    """Return the tile to run a convolution with, or None if it has to run directly.

    Args:
        conv: The convolution.
        dtype: Type of the maps.
    """
    if (
        conv.kernel_size != (3, 3)
        or conv.stride != (1, 1)
        or conv.dilation != (1, 1)
        or conv.groups != 1
        or conv.padding not in ((1, 1), "same")
        or dtype not in _TILES
        or min(conv.in_channels, conv.out_channels) < _MIN_CHANNELS[dtype]
        or not conv_winograd.can_take(conv.weight, dtype)
    ):
        return None
    return _TILES[dtype]


def is_worthwhile(x: Tensor) -> bool:
    """Return whether maps [N, C, H, W] are large enough."""
    return x.shape[0] * x.shape[2] * x.shape[3] >= _MIN_PIXELS
