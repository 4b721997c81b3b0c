from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rcnn_ext import ops
from tests.helpers import brute_force
from tests.helpers.backends import Backend
from tests.helpers.peer import torchvision
from tests.helpers.samples import (
    FLOATING,
    HALF,
    WIDE,
    assert_near,
    channels_last,
    make_boxes,
    make_rois,
)

aligned_or_not = pytest.mark.parametrize("aligned", [False, True], ids=["legacy", "aligned"])
sampling_ratios = pytest.mark.parametrize("sampling_ratio", [-1, 0, 1, 2, 3])


def test_by_hand(backend: Backend) -> None:
    # A 5x5 map of 0 to 24 is the plane 5 y + x, which bilinear interpolation gives back. The RoI of
    # 2x2 pixels at (1, 1) has bins of half a pixel, one sample in the middle of each, the first at
    # (1.25, 1.25) where coordinates are pixel centers, and half a pixel before where they are
    # corners.
    features = torch.arange(25.0, device=backend.device).view(1, 1, 5, 5)
    rois = torch.tensor([[0.0, 1, 1, 3, 3]], device=backend.device)
    legacy = ops.roi_align(features, rois, 4)[0, 0]
    expected = [
        [7.5, 8.0, 8.5, 9.0],
        [10.0, 10.5, 11.0, 11.5],
        [12.5, 13.0, 13.5, 14.0],
        [15.0, 15.5, 16.0, 16.5],
    ]
    assert legacy.tolist() == expected
    aligned = ops.roi_align(features, rois, 4, aligned=True)[0, 0]
    assert torch.equal(aligned, legacy - 3)  # half a row and half a column
    # The average over a bin of a plane is its middle, however many samples.
    for ratio in (0, 1, 2, 5):
        two = ops.roi_align(features, rois, 2, sampling_ratio=ratio)[0, 0]
        assert_near(two, torch.tensor([[9.0, 10.0], [14.0, 15.0]]))


def test_legacy_rois_are_at_least_a_pixel(backend: Backend) -> None:
    features = torch.arange(25.0, device=backend.device).view(1, 1, 5, 5)
    point = torch.tensor([[0.0, 1, 1, 1, 1]], device=backend.device)
    # One pixel from (1, 1) to (2, 2): its middle is (1.5, 1.5).
    assert ops.roi_align(features, point, 1).item() == 9
    # Aligned, the RoI has no extent and one sample, if one is asked for, at (0.5, 0.5).
    assert ops.roi_align(features, point, 1, sampling_ratio=1, aligned=True).item() == 3
    assert ops.roi_align(features, point, 1, aligned=True).item() == 0


@functools.cache  # the slowest part of these tests, the same for every backend
def _brute_force(dtype: torch.dtype, sampling_ratio: int, aligned: bool) -> tuple[Tensor, ...]:
    """Features, RoIs, result, gradient of the result, gradient of the features."""
    generator = torch.Generator().manual_seed(sampling_ratio + 1)
    features = torch.randn(2, 3, 9, 7, generator=generator).to(dtype)
    rois = make_rois(5, 2, size=36, seed=sampling_ratio + 1)
    grad = torch.randn(5, 3, 3, 2, generator=generator).to(dtype)
    options = (0.25, sampling_ratio, aligned)
    result = brute_force.roi_align(features, rois, (3, 2), *options)
    input_grad = brute_force.roi_align_backward(grad, rois, features.shape, *options)
    return features, rois, result, grad, input_grad


@aligned_or_not
@sampling_ratios
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_equals_brute_force(
    backend: Backend, dtype: torch.dtype, layout: str, sampling_ratio: int, aligned: bool
) -> None:
    features, rois, expected, grad, expected_grad = _brute_force(dtype, sampling_ratio, aligned)
    input = features.clone().to(backend.device)
    if layout == "channels_last":
        input = channels_last(input)
    input.requires_grad_()
    result = ops.roi_align(
        input, rois.to(backend.device), (3, 2), 0.25, sampling_ratio, aligned=aligned
    )
    assert result.dtype == dtype
    assert_near(result, expected)
    result.backward(grad.to(backend.device))
    assert input.grad is not None
    assert input.grad.dtype == dtype
    assert_near(input.grad, expected_grad)


