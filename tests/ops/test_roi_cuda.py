"""RoI operators on a CUDA device: graphs, repetition, memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.samples import make_rois

pytestmark = pytest.mark.cuda

LAYOUTS = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


def _pyramid(features: Tensor, rois: Tensor) -> Tensor:
    maps = [features, features[..., :12, :16].contiguous(), features[..., :6, :8].contiguous()]
    scales = [1 / 4, 1 / 8, 1 / 16]
    return ops.multiscale_roi_align(maps, rois, 7, scales, 2, True, canonical_scale=50.0)


OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "roi_align": lambda features, rois: ops.roi_align(features, rois, 7, 0.25, 2),
    "roi_align_adaptive": lambda features, rois: ops.roi_align(features, rois, 7, 0.25),
    "roi_pool": lambda features, rois: ops.roi_pool(features, rois, 7, 0.25),
    "multiscale_roi_align": _pyramid,
}
operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def _inputs(cuda: torch.device, layout: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
    """Features, RoIs (every seventh of no image), a gradient of the result."""
    features = torch.randn(2, 72, 24, 32).to(cuda).contiguous(memory_format=layout)
    rois = make_rois(700, 2, size=90)
    rois[3::7, 0] = 2
    grad = torch.randn(700, 72, 7, 7).to(cuda).contiguous(memory_format=layout)
    return features.requires_grad_(), rois.to(cuda), grad


@LAYOUTS
@operators
def test_fifty_runs_give_the_same_bits(
    cuda: torch.device, operator: Callable[[Tensor, Tensor], Tensor], layout: torch.memory_format
) -> None:
    features, rois, grad = _inputs(cuda, layout)
    runs = []
    for _ in range(50):
        result = operator(features, rois)
        runs.append((result.detach(), *torch.autograd.grad(result, features, grad)))
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


@LAYOUTS
@operators
def test_captured_in_a_cuda_graph(
    cuda: torch.device, operator: Callable[[Tensor, Tensor], Tensor], layout: torch.memory_format
) -> None:
    # A synchronization would end the capture.
    features, rois, grad = _inputs(cuda, layout)

    def differentiate() -> tuple[Tensor, Tensor]:
        result = operator(features, rois)
        return result.detach(), *torch.autograd.grad(result, features, grad)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        differentiate()  # what is set up on first use
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = differentiate()
    for _ in range(3):
        with torch.no_grad():
            features.mul_(-1.5)
            rois[:, 1:] += 3
            grad.mul_(-0.5)
        graph.replay()
        assert all(map(torch.equal, captured, differentiate()))


@LAYOUTS
@pytest.mark.parametrize("name", ["roi_align", "roi_pool"])
def test_backward_allocates_its_result_and_little_more(
    cuda: torch.device, name: str, layout: torch.memory_format
) -> None:
    features, rois, grad = _inputs(cuda, layout)
    result = OPERATORS[name](features, rois)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(result, features, grad)
    allowed = features.nbytes + 64 * len(rois) + 4096
    assert torch.cuda.max_memory_allocated() - before <= allowed
