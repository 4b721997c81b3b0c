from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers import brute_force
from tests.helpers.backends import Backend
from tests.helpers.samples import FLOATING, HALF, WIDE, make_boxes, make_scores

METHODS = ["linear", "gaussian"]
SIGMAS = [0.01, 0.03, 0.5, 7.0, 1e3]


def _soft_nms(
    backend: Backend, boxes: Tensor, scores: Tensor, *args: object, **options: object
) -> tuple[list[int], Tensor]:
    keep, rescored = ops.soft_nms(
        boxes.to(backend.device), scores.to(backend.device), *args, **options
    )
    assert keep.dtype == torch.int64
    assert rescored.dtype == scores.dtype
    assert keep.device.type == rescored.device.type == backend.device.type
    assert keep.shape == rescored.shape
    return keep.tolist(), rescored.cpu()


def _assert_near(actual: Tensor, expected: list[float], dtype: torch.dtype) -> None:
    # Products of some dozens of weights, each off by an ulp or two.
    tolerance = max(100 * torch.finfo(torch.float32).eps, 2 * torch.finfo(actual.dtype).eps)
    if dtype == torch.float64:
        tolerance = 100 * torch.finfo(torch.float64).eps
    torch.testing.assert_close(
        actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=1e-12
    )


def test_linear_by_hand(backend: Backend) -> None:
    # IoU of A with B is 1/2, with C 1/4, of B with C 1/2; D is apart.
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 8, 2], [90, 90, 99, 99]])
    scores = torch.tensor([0.8, 0.6, 0.5, 0.4])
    # After A: B 0.3, C still 0.5, as 1/4 is below 0.3; after C: B 0.15.
    keep, rescored = _soft_nms(backend, boxes, scores)
    assert keep == [0, 2, 3, 1]
    torch.testing.assert_close(rescored, torch.tensor([0.8, 0.5, 0.4, 0.15]))
    # From 1/4 on: after A: B 0.3, C 0.375; after C: B 0.15.
    keep, rescored = _soft_nms(backend, boxes, scores, 0.25)
    assert keep == [0, 3, 2, 1]
    torch.testing.assert_close(rescored, torch.tensor([0.8, 0.4, 0.375, 0.15]))
    # B falls below what is asked for.
    keep, rescored = _soft_nms(backend, boxes, scores, 0.25, score_threshold=0.2)
    assert keep == [0, 3, 2]
    # Below it after A already, B lowers no score.
    boxes[2] = torch.tensor([0, 3, 8, 5])
    keep, rescored = _soft_nms(backend, boxes, scores, 0.3, score_threshold=0.31)
    assert keep == [0, 2, 3]
    torch.testing.assert_close(rescored, torch.tensor([0.8, 0.5, 0.4]))


def test_gaussian_by_hand(backend: Backend) -> None:
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 4], [90, 90, 99, 99]])
    scores = torch.tensor([0.8, 0.6, 0.5])
    keep, rescored = _soft_nms(backend, boxes, scores, method="gaussian")
    assert keep == [0, 2, 1]
    expected = torch.tensor([0.8, 0.5, 0.6 * math.exp(-0.25 / 0.5)])
    torch.testing.assert_close(rescored, expected)
    keep, rescored = _soft_nms(backend, boxes, scores, sigma=0.1, method="gaussian")
    torch.testing.assert_close(rescored[-1].item(), 0.6 * math.exp(-2.5), rtol=1e-6, atol=0)
    # The IoU threshold has no part in it.
    assert torch.equal(_soft_nms(backend, boxes, scores, 0.9, 0.1, method="gaussian")[1], rescored)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_iou_equal_to_the_threshold_lowers_the_score(backend: Backend, dtype: torch.dtype) -> None:
    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 2]], dtype=dtype)  # IoU 1/2
    scores = torch.tensor([1.0, 0.5], dtype=dtype)
    assert _soft_nms(backend, boxes, scores, 0.5)[1].tolist() == [1, 0.25]
    assert _soft_nms(backend, boxes, scores, math.nextafter(0.5, 1))[1].tolist() == [1, 0.5]