@aligned_or_not
@sampling_ratios
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_equals_torchvision(
    backend: Backend, dtype: torch.dtype, sampling_ratio: int, aligned: bool
) -> None:
    input = torch.randn(2, 40, 20, 30, dtype=dtype, requires_grad=True)
    rois = make_rois(30, 2, size=128).to(dtype)
    rois[:4, 1:] = torch.tensor(  # outside, partly outside, inverted, around everything
        [[-50, -50, -20, -9], [-20, 60, 30, 100], [60, 50, 20, 10], [-99, -99, 250, 250]]
    )
    options = (7, 0.25, sampling_ratio, aligned)
    expected = torchvision.ops.roi_align(input, rois, *options)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    mine = input.detach().to(backend.device).requires_grad_()
    result = ops.roi_align(mine, rois.to(backend.device), *options)
    result.backward(grad.to(backend.device))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(result.cpu(), expected, **tolerance)
    assert input.grad is not None
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad.cpu(), input.grad, **tolerance)


@pytest.mark.parametrize("ratio", [1, 2])
def test_equals_grid_sample(backend: Backend, ratio: int) -> None:
    features = torch.randn(1, 4, 16, 12, device=backend.device)
    x1, y1, x2, y2 = 1.7, 2.3, 10.1, 13.9  # inside, so that borders play no part
    bins = 6
    fractions = (torch.arange(bins * ratio, device=backend.device) + 0.5) / (bins * ratio)
    ys, xs = y1 + fractions * (y2 - y1), x1 + fractions * (x2 - x1)
    # grid_sample without align_corners takes -1 and 1 for the borders, as an aligned RoI has them.
    grid_y, grid_x = torch.meshgrid(ys / 16 * 2 - 1, xs / 12 * 2 - 1, indexing="ij")
    samples = F.grid_sample(features, torch.stack([grid_x, grid_y], -1)[None], align_corners=False)
    expected = F.avg_pool2d(samples, ratio)
    boxes = [torch.tensor([[x1, y1, x2, y2]], device=backend.device)]
    result = ops.roi_align(features, boxes, bins, sampling_ratio=ratio, aligned=True)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@aligned_or_not
def test_gradcheck(backend: Backend, aligned: bool) -> None:
    input = torch.randn(2, 1, 4, 3, dtype=torch.float64, device=backend.device, requires_grad=True)
    rois = make_rois(3, 2, size=5).double().to(backend.device)

    def function(x: Tensor) -> Tensor:
        return ops.roi_align(x, rois, (2, 1), 0.9, 0, aligned)

    assert torch.autograd.gradcheck(function, input)
    assert torch.autograd.gradgradcheck(function, input)


def test_backward_is_the_adjoint(backend: Backend) -> None:
    x = torch.randn(2, 5, 12, 10, dtype=torch.float64, device=backend.device, requires_grad=True)
    rois = make_rois(20, 2, size=40).double().to(backend.device)
    result = ops.roi_align(x, rois, (5, 7), 0.25, aligned=True)
    grad = torch.randn_like(result)
    result.backward(grad)
    assert x.grad is not None
    torch.testing.assert_close((result * grad).sum(), (x * x.grad).sum())


def test_linear(backend: Backend) -> None:
    a, b = torch.randn(2, 1, 3, 8, 8, dtype=torch.float64, device=backend.device)
    rois = make_rois(6, 1, size=8).to(backend.device)
    combined = ops.roi_align(2 * a - 3 * b, rois, 3)
    torch.testing.assert_close(
        combined, 2 * ops.roi_align(a, rois, 3) - 3 * ops.roi_align(b, rois, 3)
    )


def test_weights_of_a_bin_sum_to_one_inside(backend: Backend) -> None:
    ones = torch.ones(1, 1, 10, 10, device=backend.device)
    rois = torch.cat([torch.zeros(40, 1), make_boxes(40, size=9)], dim=1).to(backend.device)
    for ratio in (-1, 1, 2, 3):
        for aligned in (False, True):
            result = ops.roi_align(ones, rois, 3, 1.0, ratio, aligned)
            torch.testing.assert_close(result, torch.ones_like(result))


