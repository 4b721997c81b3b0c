"""The CPU paths of the RoI operators for few channels or bins: same bits as those for many."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from rcnn_ext import _extension, ops
from rcnn_ext.bench.memory import extra_bytes
from tests.helpers.samples import FLOATING, assert_near, channels_last, make_rois

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


def _gradient_of_roi_align(
    upstream: Tensor, rois: Tensor, sampling_ratio: int, layout: torch.memory_format
) -> Tensor:
    """Return the gradient of maps ``[2, C, 23, 37]``; upstream: ``[K, C, PH, PW]``."""
    _, channels, *size = upstream.shape
    channels_last = layout == torch.channels_last
    gradient: Tensor = torch.ops.rcnn_ext.roi_align_backward(
        upstream, rois, 0.25, *size, 2, channels, 23, 37, sampling_ratio, True, channels_last
    )
    assert gradient.is_contiguous(memory_format=layout)
    return gradient


@functools.cache
def _rois_for_gradient(count: int) -> Tensor:
    if count == 69:
        return _rois()
    rois = make_rois(600, 2, size=150)  # of many pixels per bin, and of a few
    rois[::3, 3:] = (
        rois[::3, 1:3] + torch.rand(200, 2, generator=torch.Generator().manual_seed(4)) * 12
    )
    return rois[:count]


@functools.cache
def _gradient_of_many_channels(
    count: int, size: tuple[int, int], sampling_ratio: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return upstream and gradient of 80 channels, for which no path for few is taken."""
    source = torch.Generator().manual_seed(5)
    # Powers of two, which half types hold too.
    upstream = 2.0 ** torch.randint(-2, 3, (count, 80, *size), generator=source)
    rois = _rois_for_gradient(count).to(dtype)
    return upstream, _gradient_of_roi_align(
        upstream.to(dtype), rois, sampling_ratio, torch.contiguous_format
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("sampling_ratio", [1, 2, 0])
@pytest.mark.parametrize("count", [0, 1, 69, 600])
def test_gradient_of_roi_align_of_few_channels(
    count: int, sampling_ratio: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    rois = _rois_for_gradient(count).to(wide)
    for size in ((1, 1), (2, 3), (7, 7)):
        upstream, expected = _gradient_of_many_channels(count, size, sampling_ratio, wide)
        for channels in (1, 3, 7, 8, 15, 16, 17):
            few = upstream[:, :channels].to(dtype).contiguous(memory_format=layout)
            actual = _gradient_of_roi_align(few, rois, sampling_ratio, layout)
            # Sums of up to some hundreds of terms, none of them negative.
            assert_near(actual / 64, expected[:, :channels] / 64)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 12])
def test_gradient_of_roi_align_is_special_where_that_of_many_channels_is(
    layout: torch.memory_format, channels: int
) -> None:
    rois = _rois()
    for special in (float("nan"), float("inf")):
        for size in ((1, 1), (2, 2), (3, 3)):
            upstream = torch.ones(len(rois), 80, *size)
            upstream[::7, :, -1, 0] = special
            expected = _gradient_of_roi_align(upstream, rois, 2, torch.contiguous_format)
            few = upstream[:, :channels].contiguous(memory_format=layout)
            actual = _gradient_of_roi_align(few, rois, 2, layout)
            assert not expected[:, :channels].isfinite().all()
            assert expected[:, :channels].isfinite().any()
            assert_near(actual / 64, expected[:, :channels] / 64)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (7, 7)], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 12])
def test_gradient_of_few_channels_has_the_same_bits_everywhere(
    channels: int, size: tuple[int, int], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    rois = torch.cat([_rois(), make_rois(200, 2, size=150)])
    rois = rois.to(torch.promote_types(dtype, torch.float32))
    upstream = torch.randn(len(rois), channels, *size).to(dtype)
    upstream = upstream.contiguous(memory_format=layout)
    before = torch.get_num_threads()
    results = []
    try:
        for name in _extension.instruction_sets():
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                with _extension.use_instruction_set(name):
                    results.append(_gradient_of_roi_align(upstream, rois, 2, layout))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        _assert_same_bits(result, results[0])


def test_gradient_of_roi_align_over_levels_of_few_channels() -> None:
    maps = [torch.randn(2, 3, side, 2 * side, requires_grad=True) for side in (40, 20, 10)]
    rois = make_rois(80, 2, size=160)
    upstream = torch.randn(80, 3, 2, 2)
    options = (rois, 2, [0.25, 0.125, 0.0625], 2)
    pooled = ops.multiscale_roi_align(maps, *options, canonical_scale=60.0)
    actual = torch.autograd.grad(pooled, maps, upstream)
    many = [features.detach().repeat(1, 27, 1, 1).requires_grad_() for features in maps]
    pooled = ops.multiscale_roi_align(many, *options, canonical_scale=60.0)
    expected = torch.autograd.grad(pooled, many, upstream.repeat(1, 27, 1, 1))
    for few, all_channels in zip(actual, expected, strict=True):
        assert few.abs().sum() > 0
        assert_near(few, all_channels[:, :3])


def test_gradient_of_roi_align_in_a_half_type_needs_a_tile_at_most() -> None:
    maps = torch.zeros(1, 1, 1600, 1200, dtype=torch.float16, requires_grad=True)  # 7 MiB in floats
    rois = make_rois(128, 1, size=1100)
    pooled = ops.roi_align(maps, rois, 2, 1.0, 2)
    upstream = torch.ones_like(pooled)

    def backward() -> Tensor:
        gradient: Tensor = torch.autograd.grad(pooled, maps, upstream, retain_graph=True)[0]
        return gradient

    backward()
    extra = extra_bytes(backward, torch.device("cpu"))
    if extra is None:
        pytest.skip("this system does not tell the peak of memory")
    assert extra < 3 << 20


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 16, 17])
def test_gradient_of_roi_pool(
    channels: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    maps = torch.randn(2, channels, 20, 30).to(dtype).contiguous(memory_format=layout)
    rois = make_rois(60, 2, size=40)
    upstream = torch.randint(-8, 8, (60, channels, 3, 3)).to(dtype)

    def backward(features: Tensor, upstream: Tensor) -> Tensor:
        features = features.requires_grad_()
        wide = torch.promote_types(features.dtype, torch.float32)
        pooled = ops.roi_pool(features, rois.to(wide), 3)
        gradient: Tensor = torch.autograd.grad(pooled, features, upstream)[0]
        return gradient

    # Whole numbers add up exactly.
    channel_by_channel = [
        backward(maps[:, c : c + 1].double(), upstream[:, c : c + 1].double())
        for c in range(channels)
    ]
    assert torch.equal(backward(maps, upstream), torch.cat(channel_by_channel, dim=1).to(dtype))


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
