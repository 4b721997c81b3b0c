from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rcnn_ext import _extension, ops
from rcnn_ext.ops import _backend, use_backend
from tests.helpers.proposal_samples import make_heads, make_pyramid
from tests.helpers.samples import make_boxes, make_rois, make_scores

OPERATORS = [
    "box_iou",
    "box_iou_backward",
    "conv3x3_winograd",
    "conv3x3_winograd_out",
    "match_boxes",
    "multiscale_roi_align",
    "multiscale_roi_align_backward",
    "nms",
    "batched_nms",
    "nms_padded",
    "batched_nms_padded",
    "soft_nms",
    "batched_soft_nms",
    "non_max_merging",
    "generate_proposals",
    "postprocess_detections",
    "roi_align",
    "roi_align_backward",
    "roi_pool",
    "roi_pool_backward",
]
# The reference runs on other devices.
CPU_ONLY = {"conv3x3_winograd", "conv3x3_winograd_out"}

Calls = list[str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Which references ran, in order."""
    seen: Calls = []

    def recorded(name: str, reference: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            seen.append(name)
            return reference(*args)

        return run

    for operator, reference in list(_backend.references.items()):
        name = operator.name().split("::")[1]
        monkeypatch.setitem(_backend.references, operator, recorded(name, reference))
    return seen


def _use_all() -> None:
    """Every operator, forward and backward."""
    features = torch.randn(2, 3, 8, 8, requires_grad=True)
    boxes = make_boxes(6, size=8).requires_grad_()
    rois = make_rois(4, 2, size=8)
    result = ops.roi_align(features, rois, 2).sum() + ops.roi_pool(features, rois, 2).sum()
    maps = [features, features[..., ::2, ::2]]
    result = result + ops.multiscale_roi_align(maps, rois, 2, [1.0, 0.5]).sum()
    (result + ops.box_iou(boxes, boxes).nan_to_num().sum()).backward()
    ops.match_boxes(boxes, boxes, 0.5, 0.2)
    ops.nms(boxes, make_scores(6), 0.5)
    ops.batched_nms(boxes, make_scores(6), torch.zeros(6), 0.5)
    ops.nms_padded(boxes, make_scores(6), 0.5, 3)
    ops.batched_nms_padded(boxes, make_scores(6), torch.zeros(6), 0.5, 3)
    ops.soft_nms(boxes, make_scores(6))
    ops.batched_soft_nms(boxes, make_scores(6), torch.zeros(6))
    ops.non_max_merging(boxes, make_scores(6))
    packed = ops.conv_winograd.pack(torch.randn(4, 3, 3, 3))
    result = ops.conv_winograd.conv(features.detach(), packed, torch.zeros(4))
    ops.conv_winograd.conv(features.detach(), packed, torch.zeros(4), out=result)
    make_pyramid().run(torch.device("cpu"))
    make_heads().run(torch.device("cpu"))


def test_every_operator_has_all_its_parts() -> None:
    assert {operator.name() for operator in _backend.references} == {
        f"rcnn_ext::{name}" for name in OPERATORS
    }
    for name in OPERATORS:
        assert ops.has_native_kernel(name, "cpu"), name
        for key in ("CompositeExplicitAutograd", "Meta"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"rcnn_ext::{name}", key), name
    assert not ops.has_native_kernel("nms", "xpu")


@pytest.mark.cuda
def test_every_operator_has_a_cuda_kernel(cuda: torch.device) -> None:
    for name in set(OPERATORS) - CPU_ONLY:
        assert ops.has_native_kernel(name, cuda.type), name


def test_kernels_run_unless_the_reference_is_asked_for(calls: Calls) -> None:
    _use_all()
    assert not calls
    with use_backend("native"):
        _use_all()
    assert not calls
    with use_backend("reference"):
        _use_all()
    assert set(calls) == set(OPERATORS)
    calls.clear()
    _use_all()
    assert not calls


def test_nested(calls: Calls) -> None:
    boxes, scores = make_boxes(4), make_scores(4)

    def used_reference() -> bool:
        calls.clear()
        ops.nms(boxes, scores, 0.5)
        return calls == ["nms"]

    with use_backend("reference"):
        assert used_reference()
        with use_backend("native"):
            assert not used_reference()
            with use_backend("reference"):
                assert used_reference()
            assert not used_reference()
        assert used_reference()
        with use_backend("reference"):
            assert used_reference()
    assert not used_reference()


def test_ends_with_the_block_even_by_an_exception(calls: Calls) -> None:
    for backend in ("reference", "native"):
        with pytest.raises(KeyError), use_backend("reference"), use_backend(backend):
            raise KeyError
    ops.nms(make_boxes(4), make_scores(4), 0.5)
    assert not calls


def test_holds_for_the_thread(calls: Calls) -> None:
    with use_backend("reference"):
        thread = threading.Thread(target=_use_all)
        thread.start()
        thread.join()
    assert not calls


class _Nested(torch.autograd.Function):
    """A backward pass within a backward pass, ``depth`` times; then ``innermost``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, depth: int, innermost: Callable[[], None]) -> Tensor:
        ctx.depth, ctx.innermost = depth, innermost
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        with torch.enable_grad():
            if ctx.depth == 0:
                ctx.innermost()
            else:
                x = torch.ones((), requires_grad=True)
                _Nested.apply(x, ctx.depth - 1, ctx.innermost).backward()
        return grad, None, None


def test_holds_in_the_threads_of_autograd(calls: Calls) -> None:
    # Beyond 60 passes within one another autograd goes on in another thread, as it does on CUDA.
    threads = []

    def innermost() -> None:
        threads.append(threading.get_ident())
        calls.clear()
        _use_all()

    with use_backend("reference"):
        x = torch.ones((), requires_grad=True)
        _Nested.apply(x, 70, innermost).backward()
    assert threads != [threading.get_ident()]
    assert set(calls) == set(OPERATORS)


@pytest.mark.cuda
def test_holds_for_the_backward_pass_on_cuda(cuda: torch.device, calls: Calls) -> None:
    with use_backend("reference"):
        features = torch.randn(1, 2, 8, 8, device=cuda, requires_grad=True)
        rois = make_rois(3, 1, size=8).to(cuda)
        ops.roi_align(features, rois, 2).sum().backward()
    assert calls == ["roi_align", "roi_align_backward"]


def test_unknown_backend() -> None:
    message = "use_backend: expected 'native' or 'reference', got 'cuda'"
    with pytest.raises(ValueError, match=message), use_backend("cuda"):  # type: ignore[arg-type]
        pass


def test_native_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = _extension.ModuleStatus("_C", False, None, "not built")
    monkeypatch.setattr(_extension, "status", lambda: {"_C": missing})
    message = r"use_backend\('native'\): _C is not built"
    with pytest.raises(RuntimeError, match=message), use_backend("native"):
        pass