def test_moves_with_the_map(backend: Backend) -> None:
    features = torch.zeros(1, 2, 24, 24, device=backend.device)
    features[..., 4:14, 4:14] = torch.randn(1, 2, 10, 10)
    rois = torch.cat([torch.zeros(8, 1), make_boxes(8, size=8) + 5], dim=1).to(backend.device)
    moved = rois + torch.tensor([0.0, 6, 3, 6, 3], device=backend.device)
    expected = ops.roi_align(features, rois, 4)
    shifted = torch.roll(features, (3, 6), (2, 3))
    assert_near(ops.roi_align(shifted, moved, 4), expected)


@pytest.mark.parametrize("output_size", [(1, 1), (2, 9), (19, 17)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 2)], ids=str)
@aligned_or_not
def test_small_maps_and_more_bins_than_pixels(
    backend: Backend, shape: tuple[int, int], output_size: tuple[int, int], aligned: bool
) -> None:
    features = torch.randn(1, 2, *shape, requires_grad=True)
    rois = torch.tensor(
        [[0.0, 0, 0, 1, 1], [0, -0.5, -0.5, 2.3, 1.7], [0, 0.2, 0.1, 0.3, 0.4], [0, -3, -3, 9.1, 9]]
    )
    expected = brute_force.roi_align(features, rois, output_size, 1.0, 0, aligned)
    mine = features.detach().to(backend.device).requires_grad_()
    result = ops.roi_align(mine, rois.to(backend.device), output_size, 1.0, 0, aligned)
    assert_near(result, expected)
    result.sum().backward()
    assert mine.grad is not None
    ones = torch.ones(result.shape)
    expected_grad = brute_force.roi_align_backward(ones, rois, features.shape, 1.0, 0, aligned)
    torch.testing.assert_close(mine.grad.cpu().double(), expected_grad, rtol=1e-5, atol=1e-4)