def test_threshold_is_compared_in_double(backend: Backend) -> None:
    # IoU 3/10 in float32 is 0.300000012, 7/10 is 0.699999988: not below 0.3, below 0.7.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1], [0, 0, 7, 1]])
    scores = torch.tensor([1.0, 0.5])
    assert _soft_nms(backend, boxes[:2], scores, 0.3)[1][1] < 0.4
    assert _soft_nms(backend, boxes[::2], scores, 0.7)[1][1] == 0.5
    # Scores likewise: 0.1 in float32 is above 0.1, 0.7 below 0.7.
    for score, kept in ((0.1, True), (0.7, False)):
        keep, _ = _soft_nms(backend, boxes[:1], torch.tensor([score]), score_threshold=score)
        assert keep == [0] * kept
        keep, _ = _soft_nms(
            backend, boxes[:1], torch.tensor([score]).double(), score_threshold=score
        )
        assert keep == [0] * kept
        keep, _ = _soft_nms(
            backend, boxes[:1], torch.tensor([score], dtype=torch.float64), score_threshold=score
        )
        assert keep == [0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_equals_brute_force(backend: Backend, dtype: torch.dtype, method: str) -> None:
    boxes = make_boxes(90, size=32).to(dtype)
    scores = make_scores(90).to(dtype)
    for iou_threshold, sigma, score_threshold in ((0.3, 0.5, 0.001), (0.05, 0.05, 0.1)):
        args = (iou_threshold, sigma, score_threshold, method)
        keep, rescored = _soft_nms(backend, boxes, scores, *args)
        expected, expected_scores = brute_force.soft_nms(boxes, scores, *args)
        assert keep == expected
        _assert_near(rescored, expected_scores, dtype)


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 130, 513])
def test_equals_reference(backend: Backend, count: int) -> None:
    # Around the numbers of boxes that a kernel takes together.
    boxes = make_boxes(count, size=200)
    scores = torch.randint(1, count + 1, (count,)) / count  # with ties
    inputs = boxes.to(backend.device), scores.to(backend.device)
    keep, rescored = ops.soft_nms(*inputs)
    with ops.use_backend("reference"):
        expected, expected_scores = ops.soft_nms(*inputs)
    assert torch.equal(keep, expected)
    assert torch.equal(rescored, expected_scores), "linear decay gives the same bits everywhere"
    assert (rescored.diff() <= 0).all()


def test_weights_of_the_gaussian_are_exact_to_a_few_ulp(backend: Backend) -> None:
    # Pairs of boxes far from others, IoU from 1/100 to 1, and sigma so that weights span the range.
    for dtype, ulps in ((torch.float32, 4), (torch.float64, 8)):
        low = torch.arange(100, dtype=dtype) * 1000
        height = torch.arange(1, 101, dtype=dtype)
        zero = torch.zeros(100, dtype=dtype)
        first = torch.stack([low, zero, low + 1, zero + 100], dim=1)
        second = torch.stack([low, zero, low + 1, height], dim=1)
        scores = torch.ones(200, dtype=dtype)
        for sigma in (0.01, 0.5, 1e3) if backend.implementation == "emulated" else SIGMAS:
            keep, rescored = _soft_nms(
                backend, torch.cat([first, second]), scores, 0.3, sigma, 0.0, "gaussian"
            )
            result = torch.empty(200, dtype=torch.float64)
            result[torch.tensor(keep)] = rescored.double()
            iou = (height / 100).double()
            exponent = -((height / 100) ** 2).double() / torch.tensor(sigma, dtype=dtype).double()
            expected = torch.exp(exponent)
            # The exponent is rounded, too, and that counts as often as it is large.
            error = (result[100:] - expected).abs() / expected.clamp(min=1e-30)
            bound = torch.finfo(dtype).eps * (ulps + 2 * exponent.abs())
            checked = exponent > -80
            assert (error <= bound)[checked].all(), (dtype, sigma, iou[error > bound])
            assert (result[100:] <= 1e-30)[~checked].all()


@pytest.mark.parametrize("method", METHODS)
def test_boxes_that_are_not_finite_are_dropped_and_lower_nothing(
    backend: Backend, method: str
) -> None:
    boxes, scores = make_boxes(60, size=20), make_scores(60)
    expected, expected_scores = _soft_nms(backend, boxes, scores, method=method)
    bad = torch.tensor(
        [[math.nan, 0, 20, 20], [0, 0, math.inf, 20], [-math.inf, -math.inf, math.inf, math.inf]]
    )
    keep, rescored = _soft_nms(
        backend,
        torch.cat([bad, boxes]),
        torch.cat([torch.tensor([2.0, 3, 4]), scores]),
        method=method,
    )
    assert keep == [i + 3 for i in expected]
    assert torch.equal(rescored, expected_scores)
    assert _soft_nms(backend, bad, torch.ones(3), method=method)[0] == []


