"""Winograd's convolution into memory that is there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from rcnn_ext.ops import conv_winograd
from tests.ops.test_conv_winograd import KINDS, _last, _sample


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize(("dtype", "tile", "tolerance"), KINDS)
def test_results_in_memory_that_is_there(
    dtype: torch.dtype, tile: int, tolerance: float, implementation: str
) -> None:
    x, weight, bias, other = _sample((2, 20, 33, 29), 40, dtype)
    packed, other = conv_winograd.pack(weight, tile), _last(other)
    with ops.use_backend(implementation):
        for added in (None, other):
            expected = conv_winograd.conv(x, packed, bias, added, True, tile, 40)
            out = torch.full_like(expected, torch.nan)
            assert conv_winograd.conv(x, packed, bias, added, True, tile, 40, out=out) is out
            assert torch.equal(out, expected)
        memory = other.clone()
        result = conv_winograd.conv(x, packed, bias, memory, True, tile, out=memory)
        assert result is memory
        assert torch.equal(memory, expected), "each number is read before its place is written"


@pytest.mark.parametrize("implementation", ["native", "reference", "fake"])
@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(8, 6, 7), r"out of shape \[N, O, H, W\], got \[8, 6, 7\]"),
        (torch.zeros(1, 8, 6, 6), r"out of shape \[1, O, 6, 7\], got \[1, 8, 6, 6\]"),
        (torch.zeros(1, 9, 6, 7), r"bias of shape \[9\], got \[8\]"),
        (torch.zeros(1, 8, 6, 7).double(), "x and out of one dtype, got float32 and float64"),
        (torch.zeros(1, 8, 6, 7), "out with channels last, without gaps"),
    ],
    ids=["dimensions", "size", "channels", "dtype", "layout"],
)
def test_what_out_refuses(out: Tensor, message: str, implementation: str) -> None:
    arguments = [
        torch.randn(1, 20, 6, 7),
        conv_winograd.pack(torch.randn(8, 20, 3, 3)),
        torch.zeros(8),
        out,
    ]
    if implementation == "fake":
        arguments = [value.to("meta") for value in arguments]
    x, packed, bias, out = arguments
    backend = "reference" if implementation == "reference" else "native"
    with (
        ops.use_backend(backend),
        pytest.raises(RuntimeError, match=f"conv3x3_winograd_out: expected {message}"),
    ):
        conv_winograd.conv(x, packed, bias, out=out)


def test_out_shares_no_memory_with_what_is_read() -> None:
    memory = torch.zeros(2, 6, 7, 32).permute(0, 3, 1, 2)
    packed, bias = conv_winograd.pack(torch.randn(32, 32, 3, 3)), torch.zeros(32)
    with pytest.raises(RuntimeError, match="conv3x3_winograd_out: expected out in other .* than x"):
        conv_winograd.conv(memory[:1], packed, bias, out=memory[:1])
    x = torch.randn(1, 32, 6, 7)
    row = torch.zeros(7 * 6 * 32 + 32)
    out, shifted = (row[i : i + 7 * 6 * 32].view(1, 6, 7, 32).permute(0, 3, 1, 2) for i in (0, 32))
    with pytest.raises(RuntimeError, match="expected out either in the memory of other or apart"):
        conv_winograd.conv(x, packed, bias, shifted, out=out)
    with pytest.raises(RuntimeError, match="expected out in other memory than bias"):
        conv_winograd.conv(x, packed, row[64:96], out=out)
