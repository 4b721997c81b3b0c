"""Intersection over the smaller area; what it shares with IoU is tested in test_box_iou.py."""

from __future__ import annotations

import math

import pytest
import torch

from rcnn_ext import ops
from tests.helpers import brute_force
from tests.helpers.backends import Backend
from tests.helpers.samples import FLOATING, HALF, WIDE, assert_near, make_boxes
from tests.ops.test_box_iou import DEGENERATE, INTEGERS

BY_HAND = {
    "beside": ([0, 0, 2, 2], [1, 0, 5, 2], 0.5),
    "inside": ([0, 0, 100, 100], [3, 3, 4, 5], 1.0),
    "apart": ([0, 0, 1, 1], [2, 0, 3, 1], 0.0),
    "touching": ([0, 0, 2, 2], [2, 0, 4, 2], 0.0),
    "equal": ([1, 2, 4, 8], [1, 2, 4, 8], 1.0),
    "a point within": ([0, 0, 2, 2], [1, 1, 1, 1], math.nan),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_by_hand(backend: Backend, case: str) -> None:
    first, second, expected = BY_HAND[case]
    a = torch.tensor([first], dtype=torch.float64, device=backend.device)
    b = torch.tensor([second], dtype=torch.float64, device=backend.device)
    assert ops.box_ios(a, b).item() == pytest.approx(expected, nan_ok=True)
    assert ops.box_ios(b, a).item() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("dtype", FLOATING + INTEGERS, ids=str)
def test_equals_brute_force(backend: Backend, dtype: torch.dtype) -> None:
    boxes1, boxes2 = make_boxes(13).to(dtype), make_boxes(17, seed=1).to(dtype)
    if not dtype.is_floating_point:
        boxes1[:, 2:] += 1  # cut off after the point, some have no extent
        boxes2[:, 2:] += 1
    result = ops.box_ios(boxes1.to(backend.device), boxes2.to(backend.device))
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_near(result, brute_force.pairwise("box_ios", boxes1, boxes2))


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_degenerate_boxes_equal_the_formula(
    backend: Backend, dtype: torch.dtype, case: str
) -> None:
    boxes = torch.tensor(DEGENERATE[case], dtype=dtype)
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    expected = (high - low).clamp(min=0).prod(dim=2) / torch.minimum(areas[:, None], areas)
    result = ops.box_ios(boxes.to(backend.device), boxes.to(backend.device))
    torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=0, equal_nan=True)


def test_formats_and_leading_dimensions(backend: Backend) -> None:
    corners1, corners2 = make_boxes(14).to(backend.device), make_boxes(8, seed=1)
    corners2 = corners2.to(backend.device)
    expected = ops.box_ios(corners1, corners2)
    for fmt in ("xywh", "cxcywh"):
        converted = []
        for boxes in (corners1, corners2):
            sizes = boxes[:, 2:] - boxes[:, :2]
            start = boxes[:, :2] + (sizes / 2 if fmt == "cxcywh" else 0)
            converted.append(torch.cat([start, sizes], dim=1))
        assert_near(ops.box_ios(*converted, fmt=fmt), expected)
    batched = ops.box_ios(corners1.view(2, 7, 4), corners2)
    assert torch.equal(batched, expected.view(2, 7, 8))
    assert ops.box_ios(corners1[:0], corners2).shape == (0, 8)


@pytest.mark.parametrize("fmt", ["yxyx", "cxcywhr", "xyxyxyxy"])
def test_unknown_format(fmt: str) -> None:
    with pytest.raises(ValueError, match=f"box_ios: expected fmt 'xyxy', .* got '{fmt}'"):
        ops.box_ios(make_boxes(1), make_boxes(1), fmt=fmt)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_every_width_of_a_result(backend: Backend, dtype: torch.dtype) -> None:
    boxes1 = make_boxes(19, seed=4).to(backend.device, dtype)
    boxes2 = make_boxes(35, seed=5).to(backend.device, dtype)
    whole = ops.box_ios(boxes1, boxes2)
    for columns in range(1, 36):
        assert torch.equal(ops.box_ios(boxes1[:8], boxes2[:columns]), whole[:8, :columns])


def test_gradient_by_hand(backend: Backend) -> None:
    # Overlap 1 x 2 of areas 4 and 8: moving x2 of the first adds 2 to the overlap and to its area.
    a = torch.tensor([[0.0, 0, 2, 2]], device=backend.device, requires_grad=True)
    b = torch.tensor([[1.0, 0, 5, 2]], device=backend.device, requires_grad=True)
    ops.box_ios(a, b).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad[0, 2] == 2 / 4 - 2 * 2 / 16
    assert a.grad[0, 0] == 2 * 2 / 16
    # The larger area does not matter, only its edge within the first.
    assert b.grad[0, 0] == -0.5
    assert b.grad[0, 2] == 0


def test_gradcheck(backend: Backend) -> None:
    generator = torch.Generator().manual_seed(0)
    sets = []
    for count in (2, 3):
        low = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        size = 1.5 + torch.rand(count, 2, generator=generator)
        sets.append(torch.cat([low, low + size], dim=1).to(backend.device).requires_grad_())
    assert torch.autograd.gradcheck(ops.box_ios, sets)
    assert torch.autograd.gradgradcheck(ops.box_ios, sets)


@pytest.mark.parametrize("dtype", [*HALF, *WIDE], ids=str)
def test_gradients_equal_autograd_of_the_formula(backend: Backend, dtype: torch.dtype) -> None:
    # Many pairs have equal corners or areas, which share the gradient.
    boxes = torch.tensor(
        [[0, 0, 4, 4], [0, 0, 4, 4], [1, 1, 3, 3], [0, 1, 4, 3], [1, 0, 3, 4], [9, 0, 12, 4]],
        dtype=torch.float64,
    )
    a, b = boxes.clone().requires_grad_(), boxes.clone().requires_grad_()
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    areas = [(x[:, 2:] - x[:, :2]).prod(dim=1) for x in (a, b)]
    ios = (high - low).clamp(min=0).prod(dim=2) / torch.minimum(areas[0][:, None], areas[1])
    weights = torch.linspace(0.5, 1.5, 36, dtype=torch.float64).view(6, 6)
    expected = torch.autograd.grad((ios * weights).sum(), (a, b))
    leaves = [boxes.to(backend.device, dtype, copy=True).requires_grad_() for _ in range(2)]
    result = ops.box_ios(*leaves)
    gradients = torch.autograd.grad((result * weights.to(result)).sum(), leaves)
    for actual, wanted in zip(gradients, expected, strict=True):
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            actual.double().cpu(), wanted, rtol=tolerance, atol=max(tolerance, 1e-6)
        )
