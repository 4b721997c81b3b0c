from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers import brute_force
from tests.helpers.backends import Backend
from tests.helpers.samples import FLOATING, HALF, WIDE, make_boxes, make_scores

METRICS = ["iou", "ios"]
metrics = pytest.mark.parametrize("metric", METRICS)


def _merge(
    backend: Backend, boxes: Tensor, scores: Tensor, *args: Any, **options: Any
) -> ops.MergedBoxes:
    """Run the operator on a backend's device, and return its results on the CPU."""

    def move(value: Any) -> Any:
        return value.to(backend.device) if isinstance(value, Tensor) else value

    merged = ops.non_max_merging(
        move(boxes),
        move(scores),
        *(move(value) for value in args),
        **{name: move(value) for name, value in options.items()},
    )
    assert merged.boxes.dtype == boxes.dtype
    assert merged.scores.dtype == scores.dtype
    assert merged.indices.dtype == merged.groups.dtype == torch.int64
    assert len(merged.boxes) == len(merged.scores) == len(merged.indices)
    assert merged.groups.shape == scores.shape
    given = [value for value in merged if value is not None]
    assert all(value.device.type == backend.device.type for value in given)
    return ops.MergedBoxes(*(None if value is None else value.cpu() for value in merged))


def _assert_equals_judge(
    merged: ops.MergedBoxes,
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    metric: str,
    segments: Tensor | None = None,
) -> None:
    """Compare with the plain rendering of the rule, bit for bit."""
    wide = boxes if boxes.dtype == torch.float64 else boxes.float()
    expected, indices, groups = brute_force.non_max_merging(
        wide.numpy(),
        scores.double().numpy(),
        threshold,
        metric,
        None if segments is None else segments.numpy(),
    )
    assert merged.groups.tolist() == groups.tolist()
    assert merged.indices.tolist() == indices.tolist()
    assert torch.equal(merged.boxes, torch.from_numpy(expected).to(boxes.dtype))
    assert torch.equal(merged.scores, scores[merged.indices])


def test_by_hand(backend: Backend) -> None:
    # B overlaps A by 6/14 (IoU) or 0.6 (IoS), and C overlaps B as much, but not A.
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10], [40, 0, 50, 10]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    merged = _merge(backend, boxes, scores, threshold=0.4)
    assert merged.boxes.tolist() == [[0, 0, 14, 10], [8, 0, 18, 10], [40, 0, 50, 10]]
    assert merged.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert merged.labels is None
    assert merged.indices.tolist() == [0, 2, 3]
    assert merged.groups.tolist() == [0, 0, 1, 2]
    # At 0.5 none match by IoU; by IoS they do.
    assert _merge(backend, boxes, scores).groups.tolist() == [0, 1, 2, 3]
    assert _merge(backend, boxes, scores, metric="ios").groups.tolist() == [0, 0, 1, 2]
    # From B, which is the best now, all three are one.
    merged = _merge(backend, boxes, torch.tensor([0.7, 0.9, 0.8, 0.6]), metric="ios")
    assert merged.boxes.tolist() == [[0, 0, 18, 10], [40, 0, 50, 10]]
    assert merged.groups.tolist() == [0, 0, 0, 1]


def test_parts_inside_the_whole(backend: Backend) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 100, 100], [70, 70, 74, 80]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    # The best box takes the whole; the other part matches the whole, but not the best box.
    merged = _merge(backend, boxes, scores, metric="ios")
    assert merged.boxes.tolist() == [[0, 0, 100, 100], [70, 70, 74, 80]]
    assert merged.groups.tolist() == [0, 0, 1]
    assert _merge(backend, boxes, scores).groups.tolist() == [0, 1, 2]


def test_claimed_box_that_no_longer_matches_leaves_the_merged_one(backend: Backend) -> None:
    # Both match the best box at 0.5; the second does not match the merged box of 20 x 10: 10 / 24.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 10], [-5, 0, 10, 10]])
    merged = _merge(backend, boxes, torch.tensor([0.9, 0.8, 0.7]))
    assert merged.boxes.tolist() == [[0, 0, 20, 10]]
    assert merged.groups.tolist() == [0, 0, 0]
    # In the other order the other one is left out.
    merged = _merge(backend, boxes, torch.tensor([0.9, 0.7, 0.8]))
    assert merged.boxes.tolist() == [[-5, 0, 10, 10]]


