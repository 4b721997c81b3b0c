"""The sanitizers' workload, on the CPU."""

from __future__ import annotations

import math

import pytest
import sanitizer_workload
import torch

CPU = torch.device("cpu")


def test_the_first_calls_take_every_operator() -> None:
    """A sanitizer stage that runs out of time has still seen all of them."""
    names = " ".join(name for name, _ in sanitizer_workload.interleaved()[:50])
    for operator in (
        *sanitizer_workload.IOU_FUNCTIONS,
        "match_boxes",
        "nms",
        "soft_nms",
        "non_max_merging",
        "generate_proposals",
        "postprocess_detections",
        "multi_scale_roi_align",
    ):
        assert operator in names
    for operator in ("align", "pool"):
        assert f"{operator} (" in names
        assert f"{operator} of image" in names


def test_a_share_of_the_calls_runs() -> None:
    calls = sanitizer_workload.interleaved()[::9]
    assert sanitizer_workload.run(calls, CPU, math.inf) == (len(calls), [])


def test_wrong_results_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([torch.zeros(3), torch.ones(3)])
    calls = [("nms 3", lambda device: (next(results),))]
    done, (line,) = sanitizer_workload.run(calls, CPU, math.inf)
    assert done == 1
    assert line.startswith("nms 3, result 0: Tensor-likes are not close")


def test_time_is_kept() -> None:
    assert sanitizer_workload.run(sanitizer_workload.interleaved(), CPU, -1.0) == (0, [])