ODD = {
    "outside": [[-9, -9, -4, -4], [20, 20, 30, 30], [-9, 2, -4, 5], [2, 20, 5, 30]],
    "partly outside": [[-3, -3, 4, 4], [4, 4, 13, 11], [-3, 2, 12, 3], [-0.9, -1, 0.2, 0.3]],
    "on the border": [[-1, -1, 0, 0], [8, 6, 9, 7], [0, 0, 8, 6], [7, 5, 9, 7], [-2, -2, -1, -1]],
    "inverted": [[5, 4, 2, 1], [2, 4, 5, 1], [5, 1, 2, 4]],
    "without extent": [[3, 3, 3, 3], [3, 1, 3, 5], [1, 3, 5, 3], [0, 0, 0, 0]],
    "large": [[-30, -30, 40, 40], [-100, 1, 100, 2]],
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@aligned_or_not
def test_odd_rois(backend: Backend, case: str, sampling_ratio: int, aligned: bool) -> None:
    features = torch.randn(1, 2, 6, 8)
    boxes = torch.tensor(ODD[case], dtype=torch.float32)
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
    expected = brute_force.roi_align(features, rois, (2, 3), 1.0, sampling_ratio, aligned)
    mine = features.to(backend.device).requires_grad_()
    result = ops.roi_align(mine, rois.to(backend.device), (2, 3), 1.0, sampling_ratio, aligned)
    assert_near(result, expected)
    if case == "outside":
        assert not result.any()
    grad = torch.randn(result.shape)
    result.backward(grad.to(backend.device))
    expected_grad = brute_force.roi_align_backward(
        grad, rois, features.shape, 1.0, sampling_ratio, aligned
    )
    assert mine.grad is not None
    assert_near(mine.grad, expected_grad)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
@pytest.mark.parametrize("size", [1e6, 1e9, 1e12, 1e20, 1e30, 3e38])
@aligned_or_not
def test_huge_rois(
    backend: Backend, size: float, sampling_ratio: int, aligned: bool, dtype: torch.dtype
) -> None:
    # A bin has up to 1e60 samples, of which the map sees next to none, or one if that is all.
    features = torch.ones(1, 1, 6, 8, dtype=dtype, device=backend.device, requires_grad=True)
    rois = torch.tensor(
        [[0, -size, -size, size, size], [0, 0, 0, size, size], [0, -size, 1, size, 3]],
        device=backend.device,
    )
    result = ops.roi_align(features, rois, 2, 1.0, sampling_ratio, aligned)
    assert (result >= 0).all()
    assert (result <= 1).all()
    if sampling_ratio < 0:
        assert (result < 1e-4).all()
    result.sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@aligned_or_not
def test_rois_that_are_not_finite_give_zeros(
    backend: Backend, value: float, dtype: torch.dtype, aligned: bool
) -> None:
    rois = torch.tensor([[0.0, 1, 1, 3, 3]]).repeat(6, 1)
    for column in range(1, 5):
        rois[column, column] = value
    rois[5, 1:] = value
    if not aligned and value == -math.inf:
        rois[3:5, 1:3] = value  # an end before the start is no more than inverted: one pixel
    for ratio in (-1, 2):
        features = torch.ones(1, 2, 4, 4, dtype=dtype, device=backend.device, requires_grad=True)
        result = ops.roi_align(features, rois.to(backend.device), 2, 1.0, ratio, aligned)
        assert not result[1:].any()
        assert result[0].eq(1).all()
        (grad,) = torch.autograd.grad(result[1:].sum(), features)
        assert not grad.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_pixel_reaches_only_the_bins_that_sample_it(
    backend: Backend, value: float, layout: str
) -> None:
    features = torch.randn(2, 2, 8, 8, device=backend.device)
    rois = torch.tensor([[0.0, 0.1, 0.1, 5.9, 5.9], [1, 0.1, 0.1, 5.9, 5.9]], device=backend.device)
    expected = ops.roi_align(features, rois, 2)
    features[0, 0, 4, 4] = value
    result = ops.roi_align(
        channels_last(features) if layout == "channels_last" else features, rois, 2
    )
    hit = torch.zeros(2, 2, 2, 2, dtype=torch.bool, device=backend.device)
    hit[0, 0, 1, 1] = True
    torch.testing.assert_close(result[~hit], expected[~hit])
    torch.testing.assert_close(result[hit], torch.full_like(result[hit], value), equal_nan=True)


def test_a_gradient_reaches_only_the_pixels_that_were_sampled(backend: Backend) -> None:
    features = torch.randn(1, 2, 8, 8, device=backend.device, requires_grad=True)
    rois = torch.tensor([[0.0, 0.1, 0.1, 5.9, 5.9], [0, 1, 1, 7, 7]], device=backend.device)
    grad = torch.ones(2, 2, 2, 2, device=backend.device)
    result = ops.roi_align(features, rois, 2)
    (expected,) = torch.autograd.grad(result, features, grad, retain_graph=True)
    grad[0, 0, 0, 0] = math.nan  # samples up to (2.9, 2.9)
    (actual,) = torch.autograd.grad(result, features, grad)
    assert actual[0, 0, :3, :3].isnan().all()
    torch.testing.assert_close(actual[0, 0, 4:, :], expected[0, 0, 4:, :])
    torch.testing.assert_close(actual[0, 0, :, 4:], expected[0, 0, :, 4:])
    torch.testing.assert_close(actual[0, 1], expected[0, 1])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_features_with_float32_rois(backend: Backend, dtype: torch.dtype) -> None:
    # RoIs in a half type would be off by a pixel and more out here.
    features = torch.randn(1, 3, 10, 600).to(dtype)
    rois = torch.tensor([[0, 515.3, 1.2, 541.7, 8.1], [0, 300.55, 2, 333.45, 9.9]])
    expected = brute_force.roi_align(features, rois, (2, 2), 1.0, 2, True)
    result = ops.roi_align(
        features.to(backend.device), rois.to(backend.device), 2, 1.0, 2, aligned=True
    )
    torch.testing.assert_close(
        result.cpu().double(), expected, rtol=torch.finfo(dtype).eps, atol=2e-4
    )


def test_a_sampling_ratio_that_would_hang_is_refused(backend: Backend) -> None:
    features = torch.ones(1, 1, 4, 4, device=backend.device)
    rois = torch.tensor([[0.0, 0, 0, 3, 3]], device=backend.device)
    assert_near(ops.roi_align(features, rois, 1, 1.0, 1000), torch.ones(1, 1, 1, 1))
    with pytest.raises(RuntimeError, match="roi_align: .* at most 4096, got 1000000000"):
        ops.roi_align(features, rois, 1, 1.0, 10**9)
