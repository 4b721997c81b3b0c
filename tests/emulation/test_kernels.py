"""Every CUDA kernel under emulation, at the edges of its tiles and under several schedules.

The operators' own tests (tests/ops) run on the emulated kernels too; these are the ones that are
quick enough to run once for each mutant of a kernel.
"""

from __future__ import annotations

import functools

import pytest
import torch

from rcnn_ext import ops
from rcnn_ext.ops import use_backend
from tests.helpers.emulation.backend import EmulationError, emulated, emulator
from tests.helpers.emulation.build import why_not
from tests.helpers.emulation.case import Case, boxes
from tests.helpers.emulation.cases import CASES

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


# These run under more schedules.
SEEDS = range(10, 22, 2)
SCHEDULED = [
    case
    for case in CASES
    if case.name
    in (
        "complete_box_iou-65x129",
        "box_iou-batched",
        "match_boxes-300x2100-True",
        "match_boxes-batch",
        "nms-257",
        "nms-twins",
        "nms_padded-400-100",
        "batched_nms-400-2",
        "batched_nms_padded-300-9",
        "non_max_merging-400-7",
        "non_max_merging-600-ios",
        "generate_proposals",
        "postprocess_detections",
        "postprocess_detections-all",
        "roi_align-contiguous",
        "roi_align-channels_last",
        "roi_align-many-rois-contiguous",
        "roi_pool-contiguous",
        "roi_pool-many-bins-contiguous",
    )
]


@functools.cache
def expected_of(case: Case) -> tuple[torch.Tensor, ...]:
    """Return the results of the reference."""
    with use_backend("reference"):
        return case.run(for_reference=True)


def check(case: Case, seed: int) -> None:
    """Compare one call under the schedules of a seed with the reference."""
    with emulated(seed) as instance:
        results = case.run()
        assert instance.library.launches() > 0
    for result, expected in zip(results, expected_of(case), strict=True):
        tolerance = 0 if case.exact else case.tolerance
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_reference(case: Case) -> None:
    check(case, seed=1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", SCHEDULED, ids=lambda case: case.name)
def test_does_not_depend_on_the_schedule(case: Case, seed: int) -> None:
    check(case, seed)


def test_every_operator_with_a_cuda_kernel_is_emulated() -> None:
    names = {operator._schema.name for operator in emulator().operators}
    assert names >= {
        f"rcnn_ext::{name}"
        for name in (
            "box_iou", "box_iou_backward", "nms", "batched_nms", "nms_padded",
            "batched_nms_padded", "generate_proposals", "non_max_merging",
            "postprocess_detections", "soft_nms",
            "batched_soft_nms", "roi_align", "roi_align_backward", "roi_pool", "roi_pool_backward",
            "multiscale_roi_align", "multiscale_roi_align_backward",
        )
    }  # fmt: skip


def test_empty_inputs_launch_nothing() -> None:
    empty = torch.empty(0, 4)
    with emulated() as instance:
        assert ops.nms(empty, torch.empty(0), 0.5).shape == (0,)
        assert ops.batched_nms(empty, torch.empty(0), torch.empty(0), 0.5).shape == (0,)
        assert ops.soft_nms(empty, torch.empty(0))[1].shape == (0,)
        assert ops.non_max_merging(empty, torch.empty(0)).boxes.shape == (0, 4)
        assert ops.box_iou(empty, boxes(3)).shape == (0, 3)
        assert ops.roi_align(torch.ones(1, 2, 5, 5), torch.empty(0, 5), 3).shape == (0, 2, 3, 3)
        levels = [torch.ones(1, 2, 5, 5), torch.ones(1, 2, 3, 3)]
        pooled = ops.multiscale_roi_align(levels, torch.empty(0, 5), 3, [1.0, 0.5])
        assert pooled.shape == (0, 2, 3, 3)
        assert ops.roi_pool(torch.ones(1, 0, 5, 5), torch.ones(4, 5), 3).shape == (4, 0, 3, 3)
        assert ops.postprocess_detections(
            empty, empty, empty, torch.empty(0, dtype=torch.int64), torch.ones(2, 2)
        ).counts.tolist() == [0, 0]
        nothing = [torch.empty(2, 0, 3, 3)]
        assert ops.generate_proposals(nothing, nothing, empty, torch.ones(2, 2)).boxes.numel() == 0
        assert instance.library.launches() == 0


def test_gradient_of_no_rois_is_zeros() -> None:
    features = torch.ones(1, 2, 5, 5, requires_grad=True)
    for pool in (ops.roi_align, ops.roi_pool):
        with emulated():
            (grad,) = torch.autograd.grad(pool(features, torch.empty(0, 5), 3).sum(), features)
        assert not grad.any()


def test_outputs_of_operators_begin_as_poison() -> None:
    features, rois = torch.ones(1, 2, 5, 5), torch.ones(4, 5)
    for count, call in (
        (1, lambda: ops.box_iou(boxes(3), boxes(4))),
        # Ranks, bits of pairs and of boxes, indices and their number, and what is empty here.
        (8, lambda: ops.nms(boxes(3), torch.rand(3), 0.5)),
        (1, lambda: ops.roi_align(features, rois, 3)),
        (2, lambda: ops.roi_pool(features, rois, 3)),
    ):
        with emulated() as instance:
            call()
            assert instance.poisoned_outputs == count


def test_poison_that_is_left_and_inputs_that_change_are_errors() -> None:
    # The backend's own checks, on operators that break them.
    instance, ones = emulator(), (torch.ones(4),)
    results = [instance.call(lambda x: torch.empty(4), ones, {}, seed) for seed in (0, 1)]
    with pytest.raises(EmulationError, match="depends on the schedule: seeds 0 and 1 differ"):
        instance.compare("toy", results, (0, 1))
    with pytest.raises(EmulationError, match="an input was written to"):
        instance.call(lambda x: x.zero_().clone(), ones, {}, 0)
