"""The cases' truths: right results pass, wrong ones do not."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torchvision.ops
from torch import Tensor

from rcnn_ext import ops
from rcnn_ext.bench.cases import (
    Case,
    DetectionCase,
    IouCase,
    MatchCase,
    MergingCase,
    NmsCase,
    ProposalCase,
    RoiCase,
    SoftNmsCase,
)
from rcnn_ext.bench.cases.base import TOLERANCES, relative_error, worst_error
from rcnn_ext.bench.cases.matching import pyramid_anchors
from rcnn_ext.bench.cases.suppression import greedy_violation
from rcnn_ext.bench.suite import select, suite, tiny
from rcnn_ext.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "case", [case for case in tiny() if case.has_counterpart], ids=lambda case: case.name
)
def test_truth_accepts_torchvision(case: Case) -> None:
    """torchvision is independent of the truth, which our reference computes for most cases."""
    inputs = case.make(0, CPU, torch.float32)
    check = case.check(inputs)
    with torch.set_grad_enabled(case.differentiates):
        result = case.bind(torchvision.ops, inputs)()
    assert check(result) <= case.tolerance(torch.float32, other_library=True)


# These let rounding decide, and have tests of their own.
TOLERANT = (DetectionCase, MatchCase, MergingCase, NmsCase, ProposalCase, SoftNmsCase)


@pytest.mark.parametrize(
    "case",
    [case for case in tiny() if not isinstance(case, TOLERANT)],
    ids=lambda case: case.name,
)
def test_truth_rejects_a_small_error(case: Case) -> None:
    inputs = case.make(0, CPU, torch.float32)
    check = case.check(inputs)
    with torch.set_grad_enabled(case.differentiates):
        result = case.bind(ops, inputs)()
    results = [result] if isinstance(result, Tensor) else list(result)
    spoilt = [tensor.clone(memory_format=torch.contiguous_format) for tensor in results]
    largest = max(spoilt, key=lambda tensor: float(tensor.abs().max()))
    largest.view(-1)[largest.abs().argmax()] *= 1.05
    wrong = spoilt[0] if isinstance(result, Tensor) else tuple(spoilt)
    assert check(wrong) > case.tolerance(torch.float32, other_library=False)


def test_bind_draws_nothing_and_changes_no_input() -> None:
    for case in tiny():
        inputs = case.make(3, CPU, torch.float32)
        again = case.make(3, CPU, torch.float32)
        with torch.set_grad_enabled(case.differentiates):
            case.bind(ops, inputs)()
        for field in dataclasses.fields(inputs):
            value, expected = getattr(inputs, field.name), getattr(again, field.name)
            if isinstance(value, Tensor):
                torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_names_are_unique_in_every_suite() -> None:
    for quick in (False, True):
        for device in ("cpu", "cuda"):
            names = [case.name for case in select(suite(quick), device)]
            assert len(names) == len(set(names))


def test_suites_hold_every_operator_on_every_device() -> None:
    every = {
        *("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"),
        "box_ios",
        *("generate_proposals", "postprocess_detections"),
        *("nms", "batched_nms", "soft_nms", "non_max_merging"),
        *("match_boxes", "roi_align", "roi_pool", "multi_scale_roi_align"),
    }
    assert {case.operator for case in tiny()} == every
    for quick in (False, True):
        for device in ("cpu", "cuda"):
            assert {case.operator for case in select(suite(quick), device)} == every


def test_targets_belong_to_devices_of_their_case() -> None:
    for case in suite(quick=False):
        if case.targets.cuda is not None:
            assert "cuda" in case.devices, case.name
        if case.targets.cpu is not None:
            assert "cpu" in case.devices, case.name


def test_select_says_what_there_is() -> None:
    with pytest.raises(UserError, match="no case matches 'nmz'.*nms/1000"):
        select(suite(quick=True), "cpu", "nmz")


@pytest.mark.parametrize("grid", [False, True])
def test_share_of_wrong_matches(grid: bool) -> None:
    case = MatchCase("match_boxes", boxes=1_000, gts=20, grid=grid)
    inputs = case.make(0, CPU, torch.float32)
    check = case.check(inputs)
    matches = case.bind(ops, inputs)()
    assert check(matches) == 0
    assert check(case.bind(torchvision.ops, inputs)()) == 0
    assert 3 < len(matches.unique()) < 23
    matches[5:8] += 1
    assert check(matches) == 3e-3 > case.tolerance(torch.float32, other_library=False)
    assert check(matches[1:]) == math.inf


@pytest.mark.parametrize(
    "case",
    [
        ProposalCase("generate_proposals", images=2, scale=16),
        DetectionCase("postprocess_detections", images=2, rois=50, classes=6),
    ],
    ids=lambda case: case.operator,
)
def test_share_of_other_boxes(case: Case) -> None:
    inputs = case.make(0, CPU, torch.float32)
    check = case.check(inputs)
    found = case.bind(ops, inputs)()
    assert check(found) == 0
    theirs = case.bind(torchvision.ops, inputs)()
    assert check(theirs) <= case.tolerance(torch.float32, other_library=True)
    count = int(found.counts.sum())
    assert count > 30
    found.boxes[0, 3] += 1
    assert check(found) == pytest.approx(2 / (2 * count))
    found.counts[0] -= 2
    assert check(found) == pytest.approx(4 / (2 * count - 2))
    if isinstance(case, DetectionCase):
        found.labels[1, 0] += 1
        assert check(found) == pytest.approx(6 / (2 * count - 2))
    assert check(theirs[:1]) == math.inf


def test_anchors_are_of_all_levels() -> None:
    anchors = pyramid_anchors(200_000)
    sides = anchors[:, 2] - anchors[:, 0]
    assert anchors.shape == (200_000, 4)
    assert sides.min() < 32
    assert sides.max() > 512
    with pytest.raises(ValueError, match="at most 267"):
        pyramid_anchors(300_000)


def test_roi_pool_truth_on_a_map_by_hand() -> None:
    case = RoiCase(
        "roi_pool", rois=1, channels=1, map_size=(4, 6), output_size=2, spatial_scale=0.5
    )
    inputs = case.make(0, CPU, torch.float32)
    features = torch.arange(24.0).view(1, 1, 4, 6)
    # x from 2 * 0.5 = 1 to 8 * 0.5 = 4, y from 0 to 3: bins of 2 x 2 feature pixels.
    rois = torch.tensor([[0.0, 2.0, 0.0, 8.0, 6.0]])
    by_hand = torch.tensor([[[[8.0, 10.0], [20.0, 22.0]]]])
    check = case.check(dataclasses.replace(inputs, features=features, rois=rois))
    assert check(by_hand) == 0
    assert check(by_hand + 1) > 0.01


# --- the rule of greedy suppression -------------------------------------------------------------


def _violation(kept: list[int], classes: list[int] | None = None) -> float:
    # The second box overlaps the first by 0.8, the third stands alone, the fourth overlaps it by
    # 0.25.
    boxes = torch.tensor(
        [[0, 0, 10, 10], [0, 0, 10, 8], [50, 0, 60, 10], [56, 0, 66, 10]], dtype=torch.float64
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6], dtype=torch.float64)
    labels = torch.tensor(classes or [0, 0, 0, 0])
    return greedy_violation(boxes, scores, labels, torch.tensor(kept, dtype=torch.int64), 0.5)


def test_greedy_result_has_no_violation() -> None:
    assert _violation([0, 2, 3]) == 0
    assert _violation([0, 1, 2, 3], classes=[0, 1, 0, 0]) == 0


def test_violations_are_measured_in_iou() -> None:
    assert _violation([0, 1, 2, 3]) == pytest.approx(0.8 - 0.5)  # should have gone
    assert _violation([0, 2]) == pytest.approx(0.5 - 0.25)  # should have stayed
    # A lower score suppresses nothing: the first box has no reason to be gone.
    assert _violation([1, 2, 3]) == pytest.approx(0.5)


@pytest.mark.parametrize("kept", [[2, 0, 3], [0, 2, 3, 3], [0, 2, 3, 4], [-1, 2, 3]])
def test_order_repetition_and_range_are_checked(kept: list[int]) -> None:
    assert math.isinf(_violation(kept))


def test_nothing_kept_is_a_violation() -> None:
    assert _violation([]) == pytest.approx(0.5)
    assert _violation([0, 1, 2, 3], classes=[0, 1, 2, 3]) == 0
    assert _violation([0, 1, 2], classes=[0, 1, 2, 3]) == pytest.approx(0.5)


def test_every_removal_and_every_addition_is_noticed() -> None:
    case = NmsCase("nms", count=200)
    inputs = case.make(1, CPU, torch.float32)
    check = case.check(inputs)
    kept = torchvision.ops.nms(inputs.boxes, inputs.scores, 0.5).tolist()
    assert check(torch.tensor(kept)) <= case.tolerance(torch.float32, other_library=False)
    for gone in kept[::7]:
        without = [index for index in kept if index != gone]
        assert check(torch.tensor(without)) > 1e-3
    for extra in sorted(set(range(200)) - set(kept))[::7]:
        more = sorted([*kept, extra], key=lambda index: -float(inputs.scores[index]))
        assert check(torch.tensor(more)) > 1e-4


def test_ties_may_be_broken_either_way() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9]], dtype=torch.float64)
    scores = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for kept in ([0], [1]):
        labels = torch.zeros(2, dtype=torch.int64)
        assert greedy_violation(boxes, scores, labels, torch.tensor(kept), 0.5) == 0


def test_nms_of_no_boxes_is_right() -> None:
    case = NmsCase("nms", count=0)
    inputs = case.make(0, CPU, torch.float32)
    assert case.check(inputs)(torch.empty(0, dtype=torch.int64)) == 0
    assert math.isinf(case.check(inputs)(torch.tensor([0])))


# --- soft suppression ---------------------------------------------------------------------------


def _soften(boxes: Tensor, scores: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """The paper's loop, box by box; it shares no code with the truth of the case."""
    left = scores.double().tolist()
    taken: list[tuple[int, float]] = []
    while left and max(left) >= 0.001:
        best = left.index(max(left))
        taken.append((best, left[best]))
        left[best] = -1.0
        overlaps = torchvision.ops.box_iou(boxes[best : best + 1].double(), boxes.double())[0]
        for index, iou in enumerate(overlaps.tolist()):
            linear = 1 - iou if iou >= 0.3 else 1.0
            left[index] *= linear if method == "linear" else math.exp(-(iou**2) / 0.5)
    indices, lowered = zip(*taken, strict=True)
    return torch.tensor(indices), torch.tensor(lowered, dtype=scores.dtype)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_share_of_boxes_scored_otherwise(method: str) -> None:
    case = SoftNmsCase("soft_nms", count=250, method=method)
    inputs = case.make(0, CPU, torch.float32)
    check = case.check(inputs)
    kept, lowered = _soften(inputs.boxes, inputs.scores, method)
    assert check((kept, lowered)) == 0
    assert (lowered < inputs.scores[kept]).sum() > 50
    assert check(case.bind(ops, inputs)()) == 0
    assert check((kept[:-1], lowered[:-1])) == pytest.approx(1 / 250)  # one is missing
    swapped = kept.clone()
    swapped[3], swapped[4] = kept[4], kept[3]
    assert check((swapped, lowered)) == pytest.approx(2 / 250)
    assert case.tolerance(torch.float32, other_library=False) < 1 / 250
    unknown = lowered.clone()
    unknown[7] = math.nan
    assert check((kept, unknown)) == pytest.approx(1 / 250)
    assert math.isinf(check((kept, lowered.flip(0))))
    assert math.isinf(check((kept.where(kept != kept[0], kept[1]), lowered)))  # one twice
    assert math.isinf(check((kept + 1, lowered[:-1])))


