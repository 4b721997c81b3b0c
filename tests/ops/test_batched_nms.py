from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers import brute_force
from tests.helpers.backends import Backend
from tests.helpers.peer import torchvision
from tests.helpers.samples import FLOATING, make_boxes, make_scores


def _batched_nms(
    backend: Backend, boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float
) -> list[int]:
    device = backend.device
    keep = ops.batched_nms(boxes.to(device), scores.to(device), idxs.to(device), iou_threshold)
    assert keep.dtype == torch.int64
    assert keep.device.type == device.type
    return keep.tolist()


def _class_by_class(
    backend: Backend, boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float
) -> list[int]:
    kept = []
    for number in idxs.unique():
        members = (idxs == number).nonzero()[:, 0]
        keep = ops.nms(
            boxes[members].to(backend.device), scores[members].to(backend.device), iou_threshold
        )
        kept.append(members[keep.cpu()])
    everything = torch.cat(kept).sort().values
    return everything[scores[everything].sort(descending=True, stable=True).indices].tolist()


def test_by_hand(backend: Backend) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 10], [0, 1, 10, 10]])
    scores = torch.tensor([0.6, 0.7, 0.8, 0.9])
    idxs = torch.tensor([0, 0, 1, 1])
    assert _batched_nms(backend, boxes, scores, idxs, 0.5) == [3, 1]
    assert _batched_nms(backend, boxes, scores, torch.tensor([0, 1, 2, 3]), 0.5) == [3, 2, 1, 0]
    assert _batched_nms(backend, boxes, scores, torch.tensor([5, 5, 5, 5]), 0.5) == [3]


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_equals_brute_force(backend: Backend, dtype: torch.dtype) -> None:
    boxes = make_boxes(200, size=16).to(dtype)
    scores = torch.randint(0, 12, (200,)) / 12
    idxs = torch.randint(0, 5, (200,))
    expected = brute_force.nms(boxes, scores, 0.45, idxs)
    assert _batched_nms(backend, boxes, scores, idxs, 0.45) == expected.tolist()


@pytest.mark.parametrize(("count", "classes"), [(300, 7), (900, 1), (3000, 80)])
def test_equals_torchvision(backend: Backend, count: int, classes: int) -> None:
    # Quarters of pixels: torchvision's offsets between classes are exact, or not used (3000).
    boxes, scores = make_boxes(count, size=60), make_scores(count)
    idxs = torch.randint(0, classes, (count,))
    expected = torchvision.ops.batched_nms(boxes, scores, idxs, 0.5).tolist()
    assert _batched_nms(backend, boxes, scores, idxs, 0.5) == expected


@pytest.mark.parametrize("count", [1, 63, 65, 1500])
def test_equals_nms_of_each_class(backend: Backend, count: int) -> None:
    boxes = make_boxes(count, size=40)
    scores = torch.randint(0, 40, (count,)) / 40
    for classes in (3, 17):
        idxs = torch.randint(0, classes, (count,))
        expected = _class_by_class(backend, boxes, scores, idxs, 0.5)
        assert _batched_nms(backend, boxes, scores, idxs, 0.5) == expected


NUMBERS = {
    "int64": torch.tensor([-(2**63), -1, 0, 1, 2**53, 2**53 + 1, 2**63 - 1]),
    "int32": torch.tensor([-(2**31), -1, 0, 1, 2**31 - 1], dtype=torch.int32),
    "int16": torch.tensor([-(2**15), -1, 0, 2**15 - 1], dtype=torch.int16),
    "uint8": torch.tensor([0, 1, 254, 255], dtype=torch.uint8),
    "bool": torch.tensor([False, True]),
    "float32": torch.tensor([0.0, 0.25, 0.5, 1.0, -1.0, 1e30, -1e30, 1e-40, math.inf]),
    "float64": torch.tensor([0.0, 0.1, 0.1 + 1e-17, 1.0, 1e300], dtype=torch.float64),
    "float16": torch.tensor([0.0, 0.5, 1.0, -1.0, 1e-7], dtype=torch.float16),
    "bfloat16": torch.tensor([0.0, 0.5, 1.0, -1.0, 1e30], dtype=torch.bfloat16),
    "float8": torch.tensor([0.0, 0.25, 0.5, -0.5, 1.0]).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("dtype", NUMBERS)
def test_classes_of_any_dtype_and_size(backend: Backend, dtype: str) -> None:
    numbers = NUMBERS[dtype]
    # Equal classes, numbered from 0. (float8 can't be compared; float64 holds every other one.)
    distinct = numbers.float().tolist() if dtype == "float8" else numbers.tolist()
    names = {value: i for i, value in enumerate(dict.fromkeys(distinct))}
    choice = torch.randint(0, len(numbers), (250,))
    boxes, scores = make_boxes(250, size=16), make_scores(250)
    plain = torch.tensor([names[distinct[i]] for i in choice.tolist()])
    expected = brute_force.nms(boxes, scores, 0.4, plain).tolist()
    # Of 8-bit floats not even indexing is everywhere.
    idxs = numbers.double()[choice].to(numbers.dtype) if dtype == "float8" else numbers[choice]
    assert _batched_nms(backend, boxes, scores, idxs, 0.4) == expected


def test_zeros_of_both_signs_are_one_class(backend: Backend) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4]]).repeat(2, 1)
    scores = torch.tensor([0.9, 0.8])
    for dtype in FLOATING:
        idxs = torch.tensor([-0.0, 0.0], dtype=dtype)
        assert _batched_nms(backend, boxes, scores, idxs, 0.5) == [0]


