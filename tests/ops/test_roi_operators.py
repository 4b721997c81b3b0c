"""Properties common to roi_align and roi_pool: layouts, dtypes, empty inputs, batch indices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.backends import Backend
from tests.helpers.samples import FLOATING, HALF, assert_near, channels_last, make_boxes, make_rois

OPERATORS: dict[str, Callable[..., Tensor]] = {
    "roi_align": ops.roi_align,
    "roi_pool": ops.roi_pool,
}
operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def _differentiate(
    operator: Callable[..., Tensor], input: Tensor, rois: Any, grad: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Result and gradient of the input."""
    input = input.detach().requires_grad_()
    result = operator(input, rois, (3, 5), 0.25)
    # Not backward(): where a gradient is stored, PyTorch gives it the strides of the input.
    (input_grad,) = torch.autograd.grad(
        result, input, torch.ones_like(result) if grad is None else grad
    )
    return result.detach(), input_grad


@pytest.fixture
def features(backend: Backend) -> Tensor:
    return torch.randn(2, 40, 11, 13).to(backend.device)


@pytest.fixture
def rois(backend: Backend) -> Tensor:
    return make_rois(9, 2, size=52).to(backend.device)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@operators
def test_channels_last_stays_channels_last(
    backend: Backend, operator: Callable[..., Tensor], dtype: torch.dtype, rois: Tensor
) -> None:
    features = torch.randn(2, 40, 11, 13).to(backend.device, dtype)
    grad = torch.randn(9, 40, 3, 5).to(backend.device, dtype)
    expected, expected_grad = _differentiate(operator, features, rois, grad)
    assert expected.is_contiguous()
    assert expected_grad.is_contiguous()
    for upstream in (grad, channels_last(grad)):
        result, input_grad = _differentiate(operator, channels_last(features), rois, upstream)
        assert result.stride() == (40 * 15, 1, 40 * 5, 40)
        assert input_grad.stride() == (40 * 143, 1, 40 * 13, 40)
        assert_near(result, expected)
        assert_near(input_grad, expected_grad)
        _, input_grad = _differentiate(operator, features, rois, upstream)
        assert input_grad.is_contiguous()
        assert_near(input_grad, expected_grad)


@operators
def test_dense_maps_are_not_copied(native: Backend, operator: Callable[..., Tensor]) -> None:
    features = torch.randn(2, 40, 11, 13).to(native.device)
    rois = make_rois(9, 2, size=52).to(native.device)
    for input in (features, channels_last(features)):
        grad = torch.empty_like(operator(input, rois, (3, 5), 0.25)).fill_(1)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            _differentiate(operator, input, rois, grad)
        called = {event.key for event in profile.key_averages()}
        assert called & {"rcnn_ext::roi_align", "rcnn_ext::roi_pool"}
        assert not called & {"aten::clone", "aten::copy_"}, called


@operators
def test_layout_does_not_matter(
    operator: Callable[..., Tensor], features: Tensor, rois: Tensor
) -> None:
    grad = torch.randn(9, 40, 3, 5).to(features.device)
    expected, expected_grad = _differentiate(operator, features, rois, grad)
    # Every other row and column of a larger map; a transposed one; a slice of channels-last.
    sparse = torch.full((2, 40, 22, 26), math.nan, device=features.device)
    sparse[..., ::2, 1::2] = features
    transposed = features.transpose(2, 3).contiguous().transpose(2, 3)
    slices = channels_last(torch.cat([features, features], dim=1))[:, :40]
    wide_rois = torch.full((9, 8), math.nan, device=features.device)
    wide_rois[:, 2:7] = rois
    sparse_grad = torch.full((9, 40, 3, 10), math.nan, device=features.device)
    sparse_grad[..., ::2] = grad
    for input in (sparse[..., ::2, 1::2], transposed, slices):
        assert not input.is_contiguous()
        result, input_grad = _differentiate(
            operator, input, wide_rois[:, 2:7], sparse_grad[..., ::2]
        )
        assert torch.equal(result, expected)
        assert torch.equal(input_grad, expected_grad)
        assert input_grad.is_contiguous()


