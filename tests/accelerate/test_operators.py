"""Our kernels under torchvision's operators: its results, its errors, and everything around."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

import rcnn_ext
from rcnn_ext.ops import has_native_kernel

tv = torch.ops.torchvision
pytestmark = pytest.mark.skipif(
    not has_native_kernel("nms", "cpu"), reason="the CPU kernels are not compiled"
)


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _boxes(count: int, seed: int = 0, side: float = 100.0) -> tuple[Tensor, Tensor]:
    random = _random(seed)
    corners = torch.rand(count, 2, generator=random) * side
    sides = torch.rand(count, 2, generator=random) * side / 3
    return torch.cat((corners, corners + sides), dim=1), torch.rand(count, generator=random)


def _rois(count: int, images: int, seed: int = 0) -> Tensor:
    index = torch.randint(0, images, (count, 1), generator=_random(seed)).float()
    return torch.cat((index, _boxes(count, seed, 50.0)[0] - 5), dim=1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of torchvision's operators whose calls run on our kernels, in order."""
    from rcnn_ext.accelerate import operators

    ran: list[str] = []

    def noted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            ran.append(name)
            return kernel(*args)

        return run

    for name, kernel in operators.KERNELS.items():
        monkeypatch.setitem(operators.KERNELS, name, noted(name, kernel))
    return ran


def _both(call: Callable[[], Any]) -> tuple[Any, Any]:
    """Return what a call gives without and with acceleration: results, or the error."""
    results = []
    for accelerated in (False, True):
        handle = rcnn_ext.accelerate() if accelerated else None
        try:
            results.append(call())
        except Exception as error:
            results.append((type(error), str(error)))
        finally:
            if handle is not None:
                handle.undo()
    return results[0], results[1]


def _assert_equal(call: Callable[[], Any]) -> None:
    theirs, ours = _both(call)
    if isinstance(theirs, tuple) and isinstance(theirs[0], type):
        assert ours == theirs
        return
    for mine, other in zip(
        *((part,) if isinstance(part, Tensor) else part for part in (ours, theirs)), strict=True
    ):
        assert (mine.dtype, mine.shape, mine.stride()) == (other.dtype, other.shape, other.stride())
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 7, 300, 3000])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_nms(count: int, threshold: float, dtype: torch.dtype, calls: list[str]) -> None:
    boxes, scores = _boxes(count)
    if count == 300:
        scores = (scores * 5).round()  # equal scores
    _assert_equal(lambda: torchvision.ops.nms(boxes.to(dtype), scores.to(dtype), threshold))
    assert calls == ["nms"]


