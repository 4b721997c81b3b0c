from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers import brute_force
from tests.helpers.backends import Backend
from tests.helpers.peer import torchvision
from tests.helpers.samples import FLOATING, HALF, WIDE, make_boxes, make_scores

# Around the numbers of boxes that a kernel takes together (64, and 16 groups of them).
COUNTS = [1, 2, 63, 64, 65, 1000, 1025, 1100]


def _nms(backend: Backend, boxes: Tensor, scores: Tensor, iou_threshold: float) -> list[int]:
    keep = ops.nms(boxes.to(backend.device), scores.to(backend.device), iou_threshold)
    assert keep.dtype == torch.int64
    assert keep.device.type == backend.device.type
    assert keep.dim() == 1
    assert keep.is_contiguous()
    return keep.tolist()


def test_by_hand(backend: Backend) -> None:
    # B overlaps A by 2/3 and C by 2/3; A and C by 1/2. A removes B, and so B can't remove C.
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10]])
    assert _nms(backend, boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5) == [0, 2]
    assert _nms(backend, boxes, torch.tensor([0.8, 0.9, 0.7]), 0.5) == [1]
    assert _nms(backend, boxes, torch.tensor([0.7, 0.8, 0.9]), 0.5) == [2, 0]
    assert _nms(backend, boxes, torch.tensor([0.9, 0.8, 0.7]), 0.4) == [0]
    assert _nms(backend, boxes, torch.tensor([0.7, 0.8, 0.9]), 0.7) == [2, 1, 0]


@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_equals_brute_force(backend: Backend, dtype: torch.dtype, iou_threshold: float) -> None:
    boxes = make_boxes(150, size=16).to(dtype)  # crowded
    scores = torch.randint(0, 10, (150,)) / 10  # with many ties
    expected = brute_force.nms(boxes, scores, iou_threshold)
    assert _nms(backend, boxes, scores, iou_threshold) == expected.tolist()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_equals_torchvision(backend: Backend, dtype: torch.dtype, count: int) -> None:
    boxes = (torch.rand(count, 4) * 100).to(dtype)
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.randint(0, max(count // 3, 1), (count,)).to(dtype)
    for iou_threshold in (0.1, 0.5, 0.9):
        expected = torchvision.ops.nms(boxes, scores, iou_threshold)
        assert _nms(backend, boxes, scores, iou_threshold) == expected.tolist()


def test_equal_scores_keep_the_order_of_the_input(backend: Backend) -> None:
    boxes = make_boxes(1500, size=4000)
    boxes[750:] = boxes[:750]  # each box of the second half is suppressed by its copy in the first
    keep = _nms(backend, boxes, torch.full((1500,), 0.5), 0.99)
    assert keep == sorted(keep)
    assert max(keep) < 750


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_iou_equal_to_the_threshold_is_kept(backend: Backend, dtype: torch.dtype) -> None:
    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 2]], dtype=dtype)  # IoU 1/2, in every dtype
    scores = torch.tensor([0.9, 0.8])
    assert _nms(backend, boxes, scores, 0.5) == [0, 1]
    assert _nms(backend, boxes, scores, math.nextafter(0.5, 0)) == [0]
    twins = boxes[:1].repeat(2, 1)
    assert _nms(backend, twins, scores, 1.0) == [0, 1]
    assert _nms(backend, twins, scores, math.nextafter(1.0, 0)) == [0]
    disjoint = torch.tensor([[0, 0, 1, 1], [5, 5, 6, 6]], dtype=dtype)
    assert _nms(backend, disjoint, scores, 0.0) == [0, 1]
    assert _nms(backend, disjoint, scores, -0.1) == [0]


def test_threshold_is_compared_in_double(backend: Backend) -> None:
    # IoU 3/10 in float32 is 0.300000012, above 0.3; 7/10 is 0.699999988, below 0.7.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1], [100, 0, 110, 1], [100, 0, 107, 1]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert _nms(backend, boxes[:2], scores[:2], 0.3) == [0]
    assert _nms(backend, boxes[:2].double(), scores[:2], 0.3) == [0, 1]
    assert _nms(backend, boxes[2:], scores[2:], 0.7) == [0, 1]


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_thresholds_at_rounding_distance_equal_torchvision(
    backend: Backend, dtype: torch.dtype
) -> None:
    numerators, denominators = torch.meshgrid(
        torch.arange(1, 12), torch.arange(1, 12), indexing="ij"
    )
    for n, d in zip(numerators.flatten().tolist(), denominators.flatten().tolist(), strict=True):
        if n > d:
            continue
        boxes = torch.tensor([[0, 0, d, 1], [0, 0, n, 1]], dtype=dtype)  # IoU n / d
        scores = torch.tensor([1.0, 0.5], dtype=dtype)
        for threshold in (n / d, math.nextafter(n / d, 0), math.nextafter(n / d, 2)):
            expected = torchvision.ops.nms(boxes, scores, threshold).tolist()
            assert _nms(backend, boxes, scores, threshold) == expected, (n, d, threshold)