@pytest.mark.parametrize("metric", ["iou", "ios"])
def test_share_of_boxes_merged_otherwise(metric: str) -> None:
    case = MergingCase("non_max_merging", count=250, metric=metric)
    inputs = case.make(0, CPU, torch.float32)
    check = case.check(inputs)
    boxes, indices, groups = case.bind(ops, inputs)()
    assert check((boxes, indices, groups)) == 0
    assert len(boxes) < 250
    other = groups.clone()
    other[5] = (groups[5] + 1) % len(boxes)
    assert check((boxes, indices, other)) == pytest.approx(1 / 250)
    assert case.tolerance(torch.float32, other_library=False) < 1 / 250
    (alone,) = (groups.bincount() == 1).nonzero()[:1]
    unknown = boxes.clone()
    unknown[alone, 2] = math.nan
    assert check((unknown, indices, groups)) == pytest.approx(1 / 250)
    assert math.isinf(check((boxes, indices, groups[1:])))
    assert math.isinf(check((boxes, indices, groups - 1)))
    assert math.isinf(check((boxes[1:], indices, groups)))


# --- errors --------------------------------------------------------------------------------------


def test_relative_error() -> None:
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([3.0, 4.0]), truth) == 0
    assert relative_error(torch.tensor([3.0, 4.5]), truth) == pytest.approx(0.1)
    assert math.isnan(relative_error(torch.tensor([3.0, math.nan]), truth))
    assert math.isnan(relative_error(torch.tensor([3.0]), truth))
    zeros = torch.zeros(2, dtype=torch.float64)
    assert relative_error(torch.tensor([0.0, 0.5]), zeros) == pytest.approx(0.5)


def test_relative_error_does_not_depend_on_layout() -> None:
    truth = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    result = truth.contiguous(memory_format=torch.channels_last)
    assert relative_error(result, truth) == 0


def test_worst_error_of_several_results() -> None:
    truths = (torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    assert worst_error((torch.ones(2), torch.full((2,), 1.5)), truths) == pytest.approx(0.5)
    assert math.isnan(worst_error((torch.ones(2),), truths))
    assert math.isnan(worst_error((torch.full((2,), math.nan), torch.ones(2)), truths))


def test_half_tolerances_are_wider_for_another_library_only() -> None:
    case = RoiCase("roi_align", rois=1)
    assert case.tolerance(torch.bfloat16, other_library=True) > case.tolerance(
        torch.bfloat16, other_library=False
    )
    assert case.tolerance(torch.float32, other_library=True) == TOLERANCES[torch.float32]
    assert (
        IouCase("box_iou").tolerance(torch.float32, other_library=True) == TOLERANCES[torch.float32]
    )
