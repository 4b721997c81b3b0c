"""Convolution 3x3 by Winograd's algorithm against exact direct convolution."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rcnn_ext import _extension, ops
from rcnn_ext.ops import conv_winograd
from rcnn_ext.reference.conv_winograd import unpack

# dtype, tile, and the relative root mean square error that the docstring states.
KINDS = [
    pytest.param(torch.float32, 4, 5e-6, id="float32-4"),
    pytest.param(torch.float32, 2, 8e-7, id="float32-2"),
    pytest.param(torch.bfloat16, 2, 5e-3, id="bfloat16-2"),
]
ISAS = _extension.instruction_sets()


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _sample(
    shape: tuple[int, int, int, int], out_channels: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a map, filters of unit gain, a bias and a map to add, all exact in the dtype."""
    source = torch.Generator().manual_seed(hash((shape, out_channels)) % 1000)
    batch_size, channels, height, width = shape
    x = torch.randn(shape, generator=source)
    weight = torch.randn(out_channels, channels, 3, 3, generator=source) / (9 * channels) ** 0.5
    bias = torch.randn(out_channels, generator=source)
    other = torch.randn(batch_size, out_channels, height, width, generator=source)
    return _last(x.to(dtype)), weight.to(dtype), bias.to(dtype), other.to(dtype)


def _direct(
    x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, relu: bool
) -> Tensor:
    """Convolve directly in float64."""
    result = functional.conv2d(
        x.double(), weight.double(), None if bias is None else bias.double(), padding=1
    )
    if other is not None:
        result = result + other.double()
    return result.relu() if relu else result


def _relative_rms(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("dtype", "tile", "tolerance"), KINDS)
@pytest.mark.parametrize(
    ("shape", "out_channels"),
    [
        ((1, 64, 20, 30), 64),
        ((2, 37, 13, 7), 53),
        ((3, 16, 5, 21), 96),
        ((1, 5, 1, 1), 3),
        ((1, 20, 2, 40), 33),
        ((1, 512, 9, 11), 70),
    ],
    ids=str,
)
def test_close_to_direct_convolution(
    dtype: torch.dtype,
    tile: int,
    tolerance: float,
    shape: tuple[int, int, int, int],
    out_channels: int,
) -> None:
    x, weight, bias, other = _sample(shape, out_channels, dtype)
    packed = conv_winograd.pack(weight, tile)
    few = x.shape[2] * x.shape[3] < 8  # too few for a mean: some sums cancel
    for isa in ISAS:
        with _extension.use_instruction_set(isa):
            for b, o, relu in ((None, None, False), (bias, None, True), (bias, other, True)):
                expected = _direct(x, weight, b, o, relu)
                runs = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    runs.append(conv_winograd.conv(x, packed, b, o, relu, tile, out_channels))
                assert _relative_rms(runs[0], expected) < tolerance * (3 if few else 1), isa
                assert runs[0].dtype == dtype
                assert runs[0].is_contiguous(memory_format=torch.channels_last)
                for run in runs[1:]:
                    assert torch.equal(run, runs[0]), isa
                assert not relu or runs[0].min() >= 0


def test_avx2_and_avx512_give_the_same_bits_in_float32() -> None:
    if ISAS[1:] != ("avx2", "avx512"):
        pytest.skip("this processor has not both")
    x, weight, bias, other = _sample((2, 40, 17, 22), 72, torch.float32)
    for tile in (2, 4):
        packed = conv_winograd.pack(weight, tile)
        results = []
        for isa in ISAS[1:]:
            with _extension.use_instruction_set(isa):
                results.append(conv_winograd.conv(x, packed, bias, other, tile=tile))
        assert torch.equal(*results)


# With few tiles the threads divide the output channels, with many the tiles.
@pytest.mark.parametrize("size", [(8, 12), (70, 90)], ids=str)
@pytest.mark.parametrize(("dtype", "tile", "tolerance"), KINDS)
def test_an_image_alone_is_that_of_a_batch(
    dtype: torch.dtype, tile: int, tolerance: float, size: tuple[int, int]
) -> None:
    x, weight, bias, other = _sample((3, 48, *size), 130, dtype)
    packed = conv_winograd.pack(weight, tile)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        whole = conv_winograd.conv(x, packed, bias, other, True, tile)
        for i in range(3):
            alone = conv_winograd.conv(
                x[i : i + 1], packed, bias, other[i : i + 1], True, tile, 130
            )
            assert torch.equal(alone[0], whole[i])


