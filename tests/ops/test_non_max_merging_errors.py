"""What ``non_max_merging`` refuses."""

from __future__ import annotations

import math

import pytest
import torch

from rcnn_ext import ops
from tests.helpers.backends import Backend
from tests.helpers.samples import make_boxes, make_scores


def test_vmap_is_refused_by_name(backend: Backend) -> None:
    boxes = make_boxes(12).view(3, 4, 4).to(backend.device)
    scores = make_scores(12).view(3, 4).to(backend.device)
    with pytest.raises(NotImplementedError, match="non_max_merging: vmap can't .*idxs"):
        torch.vmap(lambda b, s: ops.non_max_merging(b, s).groups)(boxes, scores)


BAD = {
    "metric": (lambda b, s: ops.non_max_merging(b, s, metric="giou"), ValueError, "'giou'"),
    "threshold": (
        lambda b, s: ops.non_max_merging(b, s, threshold=math.nan),
        RuntimeError,
        "threshold to be a number, got nan",
    ),
    "columns": (
        lambda b, s: ops.non_max_merging(b[:, :3], s),
        RuntimeError,
        r"boxes of shape \[N, 4\], got \[3, 3\]",
    ),
    "a box": (lambda b, s: ops.non_max_merging(b[0], s), RuntimeError, r"boxes of shape"),
    "a box of a label": (
        lambda b, s: ops.non_max_merging(b[0, 0], s, s),
        RuntimeError,
        r"boxes of shape \[N, 4\], got \[\]",
    ),
    "integers": (
        lambda b, s: ops.non_max_merging(b.long(), s),
        RuntimeError,
        "boxes to be float16, .* got int64",
    ),
    "scores": (lambda b, s: ops.non_max_merging(b, s[:2]), RuntimeError, r"scores of shape \[3\]"),
    "labels": (
        lambda b, s: ops.non_max_merging(b, s, s[:2]),
        RuntimeError,
        r"labels of shape \[3\], one for each box, got \[2\]",
    ),
    "labels of no use": (
        lambda b, s: ops.non_max_merging(b, s, s[:2], class_agnostic=True),
        RuntimeError,
        r"labels of shape \[3\]",
    ),
    "idxs": (
        lambda b, s: ops.non_max_merging(b, s, idxs=s[:, None]),
        RuntimeError,
        r"idxs of shape \[3\], one for each box, got \[3, 1\]",
    ),
    "complex labels": (
        lambda b, s: ops.non_max_merging(b, s, s.to(torch.complex64)),
        RuntimeError,
        "labels to be real numbers, got complex64",
    ),
    "complex scores": (
        lambda b, s: ops.non_max_merging(b, s.to(torch.complex64)),
        RuntimeError,
        "scores to be real numbers, got complex64",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_by_name(backend: Backend, what: str) -> None:
    call, error, message = BAD[what]
    with pytest.raises(error, match=f"non_max_merging: expected .*{message}"):
        call(make_boxes(3).to(backend.device), make_scores(3).to(backend.device))


def test_unknown_metric_of_the_raw_operator(backend: Backend) -> None:
    boxes, scores = make_boxes(3).to(backend.device), make_scores(3).to(backend.device)
    with pytest.raises(RuntimeError, match="non_max_merging: expected metric 0 .* got 2"):
        torch.ops.rcnn_ext.non_max_merging(boxes, scores, torch.zeros_like(scores).long(), 0.5, 2)
