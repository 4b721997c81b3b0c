"""Convolution 3x3 of stride 1 by Winograd's algorithm, for inference on a CPU.

``F(m x m, 3 x 3)`` computes a tile of m by m outputs from ``(m + 2)^2`` products per pair of
channels in place of ``9 m^2``: a quarter for m = 4, 1 in 2.25 for m = 2. Bias, a sum and ReLU come
with the transform of the outputs, which cost no pass over memory of their own.

CPU: ``csrc/conv_winograd/conv_winograd_cpu.cpp``, kernels in
``csrc/conv_winograd/conv_winograd_cpu-inl.h``. Elsewhere, and without the kernels, an ordinary
convolution takes its place.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from rcnn_ext import _extension, reference
from rcnn_ext._memory_format import empty_map
from rcnn_ext.ops._backend import has_native_kernel
from rcnn_ext.ops._library import define_operator, refuse_vmap
from rcnn_ext.reference.conv_winograd import (
    INPUT_BLOCK,
    OUTPUT_BLOCK,
    TILES,
    check_conv3x3_winograd,
    check_conv3x3_winograd_out,
    filter_transform,
    round_up,
)


def can_take(weight: Tensor, dtype: torch.dtype) -> bool:
    """Return whether :func:`conv` has a fast kernel for a convolution's filters here.

    The convolution itself has to have stride 1, padding 1 and neither groups nor dilation.

    Args:
        weight: Filters ``[O, C / groups, 3, 3]``.
        dtype: Of the maps: float32 (AVX2 or AVX-512) or bfloat16 (processors with AVX512-BF16).

    Returns:
        Whether the filters are 3x3 and on the CPU, and this processor and build have the kernel.
    """
    if weight.dim() != 4 or weight.shape[2:] != (3, 3) or 0 in weight.shape:
        return False
    if weight.device.type != "cpu" or not has_native_kernel("conv3x3_winograd", "cpu"):
        return False
    if dtype == torch.bfloat16:
        return _extension.has_bf16_products()
    return dtype == torch.float32 and _extension.instruction_set() != "baseline"


def pack(weight: Tensor, tile: int = 4, dtype: torch.dtype | None = None) -> Tensor:
    """Transform filters for :func:`conv`, in float64, and lay them out for its products.

    Args:
        weight: ``[O, C, 3, 3]``, floating.
        tile: Outputs per side of a tile: 2 or 4 for float32, 2 for bfloat16.
        dtype: Of the result and of the maps, float32 or bfloat16; that of weight by default.

    Returns:
        ``[(tile + 2)^2, ceil(O / 32), C, 32]`` with C rounded up to a multiple of 16: four times
        (tile 4) or 1.8 times (tile 2) the numbers of weight. In bfloat16 two input channels are
        side by side.

    Raises:
        ValueError: Wrong shape, dtype or tile.
    """
    dtype = weight.dtype if dtype is None else dtype
    if weight.dim() != 4 or weight.shape[2:] != (3, 3) or 0 in weight.shape:
        raise ValueError(
            "conv_winograd.pack: expected weight of shape [O, C, 3, 3] without a 0, "
            f"got {list(weight.shape)}"
        )
    if dtype not in TILES:
        raise ValueError(f"conv_winograd.pack: expected float32 or bfloat16, got {dtype}")
    if tile not in TILES[dtype]:
        expected = " or ".join(map(str, TILES[dtype]))
        raise ValueError(
            f"conv_winograd.pack: expected a tile of {expected} for {dtype}, got {tile}"
        )
    out_channels, in_channels = weight.shape[:2]
    depth = round_up(in_channels, INPUT_BLOCK)
    blocks = round_up(out_channels, OUTPUT_BLOCK) // OUTPUT_BLOCK
    transform = filter_transform(tile, weight.device)
    positions = (tile + 2) ** 2
    packed = weight.new_zeros(positions, blocks, depth, OUTPUT_BLOCK, dtype=dtype).detach()
    # By blocks of output channels: in float64, all filters at once would take eight times the
    # memory of a large layer's weights.
    for block, part in enumerate(weight.detach().split(OUTPUT_BLOCK)):
        transformed = transform @ part.double() @ transform.T  # [o, C, tile + 2, tile + 2]
        # In bfloat16 the last two axes hold each two input channels side by side.
        pairs = 2 if dtype == torch.bfloat16 else 1
        target = packed[:, block].view(positions, depth // pairs, OUTPUT_BLOCK, pairs)
        values = transformed.new_zeros(len(part), depth, positions, dtype=dtype)
        values[:, :in_channels] = transformed.flatten(2).to(dtype)
        values = values.view(len(part), depth // pairs, pairs, positions)
        target[:, :, : len(part)] = values.permute(3, 1, 0, 2)
    return packed


def conv(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    other: Tensor | None = None,
    relu: bool = False,
    tile: int = 4,
    out_channels: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve by 3x3 with stride 1 and padding 1, add, and clamp below at 0; for inference.

    Relative root mean square error against the exact result, with random maps and filters of unit
    gain, grows with the square root of the number of channels. From 64 to 512 channels it is 2e-6
    to 5e-6 in float32 with a tile of 4, and 3e-7 to 7e-7 with a tile of 2 (direct convolution:
    2e-7 to 6e-7); in bfloat16, which is summed in float32, 5e-3 for any number (direct: 3e-3).
    A value that is not finite can make every output of the tiles that read it NaN. Results do not
    depend on the number of threads; in the last bits they depend on the processor.

    Args:
        x: ``[N, C, H, W]``, float32 or bfloat16; read without a copy where it is channels-last.
        packed: From :func:`pack` with the tile and the dtype of x.
        bias: ``[O]``, floating, or ``None``.
        other: ``[N, O, H, W]``, added before ReLU, in the dtype of x; ``None`` for none.
        relu: Whether negative results become 0.
        tile: Outputs per side of a tile: 2 or 4 for float32, 2 for bfloat16.
        out_channels: O; may be left out where bias, other or out tells it.
        out: ``[N, O, H, W]``, channels-last, in the dtype of x: memory for the result. It may be
            ``other``, and is apart from the other arguments. No gradient is recorded.

    Returns:
        ``[N, O, H, W]``, channels-last, in the dtype of x; ``out`` where it is given.

    Raises:
        RuntimeError: Wrong shape, dtype, device or option.
        NotImplementedError: In the backward pass: it has no derivative.

    Example:
        >>> x, weight = torch.randn(1, 64, 20, 30), torch.randn(64, 64, 3, 3)
        >>> conv(x, pack(weight, tile=4), bias=torch.zeros(64), relu=True).shape
        torch.Size([1, 64, 20, 30])
    """
    if out is not None:
        if out_channels is not None and out.dim() == 4 and out.shape[1] != out_channels:
            raise RuntimeError(
                f"conv3x3_winograd_out: expected out of {out_channels} channels, "
                f"got {list(out.shape)}"
            )
        with torch.no_grad():
            _conv3x3_winograd_out(out, x, packed, bias, other, relu, tile)
        return out
    if out_channels is None:
        if bias is not None:
            out_channels = bias.shape[0]
        elif other is not None:
            out_channels = other.shape[1]
        else:
            raise RuntimeError(
                "conv3x3_winograd: expected out_channels, since neither bias nor other tells it"
            )
    result: Tensor = _conv3x3_winograd(x, packed, bias, other, relu, tile, out_channels)
    return result