@pytest.mark.parametrize("far", [1e6, 1e18, 3e38, -3e38])
def test_other_classes_do_not_matter_wherever_they_are(backend: Backend, far: float) -> None:
    # An offset of the coordinates by class, as others do it, loses the boxes' digits here.
    boxes, scores = make_boxes(200, size=16), make_scores(200)
    idxs = torch.randint(0, 3, (200,))
    expected = _batched_nms(backend, boxes, scores, idxs, 0.4)
    other = torch.tensor([[far, far, far, far]])
    keep = _batched_nms(
        backend,
        torch.cat([boxes, other]),
        torch.cat([scores, torch.tensor([-1.0])]),
        torch.cat([idxs, torch.tensor([3])]),
        0.4,
    )
    assert keep == [*expected, 200]


def test_boxes_that_are_not_finite_are_never_kept_and_never_suppress(backend: Backend) -> None:
    boxes, scores = make_boxes(120, size=16), make_scores(120)
    idxs = torch.randint(0, 4, (120,))
    bad = torch.tensor([[math.nan, 0, 16, 16], [0, 0, math.inf, 16], [-math.inf, 0, 16, 16]])
    expected = _batched_nms(backend, boxes, scores, idxs, 0.4)
    keep = _batched_nms(
        backend,
        torch.cat([bad, boxes]),
        torch.cat([torch.tensor([2.0, 3.0, 4.0]), scores]),
        torch.cat([torch.tensor([0, 1, 2]), idxs]),
        0.4,
    )
    assert keep == [i + 3 for i in expected]


def test_one_class_is_nms_and_classes_of_one_box_all_stay(backend: Backend) -> None:
    boxes, scores = make_boxes(500, size=40), torch.randint(0, 20, (500,)) / 20
    nms = ops.nms(boxes.to(backend.device), scores.to(backend.device), 0.5).tolist()
    assert _batched_nms(backend, boxes, scores, torch.full((500,), 17), 0.5) == nms
    by_score = scores.sort(descending=True, stable=True).indices.tolist()
    assert _batched_nms(backend, boxes, scores, torch.randperm(500), 0.0) == by_score


def test_numbers_of_the_classes_do_not_matter(backend: Backend) -> None:
    boxes, scores = make_boxes(400, size=30), torch.randint(0, 20, (400,)) / 20
    idxs = torch.randint(0, 6, (400,))
    renamed = torch.tensor([40, -3, 7, 10**15, 0, 5])[idxs]
    expected = _batched_nms(backend, boxes, scores, idxs, 0.5)
    assert _batched_nms(backend, boxes, scores, renamed, 0.5) == expected


def test_empty(backend: Backend) -> None:
    for dtype in (torch.int64, torch.float32, torch.bool):
        idxs = torch.empty(0, dtype=dtype)
        assert _batched_nms(backend, torch.empty(0, 4), torch.empty(0), idxs, 0.5) == []


@pytest.mark.parametrize("shape", [(0,), (0, 4), (0, 5), (3, 0)], ids=str)
def test_without_boxes_nothing_else_is_looked_at(backend: Backend, shape: tuple[int, ...]) -> None:
    boxes = torch.empty(shape, device=backend.device)
    for scores in (None, torch.empty(0, device=backend.device)):
        for idxs in (None, torch.empty(0, dtype=torch.int64, device=backend.device)):
            result = ops.batched_nms(boxes, scores, idxs, 0.5)  # type: ignore[arg-type]
            assert result.dtype == torch.int64
            assert result.tolist() == []
            assert result.device == boxes.device
            expected = torchvision.ops.batched_nms(boxes.cpu(), scores, idxs, 0.5)
            assert torch.equal(result.cpu(), expected)


def test_layout_does_not_matter(backend: Backend) -> None:
    boxes, scores = make_boxes(90, size=16), make_scores(90)
    idxs = torch.randint(0, 3, (90,))
    expected = _batched_nms(backend, boxes, scores, idxs, 0.4)
    spread = torch.full((180, 5), math.nan, device=backend.device)
    spread[::2, :4], spread[::2, 4] = boxes.to(backend.device), scores.to(backend.device)
    numbers = torch.stack([idxs, -idxs], dim=1).to(backend.device)
    keep = ops.batched_nms(spread[::2, :4], spread[::2, 4], numbers[:, 0], 0.4)
    assert keep.tolist() == expected
    same = numbers[:1, 0].expand(90)
    keep = ops.batched_nms(spread[::2, :4], spread[::2, 4], same, 0.4)
    assert keep.tolist() == ops.nms(spread[::2, :4], spread[::2, 4], 0.4).tolist()


def test_inputs_are_not_changed(backend: Backend) -> None:
    inputs = [make_boxes(30, size=16), make_scores(30), torch.randint(0, 3, (30,)).float()]
    on_device = [tensor.to(backend.device) for tensor in inputs]
    before = [tensor.clone() for tensor in on_device]
    ops.batched_nms(*on_device, 0.4)
    for tensor, copy in zip(on_device, before, strict=True):
        assert torch.equal(tensor, copy)


def test_deterministic_for_any_number_of_threads(native: Backend) -> None:
    boxes, scores = make_boxes(6000, size=60), torch.randint(0, 50, (6000,)) / 50
    idxs = torch.randint(0, 30, (6000,))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(_batched_nms(native, boxes, scores, idxs, 0.5))
    finally:
        torch.set_num_threads(threads)
    assert results.count(results[0]) == len(results)
