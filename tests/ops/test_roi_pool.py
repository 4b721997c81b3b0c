from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers import brute_force
from tests.helpers.backends import Backend
from tests.helpers.peer import torchvision
from tests.helpers.samples import FLOATING, WIDE, assert_near, channels_last, make_rois


def _pool(features: Tensor, rois: list, output_size: int | tuple[int, int]) -> list:
    boxes = torch.tensor(rois, dtype=torch.float32, device=features.device)
    return ops.roi_pool(features, boxes, output_size)[0, 0].tolist()


def test_by_hand(backend: Backend) -> None:
    features = torch.arange(36.0, device=backend.device).view(1, 1, 6, 6)
    # Pixels 1 to 4 in both directions, both ends included: 4x4 pixels in 2x2 bins.
    assert _pool(features, [[0, 1, 1, 4, 4]], 2) == [[14, 16], [26, 28]]
    # 5 pixels in 2 bins of 2.5, of which each has the pixel in the middle.
    assert _pool(features, [[0, 0, 0, 4, 4]], 2) == [[14, 16], [26, 28]]
    # One pixel in 2x2 bins.
    assert _pool(features, [[0, 3, 2, 3, 2]], 2) == [[15, 15], [15, 15]]
    # Left of the map there is nothing: 0, not the border.
    assert _pool(features, [[0, -4, 0, -1, 3]], 2) == [[0, 0], [0, 0]]
    assert _pool(features, [[0, -2, 0, 1, 1]], 2) == [[0, 1], [0, 7]]
    # An inverted RoI counts as one pixel at its start.
    assert _pool(features, [[0, 4, 4, 1, 1]], 1) == [[28]]


def test_halves_round_away_from_zero(backend: Backend) -> None:
    features = torch.arange(36.0, device=backend.device).view(1, 1, 6, 6)
    assert _pool(features, [[0, 0.5, 0, 0.5, 0]], 1) == [[1]]
    assert _pool(features, [[0, 1.5, 0, 1.5, 0]], 1) == [[2]]
    assert _pool(features, [[0, 2.5, 0, 2.5, 0]], 1) == [[3]]
    assert _pool(features, [[0, 2.49, 0, 2.49, 0]], 1) == [[2]]
    assert _pool(features, [[0, -0.5, 0, -0.5, 0]], 1) == [[0]]  # -1: outside
    assert _pool(features + 1, [[0, -0.49, 0, -0.49, 0]], 1) == [[1]]  # 0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("output_size", [(1, 1), (3, 2), (9, 10)], ids=str)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_equals_brute_force(
    backend: Backend, dtype: torch.dtype, output_size: tuple[int, int], layout: str
) -> None:
    features = torch.randn(2, 3, 9, 7).to(dtype)
    features[1] = torch.randint(0, 3, (3, 9, 7))  # with ties
    rois = make_rois(8, 2, size=36)
    rois[0, 1:] = torch.tensor([-20.0, -8, 20, 60])
    rois[1, 1:] = torch.tensor([30.0, 30, 10, 10])
    expected, argmax = brute_force.roi_pool(features, rois, output_size, 0.25)
    grad = torch.randn(expected.shape).to(dtype)
    expected_grad = brute_force.roi_pool_backward(grad, argmax, rois, features.shape)

    input = features.to(backend.device)
    if layout == "channels_last":
        input = channels_last(input)
    input.requires_grad_()
    result = ops.roi_pool(input, rois.to(backend.device), output_size, 0.25)
    assert result.dtype == dtype
    assert torch.equal(result.cpu().double(), expected)
    result.backward(grad.to(backend.device))
    assert input.grad is not None
    assert input.grad.dtype == dtype
    assert_near(input.grad, expected_grad)


@pytest.mark.parametrize("output_size", [7, (3, 14), (1, 21)], ids=str)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_equals_torchvision(
    backend: Backend, dtype: torch.dtype, output_size: int | tuple[int, int]
) -> None:
    input = torch.randn(2, 40, 20, 30, dtype=dtype, requires_grad=True)
    rois = make_rois(40, 2, size=128).to(dtype)
    rois[:4, 1:] = torch.tensor(  # outside, partly outside, inverted, around everything
        [[-50, -50, -20, -9], [-20, 60, 30, 100], [60, 50, 20, 10], [-99, -99, 250, 250]]
    )
    expected = torchvision.ops.roi_pool(input, rois, output_size, 0.25)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    mine = input.detach().to(backend.device).requires_grad_()
    result = ops.roi_pool(mine, rois.to(backend.device), output_size, 0.25)
    assert torch.equal(result.cpu(), expected)
    result.backward(grad.to(backend.device))
    assert input.grad is not None
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad.cpu(), input.grad, rtol=1e-5, atol=1e-5)


