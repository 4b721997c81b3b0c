"""No argument crashes the process. Each test runs in a process of its own, since it might."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.backends import Backend
from tests.helpers.run_python import run_python

FUZZ = Path(__file__).with_name("fuzz_operators.py")

_NO_PIXELS = """
import sys
import torch
from tests.helpers.backends import running
from rcnn_ext import ops

device, implementation = sys.argv[1:]
with running(implementation):
    for height, width in ((0, 5), (5, 0), (0, 0)):
        for layout in (torch.contiguous_format, torch.channels_last):
            for dtype in (torch.float16, torch.float32, torch.float64):
                for ratio in (-1, 2):
                    features = torch.empty(1, 2, height, width, dtype=dtype, device=device)
                    features = features.to(memory_format=layout).requires_grad_()
                    rois = torch.tensor([[0.0, -2, -2, 2, 2], [0, 0, 0, 4, 4]], device=device)
                    result = ops.roi_align(features, rois, 2, 1.0, ratio)
                    assert result.shape == (2, 2, 2, 2)
                    assert not result.any(), result
                    result.sum().backward()
                    assert features.grad.shape == features.shape
"""


def test_roi_align_of_maps_without_pixels(backend: Backend) -> None:
    run_python(_NO_PIXELS, backend.device.type, backend.implementation)


# One end of the RoI near the largest float32, the other on the map. A bin has 1e38 samples, some of
# which may be on the map for all that float32 can tell; going through them takes for ever.
_ONE_END_FAR = """
import sys
import torch
from tests.helpers.backends import running
from rcnn_ext import ops

device, implementation = sys.argv[1:]
with running(implementation):
    for dtype in (torch.bfloat16, torch.float32):
        features = torch.ones(1, 1, 5, 5, dtype=dtype, device=device, requires_grad=True)
        for far in (3e38, 1e38, 1e36, 3e32):
            rois = torch.tensor([[0, -far, -far, 3, 3], [0, -far, 1, 3, 4]], device=device)
            for aligned in (False, True):
                result = ops.roi_align(features, rois, (1, 2), aligned=aligned)
                assert (result >= 0).all() and (result < 1e-4).all(), result
                result.sum().backward()
                assert (features.grad < 1e-4).all()
"""


def test_rois_of_which_one_end_is_far(backend: Backend) -> None:
    run_python(_ONE_END_FAR, backend.device.type, backend.implementation, timeout=60)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_arguments_at_random(backend: Backend, seed: int) -> None:
    calls = 300 if backend.implementation == "native" else 80
    run_python(FUZZ, backend.device.type, backend.implementation, str(seed), str(calls))


_MEMORY = """
import resource, sys
import torch
from rcnn_ext import ops

torch.set_num_threads(1)
name, layout = sys.argv[1:]


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(scale):
    \"\"\"The bytes that the operator has to write at least, forward and backward.\"\"\"
    if name == "box_iou":
        boxes = torch.rand(60 * scale, 4)
        return boxes.numel() * 4 + ops.box_iou(boxes, boxes).numel() * 4
    features = torch.rand(1, 64, 20 * scale, 20 * scale)
    if layout == "channels_last":
        features = features.to(memory_format=torch.channels_last)
    rois = torch.rand(40 * scale, 5) * 10 * scale
    rois[:, 0] = 0
    result = getattr(ops, name)(features.requires_grad_(), rois, 7)
    torch.autograd.grad(result, features, torch.ones_like(result))
    # Features and their gradient, result and its gradient; roi_pool keeps the pixels of its maxima.
    return 4 * (2 * features.numel() + result.numel() * (3 if name == "roi_pool" else 2))


run(1)
before = peak()
needed = run(60 if name == "box_iou" else 14)
extra = peak() - before - needed
assert needed > 20e6, needed
assert extra < 0.15 * needed + 4e6, f"{extra / 1e6:.0f} MB beside {needed / 1e6:.0f} MB"
"""


@pytest.mark.parametrize(
    "case", ["box_iou contiguous", "roi_align contiguous", "roi_align channels_last",
             "roi_pool contiguous", "roi_pool channels_last"]
)  # fmt: skip
def test_no_memory_beside_the_results(case: str) -> None:
    pytest.importorskip("resource", reason="not on Windows")
    run_python(_MEMORY, *case.split())
