"""Convolution 3x3 with Winograd's packed weights in plain PyTorch, as an ordinary convolution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rcnn_ext._memory_format import empty_map
from rcnn_ext.reference.checks import (
    check,
    check_floating,
    check_same_device,
    check_side_lengths,
    name_of,
)

# Packed weights are padded with zeros to whole blocks of channels; the numbers of
# csrc/conv_winograd/conv_winograd.h.
OUTPUT_BLOCK = 32
INPUT_BLOCK = 16

# Tiles for each dtype. In bfloat16 the transforms of a tile of 4 would cost 2 percent of accuracy.
TILES = {torch.float32: (2, 4), torch.bfloat16: (2,)}


# G of F(2x2, 3x3) and F(4x4, 3x3): transforms a filter along one axis (Lavin and Gray, "Fast
# Algorithms for Convolutional Neural Networks", CVPR 2016).
_FILTER_TRANSFORMS = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}


def round_up(count: int, multiple: int) -> int:
    """Return the smallest multiple that is not below a count."""
    return -(-count // multiple) * multiple


def filter_transform(tile: int, device: torch.device) -> Tensor:
    """Return the matrix that transforms a filter along one axis, float64 ``[tile + 2, 3]``."""
    return torch.tensor(_FILTER_TRANSFORMS[tile], dtype=torch.float64, device=device)


def check_conv3x3_winograd(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    tile: int,
    out_channels: int,
    op: str = "conv3x3_winograd",
) -> None:
    """Check the arguments as the native kernel does."""
    check(
        x.dtype in TILES,
        f"{op}: expected x to be float32 or bfloat16, got {name_of(x.dtype)}",
    )
    check(x.dim() == 4, f"{op}: expected x of shape [N, C, H, W], got {list(x.shape)}")
    check(x.shape[1] > 0, f"{op}: expected x of at least one channel, got {list(x.shape)}")
    check_side_lengths(x.shape[2], x.shape[3], op)
    expected = "2 or 4 for float32" if x.dtype == torch.float32 else "2 for bfloat16"
    check(tile in TILES[x.dtype], f"{op}: expected a tile of {expected}, got {tile}")
    check(out_channels > 0, f"{op}: expected positive out_channels, got {out_channels}")
    blocks = round_up(out_channels, OUTPUT_BLOCK) // OUTPUT_BLOCK
    shape = [(tile + 2) ** 2, blocks, round_up(x.shape[1], INPUT_BLOCK), OUTPUT_BLOCK]
    check(
        list(packed.shape) == shape,
        f"{op}: expected packed weights of shape {shape} for {x.shape[1]} channels, "
        f"{out_channels} output channels and a tile of {tile}, got {list(packed.shape)}",
    )
    _check_dtype(x, packed, "packed", op)
    check_same_device(packed, x, op, "packed", "x")
    if bias is not None:
        check(
            list(bias.shape) == [out_channels],
            f"{op}: expected bias of shape [{out_channels}], got {list(bias.shape)}",
        )
        check_floating(bias, op, "bias")
        check_same_device(bias, x, op, "bias", "x")
    if other is not None:
        shape = [x.shape[0], out_channels, x.shape[2], x.shape[3]]
        check(
            list(other.shape) == shape,
            f"{op}: expected other of shape {shape}, got {list(other.shape)}",
        )
        _check_dtype(x, other, "other", op)
        check_same_device(other, x, op, "other", "x")


def _check_dtype(x: Tensor, tensor: Tensor, argument: str, op: str) -> None:
    check(
        tensor.dtype == x.dtype,
        f"{op}: expected x and {argument} of one dtype, "
        f"got {name_of(x.dtype)} and {name_of(tensor.dtype)}",
    )


def unpack(packed: Tensor, tile: int, in_channels: int, out_channels: int) -> Tensor:
    """Return the filters of packed weights, float32 ``[O, C, 3, 3]``.

    The filters that the transform brings closest to the packed weights: those that were packed, but
    for rounding.
    """
    positions, blocks, depth, columns = packed.shape
    if packed.dtype == torch.bfloat16:
        packed = packed.view(positions, blocks, depth // 2, columns, 2).transpose(3, 4)
        packed = packed.reshape(positions, blocks, depth, columns)
    transformed = packed.double().permute(1, 3, 2, 0).reshape(blocks * columns, depth, positions)
    transformed = transformed[:out_channels, :in_channels].unflatten(2, (tile + 2, tile + 2))
    inverse = torch.linalg.pinv(filter_transform(tile, packed.device))  # [3, tile + 2]
    return (inverse @ transformed @ inverse.T).float()


def conv3x3_winograd(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    relu: bool,
    tile: int,
    out_channels: int,
) -> Tensor:
    """Convolve with packed weights of 3x3, stride 1 and padding 1; add, and clamp below at 0.

    Args:
        x: ``[N, C, H, W]``, float32 or bfloat16.
        packed: ``[(tile + 2)^2, ceil(O / 32), C, 32]``, C rounded up to a multiple of 16, from
            :func:`rcnn_ext.ops.conv_winograd.pack`.
        bias: ``[O]``, floating, or ``None``.
        other: ``[N, O, H, W]``, to be added, in the dtype of x, or ``None``.
        relu: Whether negative results become 0.
        tile: Outputs per side of a tile.
        out_channels: O.

    Returns:
        ``[N, O, H, W]``, channels-last, in the dtype of x.

    Raises:
        RuntimeError: Wrong shape, dtype, device or option.
    """
    check_conv3x3_winograd(x, packed, bias, other, tile, out_channels)
    if x.numel() == 0:
        shape = (x.shape[0], out_channels, x.shape[2], x.shape[3])
        return empty_map(x, shape, channels_last=True)
    filters = unpack(packed, tile, x.shape[1], out_channels)
    result = functional.conv2d(
        x.float(), filters, None if bias is None else bias.float(), padding=1
    )
    if other is not None:
        result = result + other.float()
    if relu:
        result = result.relu()
    return result.to(x.dtype).contiguous(memory_format=torch.channels_last)


def conv3x3_winograd_out(
    out: Tensor,
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    relu: bool,
    tile: int,
) -> None:
    """Write the result of :func:`conv3x3_winograd` to memory that is there.

    Args:
        out: ``[N, O, H, W]``, channels-last, in the dtype of x; may be ``other``.
        x: As there.
        packed: As there.
        bias: As there.
        other: As there.
        relu: As there.
        tile: As there.

    Raises:
        RuntimeError: Wrong shape, dtype, device, layout or option.
    """
    check_conv3x3_winograd_out(out, x, packed, bias, other, tile)
    out.copy_(conv3x3_winograd(x, packed, bias, other, relu, tile, out.shape[1]))


def check_conv3x3_winograd_out(
    out: Tensor, x: Tensor, packed: Tensor, bias: Tensor | None, other: Tensor | None, tile: int
) -> None:
    """Check the arguments as the native kernel does, but for memory that they share."""
    op = "conv3x3_winograd_out"
    check(out.dim() == 4, f"{op}: expected out of shape [N, O, H, W], got {list(out.shape)}")
    check_conv3x3_winograd(x, packed, bias, other, tile, out.shape[1], op)
    n, _, height, width = x.shape
    check(
        out.shape[0] == n and out.shape[2] == height and out.shape[3] == width,
        f"{op}: expected out of shape [{n}, O, {height}, {width}], got {list(out.shape)}",
    )
    _check_dtype(x, out, "out", op)
    check_same_device(out, x, op, "out", "x")
    check(
        out.is_contiguous(memory_format=torch.channels_last),
        f"{op}: expected out with channels last, without gaps",
    )