@operators
def test_views_that_begin_inside_of_a_vector(
    backend: Backend, operator: Callable[..., Tensor], rois: Tensor
) -> None:
    # 40 channels fill vectors of 16 bytes in channels-last; a slice of a larger buffer still may
    # begin where no vector does.
    for dtype in (torch.float32, torch.float16):
        features = channels_last(torch.randn(2, 40, 11, 13)).to(backend.device, dtype)
        grad = channels_last(torch.randn(9, 40, 3, 5)).to(backend.device, dtype)
        expected, expected_grad = _differentiate(operator, features, rois, grad)

        def shifted(tensor: Tensor) -> Tensor:
            memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
            return memory[1:].as_strided(tensor.shape, tensor.stride()).copy_(tensor)

        result, _ = _differentiate(operator, shifted(features), rois, grad)
        _, input_grad = _differentiate(operator, features, rois, shifted(grad))
        assert_near(result, expected)
        assert_near(input_grad, expected_grad)


@operators
def test_expanded_inputs(operator: Callable[..., Tensor], features: Tensor, rois: Tensor) -> None:
    plane = features[:1, :1]
    expanded = plane.expand(2, 40, 11, 13)
    expected, _ = _differentiate(operator, expanded.contiguous(), rois)
    result, _ = _differentiate(operator, expanded, rois)
    assert torch.equal(result, expected)
    one = rois[:1].expand(4, 5)
    assert torch.equal(operator(features, one, 2), operator(features, one.contiguous(), 2))
    # The gradient of a sum is an expanded scalar.
    input = features.clone().requires_grad_()
    operator(input, rois, (3, 5), 0.25).sum().backward()
    assert input.grad is not None
    assert torch.equal(input.grad, _differentiate(operator, features, rois)[1])


@pytest.mark.parametrize(
    "shape", [(2, 1, 6, 5), (2, 40, 1, 1), (1, 1, 1, 1), (2, 3, 1, 6)], ids=str
)
@operators
def test_maps_that_are_dense_in_both_layouts(
    backend: Backend, operator: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    features = torch.randn(shape).to(backend.device)
    rois = make_rois(4, shape[0], size=20).to(backend.device)
    expected, expected_grad = _differentiate(operator, features, rois)
    both = features.to(memory_format=torch.channels_last)
    result, input_grad = _differentiate(operator, both, rois)
    if both.is_contiguous():
        assert torch.equal(result, expected)
        assert torch.equal(input_grad, expected_grad)
    else:  # channels-last after all; a kernel of its own may add in another order
        assert_near(result, expected)
        assert_near(input_grad, expected_grad)


@operators
def test_inputs_are_not_changed(operator: Callable[..., Tensor], features: Tensor) -> None:
    boxes = [make_boxes(3, 40).to(features.device), make_boxes(2, 40, 1).to(features.device)]
    tensors = [features.requires_grad_(), *boxes]
    before = [tensor.detach().clone() for tensor in tensors]
    result = operator(features, boxes, 3, 0.25)
    grad = torch.randn_like(result)
    grad_before = grad.clone()
    result.backward(grad)
    assert torch.equal(grad, grad_before)
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)
        assert tensor._version == 0


@operators
def test_rois_get_no_gradient(
    operator: Callable[..., Tensor], features: Tensor, rois: Tensor
) -> None:
    rois.requires_grad_()
    features.requires_grad_()
    operator(features, rois, 3, 0.25).sum().backward()
    assert rois.grad is None
    assert features.grad is not None


@operators
def test_nothing_is_read_outside_the_input(
    backend: Backend, operator: Callable[..., Tensor]
) -> None:
    # NaN before and after, as one tensor in memory.
    count = 2 * 3 * 5 * 7
    for memory_format in (torch.contiguous_format, torch.channels_last):
        memory = torch.full((count + 200,), math.nan, device=backend.device)
        inner = memory[100:-100]
        inner.copy_(torch.randn(count))
        if memory_format == torch.channels_last:
            features = inner.view(2, 5, 7, 3).permute(0, 3, 1, 2)
        else:
            features = inner.view(2, 3, 5, 7)
        rois = make_rois(30, 2, size=12).to(backend.device)
        rois[:, 1:] = (rois[:, 1:] - 6) * 3  # all around the map
        for output_size in (1, 4, (9, 2)):
            assert operator(features, rois, output_size).isfinite().all()


