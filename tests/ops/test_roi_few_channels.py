"""The CPU paths of the RoI operators for few channels or bins: same bits as those for many."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from rcnn_ext import _extension, ops
from rcnn_ext.bench.memory import extra_bytes
from tests.helpers.samples import FLOATING, channels_last, make_rois

# Beyond the map, inverted, without extent, almost without extent, far too large, not a number.
DEGENERATE = [
    [0, -500.0, -500, -400, -400],
    [0, 60.0, 50, 20, 10],
    [0, 30.0, 20, 30, 20],
    [0, 30.0, 20, 30 + 1e-30, 20 + 1e-30],
    [0, 10.0, 10, 10.00001, 10.00001],
    [1, -1e9, -1e9, 1e9, 1e9],
    [1, 3e38, 3e38, -3e38, -3e38],
    [1, float("nan"), 0, 10, 10],
    [1, 0.0, 0, float("inf"), 10],
]


@pytest.fixture(params=_extension.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> str:
    return request.param


def _maps(dtype: torch.dtype, special: bool) -> Tensor:
    """Return maps ``[2, 20, 23, 37]`` with ties and, in some channels, special values."""
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(2, 20, 23, 37, generator=generator)
    maps[:, 1::3] = torch.randint(-1, 2, maps[:, 1::3].shape, generator=generator).float()
    maps[:, 1::3] *= -torch.ones(37)  # with zeros of both signs
    maps[:, 1::3, ::2].abs_()
    if special:
        maps[0, ::2, 5, 6] = float("nan")
        maps[1, 2::3, 11, 20] = float("inf")
        maps[1, 0, 3, 3] = -float("inf")
    return maps.to(dtype)


def _rois() -> Tensor:
    rois = make_rois(60, 2, size=150)
    rois[::3, 3:] = rois[::3, 1:3] + torch.rand(20, 2) * 12
    return torch.cat([rois, torch.tensor(DEGENERATE)])


def _assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = kinds[actual.dtype.itemsize]
    actual, expected = actual.contiguous(), expected.contiguous()
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(7).view(kind), expected.nan_to_num(7).view(kind))


@pytest.mark.parametrize("special", [False, True], ids=["finite", "special"])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (9, 28)], ids=str)
def test_roi_pool_of_few_channels(
    instruction_set: str, size: tuple[int, int], dtype: torch.dtype, special: bool
) -> None:
    maps, rois = _maps(dtype, special), _rois().to(torch.promote_types(dtype, torch.float32))
    pool = torch.ops.rcnn_ext.roi_pool
    with _extension.use_instruction_set("baseline"):
        values, pixels = pool(channels_last(maps), rois, 0.25, *size)
    with _extension.use_instruction_set(instruction_set):
        for count in (1, 2, 3, 8, 13, 16, 17, 20):
            for layout in (torch.contiguous_format, torch.channels_last):
                few = maps[:, :count].contiguous(memory_format=layout)
                actual, actual_pixels = pool(few, rois, 0.25, *size)
                _assert_same_bits(actual, values[:, :count])
                assert torch.equal(actual_pixels, pixels[:, :count])


@pytest.mark.parametrize("special", [False, True], ids=["finite", "special"])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("sampling_ratio", [1, 2, 3, 0])
@pytest.mark.parametrize("aligned", [False, True], ids=["", "aligned"])
def test_roi_align_of_few_channels(
    instruction_set: str, aligned: bool, sampling_ratio: int, dtype: torch.dtype, special: bool
) -> None:
    maps, rois = _maps(dtype, special), _rois().to(torch.promote_types(dtype, torch.float32))
    for size in ((1, 1), (2, 2), (7, 7), (3, 17)):
        options = (size, 0.25, sampling_ratio, aligned)
        # 80 channels are too many for the path of few results, and the RoIs too few to transpose
        # the map; more RoIs would.
        with _extension.use_instruction_set("baseline"):
            expected = ops.roi_align(maps.repeat(1, 4, 1, 1), rois, *options)[:, :20]
        with _extension.use_instruction_set(instruction_set):
            for count in (1, 3, 8, 13, 16):
                actual = ops.roi_align(maps[:, :count].contiguous(), rois, *options)
                _assert_same_bits(actual, expected[:, :count])
                # From 16 channels on, channels-last maps have sums of another order.
                if count in (3, 8, 13):
                    actual = ops.roi_align(channels_last(maps[:, :count]), rois, *options)
                    assert actual.is_contiguous(memory_format=torch.channels_last)
                    _assert_same_bits(actual, expected[:, :count])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_gradient_of_roi_pool_where_most_pixels_have_none(
    instruction_set: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    maps = torch.randn(2, 5, 60, 70).to(dtype).contiguous(memory_format=layout)
    rois = make_rois(20, 2, size=200)
    rois[1] = rois[0]  # some pixels have several terms
    gradient = torch.randint(-64, 64, (20, 5, 2, 2)).to(dtype)

    def backward(features: Tensor, dtype: torch.dtype) -> Tensor:
        features = features.to(dtype).requires_grad_()
        with _extension.use_instruction_set(instruction_set):
            pooled = ops.roi_pool(features, rois.to(torch.promote_types(dtype, torch.float32)), 2)
            return torch.autograd.grad(pooled, features, gradient.to(dtype))[0]

    # Whole numbers add up exactly.
    assert torch.equal(backward(maps, dtype), backward(maps, torch.float64).to(dtype))


@pytest.mark.parametrize("operator", [ops.roi_pool, ops.roi_align])
@pytest.mark.parametrize("channels", [1, 3])
def test_memory_does_not_grow_with_the_map(operator, channels: int) -> None:
    maps = torch.randn(1, channels, 1600, 1200)  # 7 MiB per channel
    rois = make_rois(128, 1, size=1100)
    for features in (maps, channels_last(maps)) if channels > 1 else (maps,):
        operator(features, rois, 28)
        call = functools.partial(operator, features, rois, 28)
        extra = extra_bytes(call, torch.device("cpu"))
        if extra is None:
            pytest.skip("this system does not tell the peak of memory")
        assert extra < 6 << 20
