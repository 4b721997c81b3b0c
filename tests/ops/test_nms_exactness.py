"""The shortcuts of NMS on the CPU: boxes that would find them wrong, compared with torchvision.

A segment of hundreds of boxes goes through a grid, thousands through threads; see nms_grid_cpu.h.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.backends import Backend
from tests.helpers.peer import torchvision
from tests.helpers.samples import FLOATING, WIDE

COUNT = 1500
THRESHOLDS = [0.0, 0.02, 1 / 32, 0.1, 0.3, 0.5, 0.7, 0.95, math.nextafter(1, 0)]


def _from_centers(centers: Tensor, sides: Tensor) -> Tensor:
    return torch.cat([centers - sides / 2, centers + sides / 2], dim=1)


def _at_the_reach(threshold: float) -> Tensor:
    # Boxes of width w, and boxes of width w / t that hold them at one end: their IoU is t up to
    # rounding, and their centers are as far apart as suppression allows. Along x, along y or both.
    t = min(max(threshold, 0.05), 0.999)
    low = torch.rand(COUNT // 2, 2, dtype=torch.float64) * 3000
    sides = 2 + torch.rand(COUNT // 2, 2, dtype=torch.float64) * 60
    factor = torch.tensor([[1 / t, 1], [1, 1 / t], [t**-0.5, t**-0.5]]).double()
    grown = sides * factor[torch.randint(0, 3, (COUNT // 2,))]
    grown *= 1 + torch.randint(-2, 3, (COUNT // 2, 1)) * 2e-7  # one rounding more or less
    to_the_left = torch.randint(0, 2, (COUNT // 2, 1))
    start = low - to_the_left * (grown - sides)
    return torch.cat([torch.cat([low, low + sides], 1), torch.cat([start, start + grown], 1)])


def _uniform(_: float) -> Tensor:
    return _from_centers(torch.rand(COUNT, 2) * 500, 8 + torch.rand(COUNT, 2) * 80)


def _clustered(_: float) -> Tensor:
    centers = (torch.rand(20, 2) * 5000).repeat(COUNT // 20, 1) + torch.randn(COUNT, 2) * 4
    return _from_centers(centers, 30 + torch.rand(COUNT, 2) * 20)


def _integers(_: float) -> Tensor:
    low = torch.randint(0, 60, (COUNT, 2))
    return torch.cat([low, low + torch.randint(1, 12, (COUNT, 2))], dim=1).float()


def _odd(_: float) -> Tensor:
    # Inverted in one or both directions, points, lines, boxes that are not finite.
    corners = torch.randint(0, 12, (COUNT, 4)).float()
    corners[::97] = math.nan
    corners[1::97, 2] = math.inf
    return corners


def _all_scales(_: float) -> Tensor:
    sides = torch.exp(torch.empty(COUNT, 1).uniform_(-7, 9)) * (0.5 + torch.rand(COUNT, 2))
    return _from_centers(torch.rand(COUNT, 2) * 1000, sides)


def _slivers(_: float) -> Tensor:
    # Too long for the cells, in either direction.
    sides = torch.where(
        torch.rand(COUNT, 1) < 0.5, torch.tensor([900.0, 2]), torch.tensor([2, 900])
    )
    return _from_centers(torch.rand(COUNT, 2) * 100, sides * (0.8 + 0.2 * torch.rand(COUNT, 2)))


def _one_huge(_: float) -> Tensor:
    boxes = _uniform(0)
    boxes[COUNT // 2] = torch.tensor([-1e7, -1e7, 1e7, 1e7])
    boxes[COUNT // 3] = torch.tensor([-1e30, 0, 1e30, 10])
    boxes[COUNT // 4] = torch.tensor([1e30, 1e30, 2e30, 2e30])
    boxes[COUNT // 5] = boxes[COUNT // 4]
    return boxes


def _far_away(_: float) -> Tensor:
    # Where neighboring float32 numbers are half a pixel apart.
    return _uniform(0) + 6e6


def _magnitudes(_: float) -> Tensor:
    # From areas that underflow to such that overflow, each magnitude with pairs that overlap.
    scale = torch.pow(10.0, torch.randint(-45, 39, (COUNT // 2, 1)).double())
    boxes = torch.tensor([[0, 0, 0.8, 0.9]]).double() * scale
    return torch.cat([boxes, boxes * torch.empty(COUNT // 2, 4).uniform_(0.6, 1)]).float()


FAMILIES: list[Callable[[float], Tensor]] = [
    _at_the_reach, _uniform, _clustered, _integers, _odd, _all_scales, _slivers, _one_huge,
    _far_away, _magnitudes,
]  # fmt: skip


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__.strip("_"))
def test_equals_torchvision(
    backend: Backend, family: Callable[[float], Tensor], dtype: torch.dtype
) -> None:
    for threshold in THRESHOLDS if backend.implementation != "emulated" else THRESHOLDS[::2]:
        boxes = family(threshold).to(dtype)
        finite = boxes.isfinite().all(dim=1)
        scores = torch.randint(0, COUNT, (COUNT,)).to(dtype)
        keep = ops.nms(boxes.to(backend.device), scores.to(backend.device), threshold)
        members = finite.nonzero()[:, 0]
        expected = members[torchvision.ops.nms(boxes[members], scores[members], threshold)]
        assert keep.tolist() == expected.tolist(), threshold


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_segments_of_all_sizes_equal_torchvision(backend: Backend, dtype: torch.dtype) -> None:
    # A list, a grid and single boxes in one call; classes far apart and close together.
    sizes = torch.tensor([1, 1, 2, 15, 16, 17, 300, 800, 1300])
    idxs = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    idxs = idxs[torch.randperm(len(idxs))]
    boxes = _from_centers(torch.rand(len(idxs), 2) * 300, 10 + torch.rand(len(idxs), 2) * 90)
    boxes = boxes.to(dtype)
    scores = torch.randint(0, 999, idxs.shape).float()
    wide = boxes.float() if dtype in (torch.float16, torch.bfloat16) else boxes
    kept = []
    for number in range(len(sizes)):
        members = (idxs == number).nonzero()[:, 0]
        own_scores = scores[members].to(wide.dtype)
        kept.append(members[torchvision.ops.nms(wide[members], own_scores, 0.5)])
    everything = torch.cat(kept).sort().values
    expected = everything[scores[everything].sort(descending=True, stable=True).indices]
    for numbers in (idxs, idxs * 2**55 - 2**58):
        keep = ops.batched_nms(*(x.to(backend.device) for x in (boxes, scores, numbers)), 0.5)
        assert keep.tolist() == expected.tolist()


@pytest.mark.parametrize("family", ["uniform", "clustered"])
def test_fifty_thousand_boxes_equal_torchvision(native: Backend, family: str) -> None:
    count = 50_000
    if family == "uniform":
        centers = torch.rand(count, 2) * torch.tensor([1333, 800])
    else:
        centers = (torch.rand(500, 2) * 2000).repeat(100, 1) + torch.randn(count, 2) * 3
    boxes = _from_centers(centers, 8 + torch.rand(count, 2) * 200)
    scores = torch.randint(0, 30_000, (count,)).float()
    keep = ops.nms(boxes.to(native.device), scores.to(native.device), 0.5)
    assert keep.tolist() == torchvision.ops.nms(boxes, scores, 0.5).tolist()


@pytest.mark.parametrize("classes", [1, 2, 50, 9000])
def test_same_for_any_number_of_threads(native: Backend, classes: int) -> None:
    # One long segment is worked on in rounds, beside others or alone; threads divide short ones.
    count = 12_000
    idxs = torch.randint(0, classes, (count,))
    idxs[: count * 3 // 4] = 0 if classes == 2 else idxs[: count * 3 // 4]
    boxes = _from_centers(torch.rand(count, 2) * 900, 8 + torch.rand(count, 2) * 200)
    boxes[::1000] *= 1e20  # met by all
    scores = torch.randint(0, 5000, (count,)).float()
    inputs = [x.to(native.device) for x in (boxes, scores, idxs)]
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3, 2):
            torch.set_num_threads(number)
            results.append(ops.batched_nms(*inputs, 0.5).tolist())
    finally:
        torch.set_num_threads(threads)
    assert results.count(results[0]) == len(results)
    if classes == 1:
        assert results[0] == torchvision.ops.nms(boxes, scores, 0.5).tolist()


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, *FLOATING],
    ids=str,
)
@pytest.mark.parametrize("count", [199, 200, 3000])
def test_order_of_scores_is_that_of_sort(backend: Backend, dtype: torch.dtype, count: int) -> None:
    if dtype.is_floating_point:
        scores = torch.randn(count).to(dtype)
        odd = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1e-7, -1e-7])
        scores[:: count // 50] = odd.to(dtype)[torch.arange(len(scores[:: count // 50])) % 8]
    else:
        info = torch.iinfo(dtype)
        scores = torch.randint(max(info.min, -(2**62)), min(info.max, 2**62), (count,))
        scores[:: count // 10] = info.max
        scores[1 :: count // 10] = info.min
        scores = scores.to(dtype)
    corner = torch.arange(count, dtype=torch.float32)[:, None] * 10
    boxes = torch.cat([corner, corner, corner + 1, corner + 1], dim=1)  # all apart
    if dtype == torch.uint16:  # which torch.sort may lack
        expected = scores.to(torch.int32).sort(descending=True, stable=True).indices
        try:
            scores.sort()
        except RuntimeError:
            pytest.skip("this torch can't sort uint16")
    else:
        expected = scores.sort(descending=True, stable=True).indices
    keep = ops.nms(boxes.to(backend.device), scores.to(backend.device), 0.5)
    assert keep.tolist() == expected.tolist()