_MAP = torch.randn(2, 6, 20, 24, generator=_random(2))
_LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", _LAYOUTS)
@pytest.mark.parametrize("bins", [(1, 1), (3, 2), (7, 7)])
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align(
    aligned: bool,
    sampling_ratio: int,
    bins: tuple[int, int],
    layout: torch.memory_format,
    dtype: torch.dtype,
    calls: list[str],
) -> None:
    rois = _rois(100, 2).to(dtype)
    features = _MAP.to(dtype, memory_format=layout)

    def step() -> tuple[Tensor, Tensor]:
        input = features.clone().requires_grad_()
        pooled = torchvision.ops.roi_align(input, rois, bins, 0.5, sampling_ratio, aligned)
        pooled.sin().sum().backward()
        return pooled.detach(), input.grad.contiguous()

    _assert_equal(step)
    assert calls == ["roi_align", "_roi_align_backward"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", _LAYOUTS)
@pytest.mark.parametrize("bins", [(1, 1), (3, 2), (7, 7)])
def test_roi_pool(
    bins: tuple[int, int], layout: torch.memory_format, dtype: torch.dtype, calls: list[str]
) -> None:
    rois = _rois(100, 2).to(dtype)
    features = _MAP.to(dtype, memory_format=layout)

    def step() -> tuple[Tensor, ...]:
        input = features.clone().requires_grad_()
        pooled, argmax = tv.roi_pool(input, rois, 0.5, *bins)
        pooled.sin().sum().backward()
        return pooled.detach(), argmax, input.grad.contiguous()

    _assert_equal(step)
    assert calls == ["roi_pool", "_roi_pool_backward"]


def test_forward_and_backward_on_different_sides() -> None:
    rois, results = _rois(40, 2), []
    for forward, backward in ((False, False), (False, True), (True, False), (True, True)):
        handle = rcnn_ext.accelerate()
        if not forward:
            handle.undo()
        input = _MAP.clone().requires_grad_()
        pooled = torchvision.ops.roi_pool(input, rois, 7, 0.5)
        aligned = torchvision.ops.roi_align(input, rois, 7, 0.5)
        handle.undo()
        if backward:
            with handle:
                (pooled + aligned).sum().backward()
        else:
            (pooled + aligned).sum().backward()
        results.append(input.grad)
    for gradient in results[1:]:
        torch.testing.assert_close(gradient, results[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values_stay_torchvisions(value: float, calls: list[str]) -> None:
    boxes, scores = _boxes(50)
    boxes[7, 2] = value
    _assert_equal(lambda: torchvision.ops.nms(boxes, scores, 0.5))
    features = _MAP.clone()
    features[:, :, 10, 10] = value
    rois = torch.tensor([[0.0, 0, 0, 20, 20], [1, 3, 3, 40, 40]])
    for pool in (torchvision.ops.roi_align, torchvision.ops.roi_pool):
        _assert_equal(lambda pool=pool: pool(features, rois, (9, 9)))
    gradient = torch.ones(2, 6, 9, 9)
    gradient[0, 0, 0, 0] = value
    _assert_equal(lambda: tv._roi_align_backward(gradient, rois, 1.0, 9, 9, *_MAP.shape, 2, False))
    argmax = tv.roi_pool(_MAP, rois, 1.0, 9, 9)[1]
    _assert_equal(lambda: tv._roi_pool_backward(gradient, rois, argmax, 1.0, 9, 9, *_MAP.shape))
    assert calls == []


def test_inexact_takes_our_results() -> None:
    boxes = torch.tensor([[0.0, 0, 10, math.nan], [0, 0, 10, 10], [1, 1, 10, 10]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    half_boxes = boxes[1:].half()
    with rcnn_ext.accelerate(exact=False):
        assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1]
        assert torchvision.ops.nms(half_boxes, scores[1:].half(), 0.5).tolist() == [0]
        with rcnn_ext.accelerate():  # as long as one holder asks for it
            assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1]
    with rcnn_ext.accelerate():
        assert rcnn_ext.accelerate.status().exact
        assert 0 in torchvision.ops.nms(boxes, scores, 0.5).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_stay_torchvisions(dtype: torch.dtype, calls: list[str]) -> None:
    rois, features = _rois(9, 2).to(dtype), _MAP.to(dtype)
    for pool in (torchvision.ops.roi_align, torchvision.ops.roi_pool):
        _assert_equal(lambda pool=pool: pool(features, rois, 3))
    assert calls == []


# Expressions that torchvision refuses, with tensors of the module.
_REFUSED = {
    "1-d boxes": lambda: tv.nms(torch.zeros(4), torch.zeros(1), 0.5),
    "5 coordinates": lambda: tv.nms(torch.zeros(2, 5), torch.zeros(2), 0.5),
    "scores of another length": lambda: tv.nms(torch.zeros(2, 4), torch.zeros(3), 0.5),
    "scores of another dtype": lambda: tv.nms(torch.zeros(2, 4), torch.zeros(2).double(), 0.5),
    "integer boxes": lambda: tv.nms(torch.zeros(2, 4).int(), torch.zeros(2).int(), 0.5),
    "half boxes": lambda: tv.nms(torch.zeros(2, 4).half(), torch.zeros(2).half(), 0.5),
    "RoIs of another dtype": lambda: tv.roi_align(_MAP, _rois(2, 2).double(), 1.0, 2, 2, 2, False),
    "RoIs of 4 columns": lambda: tv.roi_align(_MAP, torch.zeros(2, 4), 1.0, 2, 2, 2, False),
    "integer map": lambda: tv.roi_pool(_MAP.int(), _rois(2, 2).int(), 1.0, 2, 2),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_errors_stay_torchvisions(name: str) -> None:
    theirs, ours = _both(_REFUSED[name])
    assert theirs[0] is RuntimeError
    assert ours[0] is theirs[0]
    assert ours[1].splitlines()[0] == theirs[1].splitlines()[0]


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.nan])
def test_odd_thresholds(threshold: float) -> None:
    boxes, scores = _boxes(50)
    _assert_equal(lambda: torchvision.ops.nms(boxes, scores, threshold))


def test_empty_pooled_size() -> None:
    _assert_equal(lambda: tv.roi_align(_MAP, _rois(3, 2), 1.0, 0, 2, 2, False))


def test_a_foreign_batch_index_is_an_error() -> None:
    rois = torch.tensor([[5.0, 0, 0, 9, 9]]).repeat(40, 1)
    with rcnn_ext.accelerate(), pytest.raises(IndexError, match="batch index"):
        torchvision.ops.roi_align(_MAP, rois, 7)


def test_few_rois_of_a_large_map_cost_no_look_at_it(calls: list[str]) -> None:
    features = torch.zeros(1, 8, 200, 200)
    _assert_equal(lambda: torchvision.ops.roi_align(features, _rois(1, 1), 2))
    assert calls == []


def test_double_backward_is_refused_as_before() -> None:
    rois = _rois(30, 2)

    def twice() -> Tensor:
        input = _MAP.clone().requires_grad_()
        pooled = torchvision.ops.roi_align(input, rois, 3)
        (gradient,) = torch.autograd.grad(pooled.square().sum(), input, create_graph=True)
        return torch.autograd.grad(gradient.sum(), input)[0]

    theirs, ours = _both(twice)
    assert ours[0] is theirs[0] is RuntimeError
    assert "double backwards on roi_align" in ours[1]


def test_autocast(calls: list[str]) -> None:
    boxes, scores = _boxes(60)
    rois = _rois(30, 2)

    def run() -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            keep = torchvision.ops.nms(boxes.bfloat16(), scores.bfloat16(), 0.5)
            return keep, torchvision.ops.roi_align(_MAP.bfloat16(), rois, 3)

    _assert_equal(run)
    assert calls == ["nms", "roi_align"]


def test_vmap(calls: list[str]) -> None:
    rois = torch.stack([_rois(9, 2, seed) for seed in range(3)])

    def run() -> Tensor:
        return torch.func.vmap(lambda of_member: tv.roi_align(_MAP, of_member, 0.5, 5, 5, 2, True))(
            rois
        )

    _assert_equal(run)
    assert calls
    assert set(calls) == {"roi_align"}


def test_fake_and_meta_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with rcnn_ext.accelerate():
        pooled = tv.roi_align(_MAP.to("meta"), _rois(3, 2).to("meta"), 1.0, 2, 3, 2, True)
        assert pooled.shape == (3, 6, 2, 3)
        with FakeTensorMode() as mode:
            faked = mode.from_tensor(_MAP)
            assert tv.roi_pool(faked, mode.from_tensor(_rois(3, 2)), 1.0, 2, 3)[1].dtype is (
                torch.int32
            )


class _Pool(torch.nn.Module):
    def forward(self, features: Tensor, rois: Tensor, boxes: Tensor, scores: Tensor) -> Any:
        pooled = torchvision.ops.roi_align(features, rois, (3, 3), 0.5, 2, True)
        return pooled, torchvision.ops.nms(boxes, scores, 0.5)


_PROGRAM_INPUTS = (_MAP, _rois(30, 2), *_boxes(60))


def test_programs_made_before_run_on_our_kernels(calls: list[str]) -> None:
    expected = _Pool()(*_PROGRAM_INPUTS)
    scripted = torch.jit.script(_Pool())
    exported = torch.export.export(_Pool(), _PROGRAM_INPUTS).module()
    compiled = torch.compile(_Pool(), backend="aot_eager", fullgraph=True, dynamic=True)
    for program in (scripted, exported, compiled):
        for accelerated in (False, True, False):
            calls.clear()
            handle = rcnn_ext.accelerate()
            if not accelerated:
                handle.undo()
            pooled, keep = program(*_PROGRAM_INPUTS)
            handle.undo()
            torch.testing.assert_close(pooled, expected[0])
            assert torch.equal(keep, expected[1])
            assert sorted(calls) == (["nms", "roi_align"] if accelerated else [])


def test_programs_made_meanwhile_run_after(calls: list[str]) -> None:
    with rcnn_ext.accelerate():
        scripted = torch.jit.script(_Pool())
        exported = torch.export.export(_Pool(), _PROGRAM_INPUTS).module()
        compiled = torch.compile(_Pool(), backend="inductor", fullgraph=True)
        expected = compiled(*_PROGRAM_INPUTS)
        assert sorted(calls) == ["nms", "roi_align"]
    for program in (scripted, exported, compiled):
        torch.testing.assert_close(program(*_PROGRAM_INPUTS), expected)
    assert len(calls) == 2