@pytest.mark.parametrize("iou_threshold", [math.inf, -math.inf, math.nan, 1e300, -1e300])
def test_thresholds_outside_0_to_1(backend: Backend, iou_threshold: float) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [9, 9, 10, 10]])
    expected = [0] if iou_threshold < 0 else [0, 1, 2]
    assert _nms(backend, boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold) == expected


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types_are_compared_in_float32(backend: Backend, dtype: torch.dtype) -> None:
    boxes = (torch.rand(400, 4) * 300).to(dtype)
    boxes[:, 2:] = boxes[:, :2] + (torch.rand(400, 2) * 300).to(dtype)
    scores = make_scores(400)
    for iou_threshold in (0.3, 0.5):
        expected = _nms(backend, boxes.float(), scores, iou_threshold)
        assert _nms(backend, boxes, scores, iou_threshold) == expected


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]
)
def test_scores_of_any_dtype(backend: Backend, dtype: torch.dtype) -> None:
    boxes = make_boxes(60, size=20)
    scores = torch.randint(0, 2 if dtype == torch.bool else 9, (60,)).to(dtype)
    expected = brute_force.nms(boxes, scores.double(), 0.4)
    assert _nms(backend, boxes, scores, 0.4) == expected.tolist()


def test_boxes_that_are_not_finite_are_never_kept_and_never_suppress(backend: Backend) -> None:
    finite = make_boxes(40, size=20)
    bad = []
    for value in (math.nan, math.inf, -math.inf):
        for column in range(4):
            box = torch.tensor([0.0, 0, 20, 20])
            box[column] = value
            bad.append(box)
    bad.append(torch.tensor([-math.inf, -math.inf, math.inf, math.inf]))
    bad.append(torch.full((4,), math.nan))
    scores = make_scores(40)
    expected = _nms(backend, finite, scores, 0.3)
    # All of them before the finite ones, in place and in score, and all after.
    first = torch.cat([torch.stack(bad), finite])
    scores_of_bad = torch.linspace(2, 3, len(bad))
    keep = _nms(backend, first, torch.cat([scores_of_bad, scores]), 0.3)
    assert keep == [i + len(bad) for i in expected]
    last = torch.cat([finite, torch.stack(bad)])
    assert _nms(backend, last, torch.cat([scores, -scores_of_bad]), 0.3) == expected
    assert _nms(backend, torch.stack(bad), scores_of_bad, 0.3) == []
    assert _nms(backend, torch.stack(bad).half(), scores_of_bad, 0.3) == []


def test_nan_scores_come_where_sort_puts_them(backend: Backend) -> None:
    boxes = make_boxes(30, size=2000)
    scores = make_scores(30)
    scores[[3, 17, 20]] = math.nan
    scores[5], scores[6] = math.inf, -math.inf
    expected = torch.sort(scores, descending=True, stable=True).indices.tolist()
    assert expected[:3] == [3, 17, 20]
    assert _nms(backend, boxes, scores, 0.99) == expected


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("count", [100, 9000])
def test_nan_scores_of_either_sign_come_first_on_cuda(
    cuda: torch.device, count: int, dtype: torch.dtype
) -> None:
    # PyTorch's sort goes by the bits there: a NaN with a sign would come last.
    boxes, scores = make_boxes(count, size=3000).to(dtype), make_scores(count).to(dtype)
    scores[[3, 17, 60]] = math.nan
    scores[[5, 40]] = -scores[[3, 17]]
    expected = ops.nms(boxes, scores, 0.6)
    assert torch.equal(ops.nms(boxes.to(cuda), scores.to(cuda), 0.6).cpu(), expected)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_degenerate_boxes_equal_torchvision(backend: Backend, dtype: torch.dtype) -> None:
    # Inverted in x, in y or in both, points, lines: all the corners of a small grid.
    grid = torch.arange(4)
    boxes = torch.cartesian_prod(grid, grid, grid, grid).to(dtype)
    scores = make_scores(len(boxes)).to(dtype)
    for iou_threshold in (-0.5, 0.0, 0.3, 0.5, 0.9):
        expected = torchvision.ops.nms(boxes, scores, iou_threshold).tolist()
        assert _nms(backend, boxes, scores, iou_threshold) == expected