def _fake(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    relu: bool,
    tile: int,
    out_channels: int,
) -> Tensor:
    check_conv3x3_winograd(x, packed, bias, other, tile, out_channels)
    shape = (x.shape[0], out_channels, x.shape[2], x.shape[3])
    return empty_map(x, shape, channels_last=True)


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save nothing: there is no derivative."""


def _refuse_backward(ctx: Any, grad: Tensor) -> NoReturn:
    raise NotImplementedError(
        "conv3x3_winograd: has no derivative; it is for inference. Use torch.nn.functional.conv2d "
        "where gradients are needed"
    )


_conv3x3_winograd = define_operator(
    "conv3x3_winograd",
    "(Tensor x, Tensor packed, Tensor? bias, Tensor? other, bool relu, int tile, int out_channels)"
    " -> Tensor",
    reference=reference.conv3x3_winograd,
    fake=_fake,
    backward=_refuse_backward,
    setup_context=_save_nothing,
    vmap=refuse_vmap("conv3x3_winograd: vmap is not supported; it takes a batch in one call"),
)


def _fake_out(
    out: Tensor,
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    relu: bool,
    tile: int,
) -> None:
    check_conv3x3_winograd_out(out, x, packed, bias, other, tile)


_conv3x3_winograd_out = define_operator(
    "conv3x3_winograd_out",
    "(Tensor(a!) out, Tensor x, Tensor packed, Tensor? bias, Tensor? other, bool relu, int tile)"
    " -> ()",
    reference=reference.conv3x3_winograd_out,
    fake=_fake_out,
    vmap=refuse_vmap("conv3x3_winograd_out: vmap is not supported; it takes a batch in one call"),
)