@operators
def test_empty(backend: Backend, operator: Callable[..., Tensor]) -> None:
    for batch, channels, count in [(2, 3, 0), (0, 3, 0), (2, 0, 4), (0, 0, 0)]:
        features = torch.randn(batch, channels, 5, 6, device=backend.device)
        for input in (features, features.to(memory_format=torch.channels_last)):
            rois = torch.zeros(count, 5, device=backend.device)
            result, grad = _differentiate(operator, input, rois)
            assert result.shape == (count, channels, 3, 5)
            assert grad.shape == features.shape
            assert not grad.any()
    features = torch.randn(2, 3, 5, 6, device=backend.device)
    none = torch.empty(0, 4, device=backend.device)
    assert operator(features, [none, none], 7).shape == (0, 3, 7, 7)
    some = torch.tensor([[0.0, 0, 2, 2]], device=backend.device)
    assert torch.equal(operator(features, [none, some], 2), operator(features[1:], [some], 2))


@operators
@pytest.mark.parametrize("size", [0, (0, 3), (2, 0)], ids=str)
def test_no_bins(
    operator: Callable[..., Tensor], features: Tensor, rois: Tensor, size: int | tuple[int, int]
) -> None:
    shape = (size, size) if isinstance(size, int) else size
    features.requires_grad_()
    result = operator(features, rois, size)
    assert result.shape == (9, 40, *shape)
    assert result.dtype == features.dtype
    (grad,) = torch.autograd.grad(result.sum(), features)
    assert grad.shape == features.shape
    assert not grad.any()
    with pytest.raises(RuntimeError, match="expected a positive output size, got 0 x -1"):
        operator(features, rois, (0, -1))
    with pytest.raises(RuntimeError, match="expected"):
        operator(features[0], rois, 0)


@operators
def test_lists_of_boxes(operator: Callable[..., Tensor], features: Tensor) -> None:
    boxes = [make_boxes(3, 40).to(features.device), make_boxes(2, 40, 1).to(features.device)]
    index = torch.tensor([[0.0], [0], [0], [1], [1]], device=features.device)
    expected = operator(features, torch.cat([index, torch.cat(boxes)], dim=1), (2, 3), 0.25)
    assert torch.equal(operator(features, boxes, (2, 3), 0.25), expected)
    assert torch.equal(operator(features, tuple(boxes), [2, 3], 0.25), expected)
    assert torch.equal(operator(features, boxes, torch.Size([2, 3]), spatial_scale=0.25), expected)
    square = operator(features, boxes, (3, 3))
    assert torch.equal(operator(features, boxes, 3), square)
    assert torch.equal(operator(features, boxes, [3]), square)
    assert torch.equal(operator(features, boxes[:1], 3), square[:3])  # fewer lists than images


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@operators
def test_boxes_of_another_dtype(
    operator: Callable[..., Tensor], features: Tensor, rois: Tensor, dtype: torch.dtype
) -> None:
    expected = operator(features, rois, 3, 0.25)  # every dtype holds these coordinates
    assert torch.equal(operator(features, rois.to(dtype), 3, 0.25), expected)
    boxes = [rois[rois[:, 0] == image, 1:].to(dtype) for image in range(2)]
    order = torch.sort(rois[:, 0], stable=True).indices
    assert torch.equal(operator(features, boxes, 3, 0.25), expected[order])
    low = operator(features.to(dtype), rois, 3, 0.25)
    assert low.dtype == dtype
    assert torch.equal(low, operator(features.to(dtype), rois.to(dtype), 3, 0.25))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@operators