@pytest.mark.parametrize("method", METHODS)
def test_odd_boxes_lower_nothing(backend: Backend, method: str) -> None:
    # Inverted, empty, or of an area beyond float32: no IoU above 0, and no NaN on the way.
    boxes = torch.tensor(
        [[9.0, 9, 0, 0], [9, 0, 0, 9], [3, 3, 3, 3], [0, 3, 9, 3], [-3e38, -3e38, 3e38, 3e38]]
    )
    boxes = torch.cat([boxes, torch.tensor([[0.0, 0, 9, 9]])])
    scores = torch.linspace(0.9, 0.4, 6)
    keep, rescored = _soft_nms(backend, boxes, scores, 0.0, method=method)
    assert keep == [0, 1, 2, 3, 4, 5]
    assert torch.equal(rescored, scores)


def test_scores_that_are_no_numbers_or_too_low_are_dropped(backend: Backend) -> None:
    boxes = torch.arange(6.0)[:, None] * 10 + torch.tensor([0.0, 0, 1, 1])
    scores = torch.tensor([0.0, math.nan, -1.0, 0.001, math.inf, 0.5])
    assert _soft_nms(backend, boxes, scores)[0] == [4, 5, 3]
    assert _soft_nms(backend, boxes, scores, score_threshold=0.0)[0] == [4, 5, 3, 0]
    keep, rescored = _soft_nms(backend, boxes, -torch.zeros(6), score_threshold=0.0)
    assert keep == [0, 1, 2, 3, 4, 5]
    assert rescored.tolist() == [0] * 6
    assert _soft_nms(backend, boxes, scores, score_threshold=math.inf)[0] == [4]


def test_scores_of_equal_boxes_end_at_zero(backend: Backend) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4]]).repeat(3, 1)
    scores = torch.tensor([0.5, 0.5, 0.5])
    assert _soft_nms(backend, boxes, scores)[0] == [0]
    keep, rescored = _soft_nms(backend, boxes, scores, score_threshold=0.0)
    assert keep == [0, 1, 2]
    assert rescored.tolist() == [0.5, 0, 0]


def test_tiny_sigma_and_threshold_out_of_range(backend: Backend) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [9, 9, 10, 10]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    keep, rescored = _soft_nms(backend, boxes, scores, sigma=1e-60, method="gaussian")
    assert keep == [0, 2]
    keep, rescored = _soft_nms(backend, boxes, scores, sigma=math.inf, method="gaussian")
    assert torch.equal(rescored, scores)
    for threshold in (1.5, math.inf, 1e300):
        assert torch.equal(_soft_nms(backend, boxes, scores, threshold)[1], scores)
    for threshold in (-1.0, -math.inf):
        assert _soft_nms(backend, boxes, scores, threshold)[1][-1] < 0.3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_batched_equals_brute_force(backend: Backend, dtype: torch.dtype, method: str) -> None:
    boxes, scores = make_boxes(150, size=24).to(dtype), make_scores(150).to(dtype)
    idxs = torch.randint(0, 4, (150,))
    expected, expected_scores = brute_force.soft_nms(
        boxes, scores, 0.3, 0.5, 0.01, method, idxs=idxs
    )
    for numbers in (idxs, idxs * 2**60 - 2**61, idxs.to(torch.float32) / 4, idxs.to(torch.uint8)):
        keep, rescored = ops.batched_soft_nms(
            *(x.to(backend.device) for x in (boxes, scores, numbers)), 0.3, 0.5, 0.01, method
        )
        assert keep.tolist() == expected
        _assert_near(rescored.cpu(), expected_scores, dtype)


def test_batched_is_soft_nms_of_each_class(backend: Backend) -> None:
    sizes = torch.tensor([1, 1, 2, 64, 65, 200])
    idxs = torch.repeat_interleave(torch.arange(6), sizes)[torch.randperm(333)]
    boxes, scores = make_boxes(333, size=80), torch.randint(1, 50, (333,)) / 50
    inputs = [x.to(backend.device) for x in (boxes, scores, idxs)]
    keep, rescored = (x.cpu() for x in ops.batched_soft_nms(*inputs))
    for number in range(6):
        members = (idxs == number).nonzero()[:, 0]
        own, own_scores = _soft_nms(backend, boxes[members], scores[members])
        mine = idxs[keep] == number
        assert torch.equal(keep[mine], members[own])
        assert torch.equal(rescored[mine], own_scores)
    assert (rescored.diff() <= 0).all()
    ties = rescored.diff() == 0
    assert (keep.diff()[ties] > 0).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types_are_computed_in_float32(backend: Backend, dtype: torch.dtype) -> None:
    boxes, scores = make_boxes(80, size=32).to(dtype), make_scores(80).to(dtype)
    expected, expected_scores = _soft_nms(backend, boxes.float(), scores.float())
    keep, rescored = _soft_nms(backend, boxes, scores)
    assert keep == expected
    assert torch.equal(rescored, expected_scores.to(dtype))