@pytest.mark.parametrize(("dtype", "tile", "tolerance"), KINDS)
def test_the_reference_is_a_direct_convolution(
    dtype: torch.dtype, tile: int, tolerance: float
) -> None:
    x, weight, bias, other = _sample((2, 21, 9, 6), 40, dtype)
    packed = conv_winograd.pack(weight, tile)
    with ops.use_backend("reference"):
        actual = conv_winograd.conv(x, packed, bias, other, True, tile)
    assert _relative_rms(actual, _direct(x, weight, bias, other, True)) < tolerance
    assert actual.is_contiguous(memory_format=torch.channels_last)
    filters = unpack(packed, tile, 21, 40)
    assert _relative_rms(filters, weight.double()) < (2e-7 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize(("dtype", "tile", "tolerance"), KINDS)
def test_layouts_of_the_inputs(dtype: torch.dtype, tile: int, tolerance: float) -> None:
    x, weight, bias, other = _sample((2, 24, 11, 14), 32, dtype)
    packed = conv_winograd.pack(weight, tile)
    expected = conv_winograd.conv(x, packed, bias, other, False, tile)
    wide = torch.zeros(2, 24, 11, 20, dtype=dtype)
    wide[..., 3:17] = x
    for given in (x.contiguous(), wide[..., 3:17]):
        assert torch.equal(
            conv_winograd.conv(given, packed, bias, _last(other), False, tile), expected
        )
    assert torch.equal(conv_winograd.conv(x, packed, bias.double(), other, False, tile), expected)


def test_integers_are_exact() -> None:
    # Small whole numbers: every product and sum is exact, so that nothing can hide in a tolerance.
    source = torch.Generator().manual_seed(1)
    x = torch.randint(-3, 4, (2, 19, 10, 13), generator=source).float()
    weight = torch.randint(-2, 3, (35, 19, 3, 3), generator=source).float()
    expected = functional.conv2d(x.double(), weight.double(), padding=1)
    for isa in ISAS:
        with _extension.use_instruction_set(isa):
            for dtype in (torch.float32, torch.bfloat16):
                packed = conv_winograd.pack(weight, 2, dtype)
                actual = conv_winograd.conv(x.to(dtype), packed, None, tile=2, out_channels=35)
                assert torch.equal(actual, expected.to(dtype)), (isa, dtype)


@pytest.mark.parametrize(("dtype", "tile", "tolerance"), KINDS)
def test_values_that_are_not_finite_stay_in_their_tiles(
    dtype: torch.dtype, tile: int, tolerance: float
) -> None:
    x, weight, bias, _ = _sample((1, 16, 24, 24), 16, dtype)
    packed = conv_winograd.pack(weight, tile)
    clean = conv_winograd.conv(x, packed, bias, None, True, tile)
    far = torch.ones(24, 24, dtype=torch.bool)
    far[4:16, 4:16] = False
    for value in (torch.nan, torch.inf):
        x[0, 3, 9, 9] = value
        for relu in (False, True):
            actual = conv_winograd.conv(x, packed, bias, None, relu, tile)
            near = actual[0, :, 8:11, 8:11]
            if value != value:
                assert near.isnan().all()  # ReLU keeps NaN
            elif not relu:
                assert not near.isfinite().any()
        assert torch.equal(actual[..., far], clean[..., far])


def test_empty_maps() -> None:
    packed = conv_winograd.pack(torch.randn(4, 3, 3, 3))
    for shape in ((0, 3, 5, 6), (2, 3, 0, 6), (2, 3, 5, 0)):
        for context in (nullcontext(), ops.use_backend("reference")):
            with context:
                result = conv_winograd.conv(torch.randn(shape), packed, torch.zeros(4))
            assert result.shape == (shape[0], 4, *shape[2:])


def _resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("needs /proc")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow() -> None:
    x, weight, bias, _ = _sample((1, 64, 40, 40), 64, torch.float32)
    packed = conv_winograd.pack(weight)
    for _ in range(20):
        conv_winograd.conv(x, packed, bias)
    before = _resident_bytes()
    for _ in range(200):
        conv_winograd.conv(x, packed, bias)
    assert _resident_bytes() - before < 2 << 20


_WITHOUT_PRODUCTS = """
import sys, torch
from rcnn_ext import _extension
from rcnn_ext.ops import conv_winograd
assert _extension.instruction_set() == sys.argv[2], _extension.instruction_set()
assert not _extension.has_bf16_products()
x, weight = torch.load(sys.argv[1])
assert not conv_winograd.can_take(weight, torch.bfloat16)
result = conv_winograd.conv(x, conv_winograd.pack(weight, 2), None, tile=2, out_channels=40)
torch.save(result, sys.argv[1])
"""


def test_bfloat16_without_the_processors_products(tmp_path) -> None:
    if not _extension.has_bf16_products():
        pytest.skip("this processor has no dot products of bfloat16")
    x, weight, _, _ = _sample((1, 30, 12, 9), 40, torch.bfloat16)
    assert conv_winograd.can_take(weight, torch.bfloat16)
    file = tmp_path / "tensors.pt"
    torch.save((x, weight), file)
    subprocess.run(
        [sys.executable, "-c", _WITHOUT_PRODUCTS, str(file), "avx512"],
        env={**os.environ, "RCNN_EXT_DISABLE_CPU_FEATURES": "avx512bf16"},
        check=True,
    )
    without = torch.load(file)
    expected = _direct(x, weight, None, None, False)
    assert _relative_rms(without, expected) < 5e-3
    packed = conv_winograd.pack(weight, 2)
    result = conv_winograd.conv(x, packed, None, tile=2, out_channels=40)
    assert _relative_rms(result, without.double()) < 2e-3


@pytest.mark.parametrize(("dtype", "tile", "tolerance"), KINDS)
def test_packed_weights_are_read_in_place(dtype: torch.dtype, tile: int, tolerance: float) -> None:
    packed = conv_winograd.pack(torch.randn(40, 20, 3, 3), tile, dtype)
    assert packed.shape == ((tile + 2) ** 2, 2, 32, 32)
    assert packed.is_contiguous()
    assert packed.untyped_storage().nbytes() == packed.nbytes


def test_can_take() -> None:
    weight = torch.randn(64, 64, 3, 3)
    fast = len(ISAS) > 1
    assert conv_winograd.can_take(weight, torch.float32) == fast
    for other in (torch.randn(8, 8, 1, 1), torch.randn(8, 8, 5, 5), torch.randn(8, 8, 3)):
        assert not conv_winograd.can_take(other, torch.float32)
    assert not conv_winograd.can_take(weight[:0], torch.float32)
    assert not conv_winograd.can_take(weight.to("meta"), torch.float32)
    for dtype in (torch.float16, torch.float64, torch.int8):
        assert not conv_winograd.can_take(weight, dtype)
    with _extension.use_instruction_set("baseline"):
        assert not conv_winograd.can_take(weight, torch.float32)
        assert not conv_winograd.can_take(weight, torch.bfloat16)


@pytest.mark.parametrize(
    ("weight", "tile", "dtype", "message"),
    [
        (torch.randn(4, 4, 1, 1), 4, None, r"weight of shape \[O, C, 3, 3\].*\[4, 4, 1, 1\]"),
        (torch.randn(0, 4, 3, 3), 4, None, r"without a 0, got \[0, 4, 3, 3\]"),
        (torch.randn(4, 4, 3, 3), 3, None, "tile of 2 or 4 for torch.float32, got 3"),
        (torch.randn(4, 4, 3, 3), 4, torch.bfloat16, "tile of 2 for torch.bfloat16, got 4"),
        (torch.randn(4, 4, 3, 3).half(), 2, None, "float32 or bfloat16, got torch.float16"),
    ],
    ids=["1x1", "empty", "tile", "tile of bfloat16", "dtype"],
)
def test_what_pack_refuses(
    weight: Tensor, tile: int, dtype: torch.dtype | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"conv_winograd.pack: expected .*{message}"):
        conv_winograd.pack(weight, tile, dtype)


def _bad_calls() -> dict[str, tuple[dict, str]]:
    x, other = torch.randn(1, 20, 6, 7), torch.randn(1, 8, 6, 7)
    packed = conv_winograd.pack(torch.randn(8, 20, 3, 3))
    return {
        "dtype": ({"x": x.half()}, "x to be float32 or bfloat16, got float16"),
        "dimensions": ({"x": x[0]}, r"x of shape \[N, C, H, W\], got \[20, 6, 7\]"),
        "no channels": ({"x": x[:, :0]}, r"at least one channel, got \[1, 0, 6, 7\]"),
        "tile": ({"tile": 3}, "a tile of 2 or 4 for float32, got 3"),
        "tile of bfloat16": ({"x": x.bfloat16()}, "a tile of 2 for bfloat16, got 4"),
        "other tile": ({"tile": 2}, r"shape \[16, 1, 32, 32\] for 20 channels, 8 output channels "),
        "channels": ({"x": x.repeat(1, 2, 1, 1)}, r"shape \[36, 1, 48, 32\] for 40 channels"),
        "out_channels": ({"bias": None, "out_channels": 40}, r"shape \[36, 2, 32, 32\]"),
        "no out_channels": ({"bias": None, "out_channels": -1}, "positive out_channels, got -1"),
        "packed dtype": ({"packed": packed.bfloat16()}, "x and packed of one dtype, got float32 "),
        "bias": ({"bias": torch.zeros(9), "out_channels": 8}, r"bias of shape \[8\], got \[9\]"),
        "bias dtype": ({"bias": torch.zeros(8).long()}, "bias to be float16, .* got int64"),
        "other": ({"other": other[..., 1:]}, r"other of shape \[1, 8, 6, 7\], got \[1, 8, 6, 6\]"),
        "other dtype": ({"other": other.double()}, "x and other of one dtype, got float32 and "),
    }


@pytest.mark.parametrize("implementation", ["native", "reference", "fake"])
@pytest.mark.parametrize("name", _bad_calls())
def test_what_conv_refuses(name: str, implementation: str) -> None:
    changes, message = _bad_calls()[name]
    arguments = {
        "x": torch.randn(1, 20, 6, 7),
        "packed": conv_winograd.pack(torch.randn(8, 20, 3, 3)),
        "bias": torch.zeros(8),
        **changes,
    }
    if implementation == "fake":
        arguments = {
            key: value.to("meta") if isinstance(value, Tensor) else value
            for key, value in arguments.items()
        }
    backend = "reference" if implementation == "reference" else "native"
    with (
        ops.use_backend(backend),
        pytest.raises(RuntimeError, match=f"conv3x3_winograd: expected .*{message}"),
    ):
        conv_winograd.conv(**arguments)


def test_out_channels_have_to_be_known() -> None:
    x, packed = torch.randn(1, 4, 6, 7), conv_winograd.pack(torch.randn(8, 4, 3, 3))
    with pytest.raises(RuntimeError, match="conv3x3_winograd: expected out_channels, since"):
        conv_winograd.conv(x, packed, None)
    assert conv_winograd.conv(x, packed, None, torch.zeros(1, 8, 6, 7)).shape == (1, 8, 6, 7)


def test_no_derivative() -> None:
    x, weight = torch.randn(1, 4, 6, 7, requires_grad=True), torch.randn(8, 4, 3, 3)
    packed = conv_winograd.pack(weight.requires_grad_())
    assert not packed.requires_grad
    result = conv_winograd.conv(x, packed, torch.zeros(8))
    with pytest.raises(NotImplementedError, match="conv3x3_winograd: has no derivative"):
        result.sum().backward()
    with torch.inference_mode():
        assert torch.equal(conv_winograd.conv(x, packed, torch.zeros(8)), result)
    out = torch.empty_like(result)
    assert not conv_winograd.conv(x, packed, torch.zeros(8), out=out).requires_grad


def test_exports() -> None:
    packed = conv_winograd.pack(torch.randn(8, 4, 3, 3))

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return conv_winograd.conv(x, packed, torch.zeros(8), relu=True)

    x = _last(torch.randn(1, 4, 9, 10))
    sizes = {"x": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    program = torch.export.export(Layer(), (x,), dynamic_shapes=sizes)
    larger = _last(torch.randn(1, 4, 17, 12))
    assert torch.equal(program.module()(larger), Layer()(larger))