def test_labels_and_images(backend: Backend) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(6, 1)
    boxes[:, 2] += torch.arange(6) / 8
    scores = torch.tensor([0.4, 0.9, 0.8, 0.7, 0.6, 0.5])
    labels = torch.tensor([7, 7, 3, 3, 7, 3])
    images = torch.tensor([0, 1, 0, 1, 0, 0])
    merged = _merge(backend, boxes, scores, labels)
    assert merged.groups.tolist() == [0, 0, 1, 1, 0, 1]
    assert merged.labels is not None
    assert merged.labels.tolist() == [7, 3]
    assert merged.boxes[:, 2].tolist() == [10.5, 10.625]
    merged = _merge(backend, boxes, scores, labels, class_agnostic=True)
    assert merged.groups.tolist() == [0] * 6
    assert merged.labels is not None
    assert merged.labels.tolist() == [7]
    merged = _merge(backend, boxes, scores, idxs=images)
    assert merged.groups.tolist() == [1, 0, 1, 0, 1, 1]
    assert images[merged.indices].tolist() == [1, 0]
    merged = _merge(backend, boxes, scores, labels, idxs=images)
    assert merged.groups.tolist() == [3, 0, 1, 2, 3, 1]
    assert merged.labels is not None
    assert merged.labels.tolist() == [7, 3, 3, 7]
    assert images[merged.indices].tolist() == [1, 0, 1, 0]


@metrics
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_equals_judge(backend: Backend, dtype: torch.dtype, metric: str) -> None:
    boxes, scores = make_boxes(150, size=60).to(dtype), make_scores(150)
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.95, 1.0):
        merged = _merge(backend, boxes, scores, threshold=threshold, metric=metric)
        _assert_equals_judge(merged, boxes, scores, threshold, metric)


@metrics
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 130, 513])
def test_equals_judge_around_the_sizes_of_groups(backend: Backend, count: int, metric: str) -> None:
    # With ties in the scores.
    boxes = make_boxes(count, size=200)
    scores = torch.randint(1, count + 1, (count,)) / count
    merged = _merge(backend, boxes, scores, threshold=0.4, metric=metric)
    _assert_equals_judge(merged, boxes, scores, 0.4, metric)


@metrics
def test_equals_judge_by_segment(backend: Backend, metric: str) -> None:
    boxes, scores = make_boxes(300, size=60), make_scores(300)
    labels, images = torch.randint(0, 3, (300,)), torch.randint(0, 4, (300,))
    merged = _merge(backend, boxes, scores, labels, 0.4, metric, idxs=images)
    _assert_equals_judge(merged, boxes, scores, 0.4, metric, labels * 4 + images)
    assert merged.labels is not None
    assert torch.equal(merged.labels, labels[merged.indices])
    # Numbers of any dtype tell classes apart.
    for numbers in (labels * 2**60 - 2**61, labels / 4, labels.to(torch.uint8)):
        again = _merge(backend, boxes, scores, numbers, 0.4, metric, idxs=images * 2**60)
        assert torch.equal(again.groups, merged.groups)
        assert torch.equal(again.boxes, merged.boxes)


@metrics
def test_equals_judge_on_many_boxes(native: Backend, metric: str) -> None:
    count = 300 if native.implementation == "emulated" else 3000
    generator = torch.Generator().manual_seed(3)
    low = torch.rand(count, 2, generator=generator) * 900
    # A few are as large as the image, which lie in no one place.
    sizes = 4 + 40 * torch.rand(count, 2, generator=generator)
    sizes[::50] *= 20
    boxes, scores = torch.cat([low, low + sizes], dim=1), torch.rand(count, generator=generator)
    merged = _merge(native, boxes, scores, threshold=0.3, metric=metric)
    _assert_equals_judge(merged, boxes, scores, 0.3, metric)
    assert 50 < len(merged.boxes) < count


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_overlap_equal_to_the_threshold_matches(backend: Backend, dtype: torch.dtype) -> None:
    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 2], [2, 0, 6, 2]], dtype=dtype)
    scores = torch.tensor([1.0, 0.5, 0.4])
    above = math.nextafter(0.5, 1)
    assert _merge(backend, boxes, scores, threshold=0.5).groups.tolist() == [0, 0, 1]
    assert _merge(backend, boxes, scores, threshold=above).groups.tolist() == [0, 1, 2]
    # 2 x 2 of the third lie within the first: half of the smaller area.
    for threshold, groups in ((0.5, [0, 0, 0]), (above, [0, 0, 1])):
        merged = _merge(backend, boxes, scores, threshold=threshold, metric="ios")
        assert merged.groups.tolist() == groups


