"""Properties that hold for any input, which hypothesis tries to break."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.backends import BACKENDS, Backend
from tests.helpers.peer import torchvision

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# The fixture stays the same for all examples of a test, and that is meant. Derandomized: the same
# examples in every run.
SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Few different numbers, so that corners, scores and IoUs are often equal.
COORDINATES = st.integers(0, 12)
ODD_COORDINATES = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e-40, 1e20, -1e20, 3e38]),
    st.floats(-100, 100, width=32),
)
# Without boxes whose generalized IoU is infinite, with the unspecified sign of a zero.
TAME_COORDINATES = st.one_of(
    st.sampled_from([math.nan, 0.0, 1.0, 1e-40, 1e20, -1e20, 3e38]),
    st.floats(-100, 100, width=32).map(lambda x: x + 0.0),
)


@st.composite
def some_boxes(draw: Any, coordinates: Any = COORDINATES, most: int = 40) -> Tensor:
    """Boxes ``[N, 4]``, corners in any order."""
    rows = draw(st.lists(st.tuples(*[coordinates] * 4), max_size=most))
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


@st.composite
def candidates(draw: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes with positive sides, scores with ties and classes."""
    boxes = draw(some_boxes())
    boxes = torch.cat(
        [torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:]) + 1],
        dim=1,
    )
    n = len(boxes)
    scores = draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))
    idxs = draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n))
    return boxes, torch.tensor(scores, dtype=torch.float32), torch.tensor(idxs, dtype=torch.int64)


thresholds = st.one_of(
    st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0]), st.floats(0, 1), st.floats(0, 1, width=32)
)


@SETTINGS
@given(candidates(), thresholds)
def test_nms_is_greedy(
    backend: Backend, data: tuple[Tensor, Tensor, Tensor], threshold: float
) -> None:
    boxes, scores, idxs = data
    device = backend.device
    keep = ops.batched_nms(boxes.to(device), scores.to(device), idxs.to(device), threshold).cpu()
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    kept[keep] = True
    overlap = ops.box_iou(boxes.to(device), boxes.to(device)).cpu().double() > threshold
    overlap &= idxs[:, None] == idxs[None, :]
    rank = torch.empty(len(boxes), dtype=torch.int64)
    rank[torch.sort(scores, descending=True, stable=True).indices] = torch.arange(len(boxes))
    earlier = rank[:, None] < rank[None, :]
    assert torch.equal(keep, keep[rank[keep].argsort()])
    # A box is kept exactly where no kept box before it overlaps it.
    assert torch.equal(kept, ~(overlap & earlier & kept[:, None]).any(dim=0))


@SETTINGS
@given(some_boxes(ODD_COORDINATES), thresholds)
def test_nms_of_odd_boxes_equals_torchvision(
    backend: Backend, boxes: Tensor, threshold: float
) -> None:
    boxes = boxes[boxes.isfinite().all(dim=1)]
    scores = -torch.arange(len(boxes), dtype=torch.float32)
    keep = ops.nms(boxes.to(backend.device), scores.to(backend.device), threshold)
    assert keep.tolist() == torchvision.ops.nms(boxes, scores, threshold).tolist()


@SETTINGS
@given(some_boxes(TAME_COORDINATES, 12), some_boxes(TAME_COORDINATES, 12))
def test_box_iou_equals_torchvision(backend: Backend, a: Tensor, b: Tensor) -> None:
    for name in (
        "box_iou",
        "generalized_box_iou",
        "distance_box_iou",
        "complete_box_iou",
    ):
        expected = getattr(torchvision.ops, name)(a, b)
        result = getattr(ops, name)(a.to(backend.device), b.to(backend.device)).cpu()
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@st.composite
def pooling(draw: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Features, RoIs in and around them, and options of roi_align."""
    n, c = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    h, w = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    features = torch.randn(n, c, h, w, generator=generator, dtype=torch.float64)
    number = st.integers(-24, 60).map(lambda quarter: quarter / 4)
    rows = draw(st.lists(st.tuples(st.integers(0, n - 1), *[number] * 4), max_size=6))
    rois = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
    options = {
        "output_size": (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        "spatial_scale": draw(st.sampled_from([1.0, 0.5, 0.25, 0.3])),
        "sampling_ratio": draw(st.integers(-1, 3)),
        "aligned": draw(st.booleans()),
    }
    if options["aligned"]:  # torchvision asks for a negative amount of memory for inverted ones
        corners = rois[:, 1:].reshape(-1, 2, 2).sort(dim=1).values
        rois = torch.cat([rois[:, :1], corners.reshape(-1, 4)], dim=1)
    return features, rois, options


@SETTINGS
@given(pooling())
def test_roi_operators_equal_torchvision(
    backend: Backend, data: tuple[Tensor, Tensor, dict[str, Any]]
) -> None:
    features, rois, options = data
    calls = [
        lambda module, x, r: module.roi_align(x, r, **options),
        lambda module, x, r: module.roi_pool(
            x, r, options["output_size"], options["spatial_scale"]
        ),
    ]
    for call in calls:
        theirs = features.clone().requires_grad_()
        expected = call(torchvision.ops, theirs, rois)
        mine = features.to(backend.device).clone().requires_grad_()
        result = call(ops, mine, rois.to(backend.device))
        torch.testing.assert_close(result.cpu(), expected)
        assert ((result.abs() <= features.abs().max() + 1e-9) | result.isnan()).all()
        (expected_grad,) = torch.autograd.grad(expected.square().sum(), theirs)
        (grad,) = torch.autograd.grad(result.square().sum(), mine)
        torch.testing.assert_close(grad.cpu(), expected_grad)


def _implementations() -> list[Backend]:
    return [b for b in BACKENDS if b.missing() is None and not b.needs_gpu]


@SETTINGS
@given(some_boxes(ODD_COORDINATES, 30), thresholds, st.sampled_from([torch.float16, torch.float32]))
def test_all_implementations_suppress_the_same(
    boxes: Tensor, threshold: float, dtype: torch.dtype
) -> None:
    boxes = boxes.to(dtype)
    scores = torch.arange(len(boxes)) % 5
    kept = {}
    for backend in _implementations():
        with contextlib.ExitStack() as stack:
            stack.enter_context(backend.running())
            kept[backend.name] = ops.nms(boxes, scores, threshold).tolist()
    assert len(kept) > 1
    assert all(keep == kept["reference"] for keep in kept.values()), kept