def test_gradcheck(backend: Backend) -> None:
    # Distinct values, further apart than the differences that gradcheck takes.
    values = torch.randperm(2 * 1 * 4 * 3, dtype=torch.float64).view(2, 1, 4, 3) / 10
    input = values.to(backend.device).requires_grad_()
    rois = make_rois(3, 2, size=5).double().to(backend.device)

    def function(x: Tensor) -> Tensor:
        return ops.roi_pool(x, rois, (2, 1), 0.9)

    assert torch.autograd.gradcheck(function, input)
    assert torch.autograd.gradgradcheck(function, input)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_first_of_equal_maxima_gets_the_gradient(backend: Backend, layout: str) -> None:
    features = torch.ones(1, 2, 6, 6, device=backend.device)
    if layout == "channels_last":
        features = channels_last(features)
    features.requires_grad_()
    rois = torch.tensor([[0.0, 1, 2, 4, 5]], device=backend.device)
    ops.roi_pool(features, rois, 2).sum().backward()
    expected = torch.zeros(6, 6, device=backend.device)
    expected[2, 1] = expected[2, 3] = expected[4, 1] = expected[4, 3] = 1
    assert features.grad is not None
    assert torch.equal(features.grad[0, 0], expected)
    assert torch.equal(features.grad[0, 1], expected)


def test_gradients_of_bins_and_rois_add_up(backend: Backend) -> None:
    features = torch.zeros(1, 1, 4, 4, device=backend.device)
    features[0, 0, 1, 1] = 5
    features.requires_grad_()
    # Nine bins of one pixel, ten RoIs; and one RoI that has no pixel.
    rois = torch.tensor([[0.0, 1, 1, 1, 1]] * 10 + [[0, -9, -9, -8, -8]], device=backend.device)
    result = ops.roi_pool(features, rois, 3)
    assert not result[10].any()
    result.sum().backward()
    assert features.grad is not None
    assert features.grad[0, 0, 1, 1] == 90
    assert features.grad.sum() == 90


def test_nan_is_the_maximum(backend: Backend) -> None:
    # As in torch.max and max_pool2d; torchvision's roi_pool skips it, and a diverged model goes on.
    features = torch.randn(1, 1, 6, 6)
    features[0, 0, 2, 3] = math.nan
    features[0, 0, 4, 4] = math.nan
    features = features.to(backend.device).requires_grad_()
    whole = torch.tensor([[0.0, 0, 0, 5, 5]], device=backend.device)
    pooled = ops.roi_pool(features, whole, 1)
    assert pooled.isnan().all()
    pooled.sum().backward()
    assert features.grad is not None
    assert features.grad.nonzero().tolist() == [[0, 0, 2, 3]]
    assert not ops.roi_pool(features, torch.tensor([[0.0, 0, 0, 2, 5]]).to(whole), 1).isnan().any()


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_bins_of_minus_infinity(backend: Backend, dtype: torch.dtype) -> None:
    features = torch.full((1, 1, 4, 4), -math.inf, dtype=dtype, device=backend.device)
    features.requires_grad_()
    rois = torch.tensor([[0.0, 0, 0, 3, 3]], device=backend.device)
    result = ops.roi_pool(features, rois, 2)
    assert result.isneginf().all()
    result.sum().backward()
    assert features.grad is not None
    assert features.grad.sum() == 4


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_large_negative_values(backend: Backend, dtype: torch.dtype) -> None:
    lowest = torch.finfo(dtype).min
    features = torch.full((1, 1, 4, 4), lowest, dtype=dtype, device=backend.device)
    result = ops.roi_pool(features, torch.tensor([[0.0, 0, 0, 3, 3]], device=backend.device), 2)
    assert result.eq(lowest).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e10, -1e10, 1e30, 3e38])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_rois_beyond_any_map(backend: Backend, value: float, dtype: torch.dtype) -> None:
    rois = torch.tensor([[0.0, 1, 1, 3, 3]]).repeat(6, 1)
    for column in range(1, 5):
        rois[column, column] = value
    rois[5, 1:] = value
    features = torch.ones(1, 2, 4, 4, dtype=dtype, device=backend.device, requires_grad=True)
    result = ops.roi_pool(features, rois.to(backend.device), 2)
    assert result[0].eq(1).all()
    assert not result[5].any()
    if not math.isfinite(value):
        assert not result[1:].any()
    assert ((result == 0) | (result == 1)).all()
    (grad,) = torch.autograd.grad(result.sum(), features)
    assert grad.sum() == result.sum()


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 2)], ids=str)
def test_small_maps_and_more_bins_than_pixels(backend: Backend, shape: tuple[int, int]) -> None:
    features = torch.randn(1, 2, *shape)
    rois = torch.tensor([[0.0, 0, 0, 1, 1], [0, -0.4, -0.6, 2.3, 1.7], [0, -3, -3, 9, 9]])
    expected, _ = brute_force.roi_pool(features, rois, (16, 20))
    result = ops.roi_pool(features.to(backend.device), rois.to(backend.device), (16, 20))
    assert torch.equal(result.cpu().double(), expected)


def test_maps_without_pixels(backend: Backend) -> None:
    rois = torch.tensor([[0.0, -2, -2, 2, 2]], device=backend.device)
    for shape in ((0, 5), (5, 0), (0, 0)):
        features = torch.empty(1, 2, *shape, device=backend.device, requires_grad=True)
        result = ops.roi_pool(features, rois, 2)
        assert torch.equal(result, torch.zeros(1, 2, 2, 2, device=backend.device))
        result.sum().backward()
        assert features.grad is not None
        assert features.grad.shape == features.shape