def test_threshold_is_compared_in_double(backend: Backend) -> None:
    # IoU 3/10 in float32 is 0.300000012, 7/10 is 0.699999988: at least 0.3, not at least 0.7.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1], [0, 0, 7, 1]])
    scores = torch.tensor([1.0, 0.5])
    assert len(_merge(backend, boxes[:2], scores, threshold=0.3).boxes) == 1
    assert len(_merge(backend, boxes[::2], scores, threshold=0.7).boxes) == 2


@metrics
def test_thresholds_out_of_range(backend: Backend, metric: str) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 10, 12], [5, 5, 5, 5]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    for threshold in (1.5, math.inf, 1e300):
        merged = _merge(backend, boxes, scores, threshold=threshold, metric=metric)
        assert merged.groups.tolist() == [0, 1, 2, 3]
    for threshold in (0.0, -1.0, -math.inf):
        merged = _merge(backend, boxes, scores, threshold=threshold, metric=metric)
        _assert_equals_judge(merged, boxes, scores, threshold, metric)
        assert merged.boxes.tolist()[0] == [0, 0, 10, 12]
    # A point has no smaller area to be divided by.
    assert len(merged.boxes) == (1 if metric == "iou" else 2)


@metrics
def test_odd_boxes(backend: Backend, metric: str) -> None:
    # Inverted, empty, or of an area beyond float32 or below it: no IoU above 0.
    boxes = torch.tensor(
        [[9.0, 9, 0, 0], [9, 0, 0, 9], [3, 3, 3, 3], [0, 3, 9, 3], [-3e38, -3e38, 3e38, 3e38]]
    )
    boxes = torch.cat([boxes, boxes, torch.tensor([[0.0, 0, 9, 9], [1e-30, 0, 2e-30, 1e-30]])])
    scores = torch.linspace(0.9, 0.4, len(boxes))
    merged = _merge(backend, boxes, scores, threshold=1e-6, metric=metric)
    _assert_equals_judge(merged, boxes, scores, 1e-6, metric)
    # The smaller area is a number also where the larger one is not.
    within = [10, 11] if metric == "iou" else [4, 10]
    assert merged.groups.tolist() == [*range(10), *within]


@metrics
def test_boxes_that_are_not_finite_are_dropped(backend: Backend, metric: str) -> None:
    boxes, scores = make_boxes(60, size=20), make_scores(60)
    expected = _merge(backend, boxes, scores, metric=metric)
    bad = torch.tensor(
        [[math.nan, 0, 20, 20], [0, 0, math.inf, 20], [-math.inf, -math.inf, math.inf, math.inf]]
    )
    merged = _merge(
        backend,
        torch.cat([bad, boxes]),
        torch.cat([torch.tensor([2.0, 3, 4]), scores]),
        metric=metric,
    )
    assert merged.groups.tolist() == [-1] * 3 + expected.groups.tolist()
    assert torch.equal(merged.boxes, expected.boxes)
    assert torch.equal(merged.indices, expected.indices + 3)
    for threshold in (0.5, -1.0):
        merged = _merge(backend, bad, torch.ones(3), threshold=threshold, metric=metric)
        assert merged.boxes.shape == (0, 4)
        assert merged.groups.tolist() == [-1] * 3