@pytest.mark.parametrize("scale", [1e-40, 1e-22, 1e-19, 1e10, 1e18, 1e19, 1e30, 3e38])
def test_extreme_coordinates_equal_torchvision(backend: Backend, scale: float) -> None:
    boxes = (make_boxes(60, size=16) / 16).double().mul(scale).float()
    scores = make_scores(60)
    expected = torchvision.ops.nms(boxes, scores, 0.4).tolist()
    assert _nms(backend, boxes, scores, 0.4) == expected


def test_greedy_invariant(backend: Backend) -> None:
    boxes, scores = make_boxes(3000, size=300), make_scores(3000)
    keep = torch.tensor(_nms(backend, boxes, scores, 0.35))
    removed = torch.ones(3000, dtype=torch.bool)
    removed[keep] = False
    overlap = torchvision.ops.box_iou(boxes, boxes).double() > 0.35
    assert (scores[keep].diff() < 0).all(), "in order of score"
    assert not overlap[keep][:, keep].fill_diagonal_(False).any(), "no two kept boxes overlap"
    earlier = scores[keep][None, :] > scores[removed][:, None]
    assert (overlap[removed][:, keep] & earlier).any(dim=1).all(), "each has what removed it"
    # What was kept, is kept again.
    assert _nms(backend, boxes[keep], scores[keep], 0.35) == list(range(len(keep)))


def test_does_not_depend_on_the_order_of_the_input(backend: Backend) -> None:
    boxes, scores = make_boxes(700, size=100), make_scores(700)
    order = torch.randperm(700)
    keep = torch.tensor(_nms(backend, boxes, scores, 0.5))
    permuted = torch.tensor(_nms(backend, boxes[order], scores[order], 0.5))
    assert torch.equal(order[permuted], keep)


def test_empty(backend: Backend) -> None:
    for dtype in FLOATING:
        assert _nms(backend, torch.empty(0, 4, dtype=dtype), torch.empty(0), 0.5) == []


def test_layout_does_not_matter(backend: Backend) -> None:
    boxes, scores = make_boxes(90, size=30), make_scores(90)
    expected = _nms(backend, boxes, scores, 0.4)
    columns = boxes.to(backend.device).t().contiguous().t()
    spread = torch.full((180, 7), math.nan, device=backend.device)
    spread[::2, 2:6] = boxes.to(backend.device)
    spread[::2, 6] = scores.to(backend.device)
    assert ops.nms(columns, scores.to(backend.device), 0.4).tolist() == expected
    assert ops.nms(spread[::2, 2:6], spread[::2, 6], 0.4).tolist() == expected
    one = scores[:1].to(backend.device).expand(90)
    ties = _nms(backend, boxes, scores[:1].repeat(90), 0.4)
    assert ops.nms(columns, one, 0.4).tolist() == ties


def test_inputs_are_not_changed_and_may_require_gradients(backend: Backend) -> None:
    boxes = make_boxes(20).to(backend.device).requires_grad_()
    scores = make_scores(20).to(backend.device).requires_grad_()
    before = boxes.detach().clone(), scores.detach().clone()
    keep = ops.nms(boxes, scores, 0.5)
    assert not keep.requires_grad
    assert torch.equal(boxes, before[0])
    assert torch.equal(scores, before[1])
    assert boxes._version == 0
    boxes[keep].sum().backward()
    assert boxes.grad is not None
    assert boxes.grad[keep].eq(1).all()


def test_deterministic_for_any_number_of_threads(native: Backend) -> None:
    boxes, scores = make_boxes(6000, size=200), torch.randint(0, 50, (6000,)) / 50
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(_nms(native, boxes, scores, 0.5))
    finally:
        torch.set_num_threads(threads)
    assert results.count(results[0]) == len(results)


def test_a_hundred_thousand_boxes(backend: Backend) -> None:
    # Objects of 50 boxes each, as a detector has them.
    objects = {"native": 2000, "emulated": 60}.get(backend.implementation, 400)
    boxes = make_boxes(objects, size=20000).repeat(50, 1)
    boxes[:, 2:] = boxes[:, :2] + 40
    boxes += torch.rand(50 * objects, 1) * 4
    scores = make_scores(50 * objects)
    start = time.perf_counter()
    keep = _nms(backend, boxes, scores, 0.5)
    assert time.perf_counter() - start < 60  # some tenths of a second natively
    assert objects / 2 < len(keep) < 2 * objects
    assert keep == torchvision.ops.nms(boxes, scores, 0.5).tolist()