def test_empty(backend: Backend) -> None:
    for dtype in FLOATING:
        boxes, scores = torch.empty(0, 4), torch.empty(0, dtype=dtype)
        assert _soft_nms(backend, boxes, scores)[0] == []
        keep, rescored = ops.batched_soft_nms(
            *(x.to(backend.device) for x in (boxes, scores, torch.empty(0)))
        )
        assert keep.shape == rescored.shape == (0,)
        assert rescored.dtype == dtype


def test_layout_does_not_matter_and_inputs_stay(backend: Backend) -> None:
    boxes, scores = make_boxes(90, size=30), make_scores(90)
    expected, expected_scores = _soft_nms(backend, boxes, scores)
    spread = torch.full((180, 7), math.nan, device=backend.device)
    spread[::2, 2:6] = boxes.to(backend.device)
    spread[::2, 6] = scores.to(backend.device)
    before = spread.clone()
    keep, rescored = ops.soft_nms(spread[::2, 2:6], spread[::2, 6])
    assert keep.tolist() == expected
    assert torch.equal(rescored.cpu(), expected_scores)
    torch.testing.assert_close(spread, before, rtol=0, atol=0, equal_nan=True)


def test_no_gradient_flows(backend: Backend) -> None:
    boxes = make_boxes(20, size=20).to(backend.device).requires_grad_()
    scores = make_scores(20).to(backend.device).requires_grad_()
    keep, rescored = ops.soft_nms(boxes, scores)
    assert not keep.requires_grad
    assert not rescored.requires_grad


def test_deterministic_for_any_number_of_threads(native: Backend) -> None:
    boxes, scores = make_boxes(3000, size=60), torch.randint(1, 50, (3000,)) / 50
    inputs = [x.to(native.device) for x in (boxes, scores, torch.randint(0, 30, (3000,)))]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append([x.tolist() for x in ops.batched_soft_nms(*inputs, method="gaussian")])
    finally:
        torch.set_num_threads(threads)
    assert results.count(results[0]) == len(results)


def test_instruction_sets_give_the_same_bits(native: Backend) -> None:
    from rcnn_ext import _extension

    if native.device.type != "cpu":
        pytest.skip("instruction sets are those of the CPU")
    boxes = torch.rand(2000, 4) * 300
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.rand(2000)
    for dtype in WIDE:
        for method in METHODS:
            results = []
            for name in _extension.instruction_sets():
                with _extension.use_instruction_set(name):
                    results.append(ops.soft_nms(boxes.to(dtype), scores, method=method))
            for keep, rescored in results:
                assert torch.equal(keep, results[0][0])
                assert torch.equal(rescored, results[0][1])


BAD = {
    "method": (lambda b, s: ops.soft_nms(b, s, method="hard"), ValueError, "method .*'hard'"),
    "sigma": (lambda b, s: ops.soft_nms(b, s, sigma=0.0), RuntimeError, "sigma above 0, got 0"),
    "nan sigma": (lambda b, s: ops.soft_nms(b, s, sigma=math.nan), RuntimeError, "sigma above 0"),
    "iou": (lambda b, s: ops.soft_nms(b, s, math.nan), RuntimeError, "iou_threshold to be a num"),
    "score": (
        lambda b, s: ops.soft_nms(b, s, score_threshold=-0.5),
        RuntimeError,
        "score_threshold of at least 0, got -0.5",
    ),
    "columns": (lambda b, s: ops.soft_nms(b[:, :3], s), RuntimeError, r"boxes of shape \[N, 4\]"),
    "scores": (lambda b, s: ops.soft_nms(b, s[:2]), RuntimeError, r"scores of shape \[3\]"),
    "integers": (lambda b, s: ops.soft_nms(b, s.long()), RuntimeError, "scores to be float16"),
    "idxs": (
        lambda b, s: ops.batched_soft_nms(b, s, s[:2]),
        RuntimeError,
        r"batched_soft_nms: expected idxs of shape \[3\]",
    ),
    "complex idxs": (
        lambda b, s: ops.batched_soft_nms(b, s, s.to(torch.complex64)),
        RuntimeError,
        "batched_soft_nms: expected idxs to be real numbers, got complex64",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_by_name(backend: Backend, what: str) -> None:
    call, error, message = BAD[what]
    with pytest.raises(error, match=f"soft_nms: expected .*{message}|{message}"):
        call(make_boxes(3).to(backend.device), make_scores(3).to(backend.device))