def test_scores_of_any_kind(backend: Backend) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)
    boxes[:, 3] += torch.arange(4) / 4
    for scores, best in (
        (torch.tensor([0.5, 0.5, 0.5, 0.5]), 0),
        (torch.tensor([0.5, 0.7, math.nan, math.nan]), 2),
        (torch.tensor([-0.0, 0.0, -1.0, -math.inf]), 0),
        (torch.tensor([1, 5, 9, 9]), 2),
        (torch.tensor([False, True, True, False]), 1),
        (torch.tensor([1, 5, 9, 9], dtype=torch.bfloat16), 2),
    ):
        merged = _merge(backend, boxes, scores)
        assert merged.indices.tolist() == [best]
        assert merged.boxes.tolist() == [[0, 0, 10, 10.75]]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types_are_computed_in_float32(backend: Backend, dtype: torch.dtype) -> None:
    boxes, scores = make_boxes(80, size=32).to(dtype), make_scores(80)
    expected = _merge(backend, boxes.float(), scores, metric="ios")
    merged = _merge(backend, boxes, scores, metric="ios")
    assert torch.equal(merged.groups, expected.groups)
    assert torch.equal(merged.boxes, expected.boxes.to(dtype))


def test_empty(backend: Backend) -> None:
    for dtype in FLOATING:
        merged = _merge(backend, torch.empty(0, 4, dtype=dtype), torch.empty(0), torch.empty(0))
        assert merged.boxes.shape == (0, 4)
        assert merged.labels is not None
        assert merged.labels.shape == merged.scores.shape == merged.groups.shape == (0,)
    nothing = torch.empty(0)
    assert _merge(backend, torch.empty(0, 4), nothing, nothing, idxs=nothing).indices.shape == (0,)


def test_layout_does_not_matter_and_inputs_stay(backend: Backend) -> None:
    boxes, scores = make_boxes(90, size=30), make_scores(90)
    expected = _merge(backend, boxes, scores)
    spread = torch.full((180, 7), math.nan, device=backend.device)
    spread[::2, 2:6] = boxes.to(backend.device)
    spread[::2, 6] = scores.to(backend.device)
    before = spread.clone()
    merged = ops.non_max_merging(spread[::2, 2:6], spread[::2, 6])
    assert torch.equal(merged.groups.cpu(), expected.groups)
    assert torch.equal(merged.boxes.cpu(), expected.boxes)
    torch.testing.assert_close(spread, before, rtol=0, atol=0, equal_nan=True)


def test_no_gradient_flows(backend: Backend) -> None:
    boxes = make_boxes(20, size=20).to(backend.device).requires_grad_()
    scores = make_scores(20).to(backend.device).requires_grad_()
    merged = ops.non_max_merging(boxes, scores, scores)
    assert not any(value is None or value.requires_grad for value in merged)


def test_deterministic_for_any_number_of_threads(native: Backend) -> None:
    boxes, scores = make_boxes(1000, size=60), torch.randint(1, 50, (1000,)) / 50
    inputs = [x.to(native.device) for x in (boxes, scores, torch.randint(0, 30, (1000,)))]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            merged = ops.non_max_merging(*inputs, threshold=0.3)
            results.append([merged.boxes.tolist(), merged.groups.tolist()])
    finally:
        torch.set_num_threads(threads)
    assert results.count(results[0]) == len(results)


@metrics
def test_instruction_sets_give_the_same_bits(native: Backend, metric: str) -> None:
    from rcnn_ext import _extension

    if native.device.type != "cpu":
        pytest.skip("instruction sets are those of the CPU")
    boxes = torch.rand(2000, 4) * 300
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] / 4
    scores = torch.rand(2000)
    for dtype in WIDE:
        results = []
        for name in _extension.instruction_sets():
            with _extension.use_instruction_set(name):
                results.append(ops.non_max_merging(boxes.to(dtype), scores, metric=metric))
        for result in results:
            assert torch.equal(result.groups, results[0].groups)
            assert torch.equal(result.boxes, results[0].boxes)


def test_judge_agrees_with_a_case_worked_out_on_paper() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    merged, indices, groups = brute_force.non_max_merging(
        boxes, np.array([0.7, 0.9, 0.8]), 0.4, "iou"
    )
    # C takes B to 4..18; A overlaps that by 6 of 18 columns: it is claimed, and not merged.
    assert merged.tolist() == [[4, 0, 18, 10]]
    assert indices.tolist() == [1]
    assert groups.tolist() == [0, 0, 0]