def test_more_images_than_a_half_type_can_count(
    backend: Backend, operator: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    images = 2100 if backend.implementation == "native" else 300
    features = torch.arange(images, device=backend.device)[:, None, None, None]
    features = features.expand(images, 1, 2, 2).to(torch.float32)
    boxes = torch.tensor([[0.0, 0, 1, 1]], dtype=dtype, device=backend.device)
    result = operator(features, [boxes] * images, 1)
    assert result.flatten().tolist() == list(range(images))


@operators
def test_spatial_scale_multiplies_the_boxes(
    operator: Callable[..., Tensor], features: Tensor, rois: Tensor
) -> None:
    scaled = rois.clone()
    scaled[:, 1:] /= 4
    assert torch.equal(operator(features, rois, 3, 0.25), operator(features, scaled, 3))
    assert operator(features, rois, 3, 2).shape == (9, 40, 3, 3)  # an int is a number too


@operators
def test_rois_images_and_channels_are_independent(
    operator: Callable[..., Tensor], features: Tensor, rois: Tensor
) -> None:
    expected = operator(features, rois, 3, 0.25)
    order = torch.randperm(9, device=features.device)
    assert_near(operator(features, rois[order], 3, 0.25), expected[order])
    one_by_one = torch.cat([operator(features, roi[None], 3, 0.25) for roi in rois])
    assert_near(one_by_one, expected)
    assert_near(operator(features[:, 7:8], rois, 3, 0.25), expected[:, 7:8])
    swapped = rois.clone()
    swapped[:, 0] = 1 - swapped[:, 0]
    assert torch.equal(operator(features.flip(0), swapped, 3, 0.25), expected)


@pytest.mark.parametrize("index", [-1.0, -0.5, 2.0, 1e10, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@operators
def test_bad_batch_index(
    backend: Backend, operator: Callable[..., Tensor], dtype: torch.dtype, index: float
) -> None:
    features = torch.ones(2, 3, 5, 6, dtype=dtype, device=backend.device, requires_grad=True)
    rois = torch.tensor([[1.0, 0, 0, 4, 4], [0, 0, 0, 4, 4]], device=backend.device)
    rois[1, 0] = index
    if backend.checks_batch_index:
        name = "roi_align" if operator is ops.roi_align else "roi_pool"
        message = rf"{name}: rois\[1, 0\] is .*, not a batch index of an input with 2 images"
        with pytest.raises(IndexError, match=message):
            operator(features, rois, 2)
        with pytest.raises(IndexError, match="with 0 images"):
            operator(features[:0], rois[:1], 2)
        with pytest.raises(IndexError, match="with 1 image$"):
            operator(features[:1], rois[1:].nan_to_num(nan=1.0, neginf=-1).clamp(max=2), 2)
        return
    result = operator(features, rois, 2)
    assert result[0].eq(1).all()
    assert not result[1].any()
    result.sum().backward()
    assert features.grad is not None
    assert not features.grad[0].any()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@operators
def test_deterministic(native: Backend, operator: Callable[..., Tensor], layout: str) -> None:
    features = torch.randn(2, 70, 20, 24).to(native.device)
    if layout == "channels_last":
        features = channels_last(features)
    rois = make_rois(60, 2, size=60).to(native.device)
    rois[:, 1:] *= 1.37
    grad = torch.randn(60, 70, 3, 5).to(native.device)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(_differentiate(operator, features, rois, grad))
    finally:
        torch.set_num_threads(threads)
    for result, input_grad in results[1:]:
        assert torch.equal(result, results[0][0])
        assert torch.equal(input_grad, results[0][1])


@operators
def test_runs_where_only_deterministic_algorithms_may(
    operator: Callable[..., Tensor], features: Tensor, rois: Tensor
) -> None:
    expected = _differentiate(operator, features, rois)
    torch.use_deterministic_algorithms(True)  # also fills fresh memory with NaN
    try:
        results = [_differentiate(operator, features, rois) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for result, input_grad in results:
        assert torch.equal(result, expected[0])
        assert torch.equal(input_grad, expected[1])


def test_modules(features: Tensor, rois: Tensor) -> None:
    align = ops.RoIAlign((3, 5), 0.25, 2, aligned=True)
    assert torch.equal(align(features, rois), ops.roi_align(features, rois, (3, 5), 0.25, 2, True))
    legacy = ops.RoIAlign(3, spatial_scale=0.25, sampling_ratio=2)
    assert torch.equal(legacy(features, rois), ops.roi_align(features, rois, 3, 0.25, 2, False))
    pool = ops.RoIPool((3, 5), 0.25)
    assert torch.equal(pool(features, rois), ops.roi_pool(features, rois, (3, 5), 0.25))
    for module in (align, pool):
        assert not list(module.state_dict())
        assert "output_size=(3, 5), spatial_scale=0.25" in repr(module)
