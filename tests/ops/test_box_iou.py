from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers import brute_force
from tests.helpers.backends import Backend
from tests.helpers.peer import torchvision
from tests.helpers.samples import FLOATING, HALF, WIDE, assert_near, make_boxes

MEASURES = ["box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]

measures = pytest.mark.parametrize("name", MEASURES)


def _aspect_term() -> float:
    """Return the aspect-ratio term of complete IoU for a 4x2 and a 2x2 box, whose IoU is 1/2."""
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    return v * v / (1 - 0.5 + v)


# Two boxes and the four measures of them, worked out on paper.
BY_HAND = {
    # Overlap 1x2 of two 2x2 boxes; hull 3x2, which the union fills; centers 1 apart.
    "beside": ([0, 0, 2, 2], [1, 0, 3, 2], [1 / 3, 1 / 3, 1 / 3 - 1 / 13, 1 / 3 - 1 / 13]),
    # The second is half of the first; centers 1 apart, diagonal sqrt(20).
    "inside": ([0, 0, 4, 2], [0, 0, 2, 2], [0.5, 0.5, 0.45, 0.45 - _aspect_term()]),
    # A gap of 1: hull 3x1, a third of it empty; centers 2 apart, diagonal sqrt(10).
    "apart": ([0, 0, 1, 1], [2, 0, 3, 1], [0.0, -1 / 3, -0.4, -0.4]),
    # They share an edge.
    "touching": ([0, 0, 2, 2], [2, 0, 4, 2], [0.0, 0.0, -0.2, -0.2]),
    "equal": ([1, 2, 4, 8], [1, 2, 4, 8], [1.0, 1.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("case", BY_HAND)
@measures
def test_by_hand(backend: Backend, name: str, case: str) -> None:
    first, second, expected = BY_HAND[case]
    a = torch.tensor([first], dtype=torch.float64, device=backend.device)
    b = torch.tensor([second], dtype=torch.float64, device=backend.device)
    assert getattr(ops, name)(a, b).item() == pytest.approx(
        expected[MEASURES.index(name)], abs=1e-6
    )


@pytest.mark.parametrize("dtype", FLOATING + INTEGERS, ids=str)
@measures
def test_equals_brute_force(backend: Backend, name: str, dtype: torch.dtype) -> None:
    boxes1, boxes2 = make_boxes(13).to(dtype), make_boxes(17, seed=1).to(dtype)
    if not dtype.is_floating_point:
        boxes1[:, 2:] += 1  # cut off after the point, some have no extent
        boxes2[:, 2:] += 1
    result = getattr(ops, name)(boxes1.to(backend.device), boxes2.to(backend.device))
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert result.device.type == backend.device.type
    assert_near(result, brute_force.pairwise(name, boxes1, boxes2))


@pytest.mark.parametrize("dtype", [*FLOATING, torch.int32, torch.int64], ids=str)
@measures
def test_equals_torchvision(backend: Backend, name: str, dtype: torch.dtype) -> None:
    boxes1, boxes2 = make_boxes(30, seed=2).to(dtype), make_boxes(40, seed=3).to(dtype)
    expected = getattr(torchvision.ops, name)(boxes1, boxes2)
    result = getattr(ops, name)(boxes1.to(backend.device), boxes2.to(backend.device))
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    assert_near(result, expected)


DEGENERATE = {
    "a point, a line, a box": [[1, 1, 1, 1], [2, 2, 2, 5], [2, 2, 5, 2], [0, 0, 4, 4]],
    "inverted": [[4, 4, 0, 0], [0, 4, 4, 0], [0, 0, 4, 4], [3, 1, 2, 5]],
    "not finite": [
        [0, 0, math.inf, 4],
        [0, 0, 4, 4],
        [math.nan, 0, 4, 4],
        [0, math.nan, 4, 4],
        [0, 0, math.nan, 4],
        [0, 0, 4, math.nan],
        [-math.inf, -1, math.inf, 1],
    ],
    "areas that overflow": [[0, 0, 1e30, 1e30], [0, 0, 4, 4], [-1e30, -1e30, 1e30, 1e30]],
    "tiny": [[0, 0, 1e-30, 1e-30], [0, 0, 1e-20, 1e-20], [0, 0, 1, 1]],
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
@measures
def test_degenerate_boxes_equal_torchvision(
    backend: Backend, name: str, dtype: torch.dtype, case: str
) -> None:
    boxes = torch.tensor(DEGENERATE[case], dtype=dtype)
    expected = getattr(torchvision.ops, name)(boxes, boxes)
    result = getattr(ops, name)(boxes.to(backend.device), boxes.to(backend.device))
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_integers_do_not_overflow(backend: Backend) -> None:
    # An area of 1e18 does not fit int32; the difference of uint8 corners is negative.
    wide = torch.tensor([[0, 0, 10**9, 10**9]], dtype=torch.int32, device=backend.device)
    half = torch.tensor([[0, 0, 10**9, 5 * 10**8]], dtype=torch.int32, device=backend.device)
    assert ops.box_iou(wide, half).item() == 0.5
    left = torch.tensor([[0, 0, 10, 10]], dtype=torch.uint8, device=backend.device)
    right = torch.tensor([[20, 20, 30, 30]], dtype=torch.uint8, device=backend.device)
    assert ops.box_iou(left, right).item() == 0


def test_mixed_dtypes_promote_as_in_torchvision(backend: Backend) -> None:
    boxes = make_boxes(5)
    for dtype1, dtype2 in [
        (torch.float32, torch.float64),
        (torch.float16, torch.bfloat16),
        (torch.int64, torch.float32),
        (torch.int32, torch.float64),
    ]:
        a, b = boxes.to(dtype1), boxes.to(dtype2)
        expected = torchvision.ops.box_iou(a, b)
        result = ops.box_iou(a.to(backend.device), b.to(backend.device))
        assert result.dtype == expected.dtype, (dtype1, dtype2)
        assert_near(result, expected)


@pytest.mark.parametrize("shapes", [(0, 3), (3, 0), (0, 0)], ids=str)
@measures
def test_empty(backend: Backend, name: str, shapes: tuple[int, int]) -> None:
    a = torch.rand(shapes[0], 4, device=backend.device, requires_grad=True)
    b = torch.rand(shapes[1], 4, device=backend.device, requires_grad=True)
    result = getattr(ops, name)(a, b)
    assert result.shape == shapes
    assert result.dtype == torch.float32
    result.sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert torch.equal(a.grad, torch.zeros_like(a))
    assert torch.equal(b.grad, torch.zeros_like(b))


@measures
def test_leading_dimensions(backend: Backend, name: str) -> None:
    function = getattr(ops, name)
    boxes = make_boxes(24).to(backend.device)
    a, b = boxes[:12].view(2, 1, 6, 4), boxes[12:].view(3, 4, 4)
    result = function(a, b)
    assert result.shape == (2, 3, 6, 4)
    for i in range(2):
        for j in range(3):
            assert torch.equal(result[i, j], function(a[i, 0], b[j]))
    assert torch.equal(function(a[0, 0], b), result[0])  # two dimensions against three
    assert function(boxes.new_empty(0, 5, 4), boxes.new_empty(0, 2, 4)).shape == (0, 5, 2)


@measures
def test_layout_does_not_matter(backend: Backend, name: str) -> None:
    function = getattr(ops, name)
    boxes1 = make_boxes(8).to(backend.device)
    boxes2 = make_boxes(9, seed=1).to(backend.device)
    expected = function(boxes1, boxes2)
    padded = torch.full((16, 6), math.nan, device=backend.device)
    padded[::2, 1:5] = boxes1
    columns = boxes2.t().contiguous().t()
    assert not padded[::2, 1:5].is_contiguous()
    assert not columns.is_contiguous()
    assert torch.equal(function(padded[::2, 1:5], columns), expected)
    for a, b in ((columns, boxes1), (boxes1, columns), (columns, columns)):
        assert function(a, b).is_contiguous()  # as compiled code takes for granted
    one = boxes1[:1].expand(5, 4)
    assert torch.equal(function(one, boxes2), expected[:1].expand(5, -1))


@measures
def test_inputs_are_not_changed(backend: Backend, name: str) -> None:
    a = make_boxes(5).to(backend.device).requires_grad_()
    b = make_boxes(6, seed=1).to(backend.device).requires_grad_()
    before = a.detach().clone(), b.detach().clone()
    getattr(ops, name)(a, b).sum().backward()
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
    assert a._version == 0
    assert b._version == 0


@measures
def test_symmetric_and_bounded(backend: Backend, name: str) -> None:
    boxes = make_boxes(40).to(backend.device)
    result = getattr(ops, name)(boxes, boxes)
    # Not bit for bit: union and distance sum in another order.
    torch.testing.assert_close(result, result.t(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.diagonal(), torch.ones(40, device=backend.device))
    assert result.max() <= 1 + 1e-6
    assert result.min() >= (0 if name == "box_iou" else -2)


@measures
def test_does_not_depend_on_position_or_scale(backend: Backend, name: str) -> None:
    a, b = make_boxes(10).to(backend.device), make_boxes(11, seed=1).to(backend.device)
    function: Callable[[Tensor, Tensor], Tensor] = getattr(ops, name)
    expected = function(a, b)
    # Quarters of pixels and powers of two: every step of the arithmetic is exact but the last ones.
    assert_near(function(a + 256, b + 256), expected)
    assert_near(function(a * 1024, b * 1024), expected)


def test_formats(backend: Backend) -> None:
    corners1, corners2 = make_boxes(7), make_boxes(8, seed=1)
    expected = ops.box_iou(corners1.to(backend.device), corners2.to(backend.device))
    for fmt in ("xywh", "cxcywh"):
        a = torchvision.ops.box_convert(corners1, "xyxy", fmt).to(backend.device)
        b = torchvision.ops.box_convert(corners2, "xyxy", fmt).to(backend.device)
        assert_near(ops.box_iou(a, b, fmt=fmt), expected)
        assert_near(ops.box_iou(a, b, fmt), torchvision.ops.box_iou(a.cpu(), b.cpu(), fmt=fmt))
    integers = torch.tensor([[5, 5, 3, 3]])
    expected = torchvision.ops.box_iou(integers, integers, fmt="cxcywh")
    result = ops.box_iou(integers.to(backend.device), integers.to(backend.device), fmt="cxcywh")
    assert_near(result, expected)


def test_unknown_format() -> None:
    with pytest.raises(ValueError, match=r"box_iou: expected fmt .*, got 'yxyx'"):
        ops.box_iou(make_boxes(1), make_boxes(1), fmt="yxyx")


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types_compute_in_float32(backend: Backend, dtype: torch.dtype) -> None:
    # The areas, 1e6 and 2e6, are beyond float16, and beyond the digits of bfloat16.
    a = torch.tensor([[0, 0, 1000, 1000]], dtype=dtype, device=backend.device)
    b = torch.tensor([[0, 0, 1000, 2000]], dtype=dtype, device=backend.device)
    assert ops.box_iou(a, b).item() == 0.5


# Vectors hold the ends of several rows where those are short, and run into the rows below.
@pytest.mark.parametrize("dtype", WIDE, ids=str)
@measures
def test_every_width_of_a_result(backend: Backend, name: str, dtype: torch.dtype) -> None:
    boxes1 = make_boxes(2 * 19, seed=4).to(backend.device, dtype).view(2, 19, 4)
    boxes2 = make_boxes(2 * 35, seed=5).to(backend.device, dtype).view(2, 35, 4)
    whole = getattr(ops, name)(boxes1, boxes2)
    for rows in (1, 2, 3, 5, 8, 19):
        for columns in range(1, 36):
            part = getattr(ops, name)(boxes1[:, :rows], boxes2[:, :columns])
            assert torch.equal(part, whole[:, :rows, :columns]), (rows, columns)
