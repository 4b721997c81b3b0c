"""Memory format of feature maps and of what is pooled from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_last(tensor: Tensor) -> bool:
    """Return whether an operator takes a map ``[N, C, H, W]`` as channels-last, result included.

    Applies the rule of ``is_channels_last`` in ``csrc/core/stable_ops.h``: a tensor that is dense
    in both senses (one channel, or one pixel) counts as contiguous.
    """
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def empty_map(
    like: Tensor,
    shape: Sequence[int],
    *,
    channels_last: bool,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return an empty map ``[N, C, H, W]`` on the device of ``like``, in its dtype by default."""
    return torch.empty(
        tuple(shape),
        dtype=like.dtype if dtype is None else dtype,
        device=like.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
