"""The atomic variant of RoIAlign's backward pass (benchmarks/cuda), on emulated kernels.

Its last bits depend on the order in which threads add, so each call runs under one schedule, and
the result is compared with the reference's within rounding.
"""

from __future__ import annotations

import functools
import os

import pytest
import torch

from rcnn_ext import ops
from rcnn_ext.bench.atomic import DERIVATIVES, AtomicOps
from rcnn_ext.bench.cases import PyramidCase, RoiCase
from rcnn_ext.ops import use_backend
from tests.helpers.emulation.backend import NAMESPACE, SANITIZE, Kernels, emulated
from tests.helpers.emulation.build import benchmark_sources, build, why_not
from tests.helpers.emulation.case import Case
from tests.helpers.emulation.roi_cases import ROI_CASES

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

CASES = [case for case in ROI_CASES if not case.name.startswith("roi_pool")]
SCHEDULED = [
    case
    for case in CASES
    if case.name
    in (
        "roi_align-contiguous",
        "roi_align-channels_last",
        "roi_align-many-rois-contiguous",
        "roi_align-vectors-torch.float32-channels_last",
        "multiscale_roi_align-odd-contiguous",
    )
]


@functools.cache
def kernels() -> Kernels:
    path = build("atomic", kernels=benchmark_sources(), address_sanitizer=SANITIZE in os.environ)
    names = {
        getattr(torch.ops.rcnn_ext, name).default: other for name, other in DERIVATIVES.items()
    }
    return Kernels(path, names)


def gradient(case: Case, seed: int) -> torch.Tensor:
    # The forward pass on the kernels of csrc, which take RoIs of no image as a device does.
    with emulated(schedules=1), emulated(seed, schedules=1, kernels=kernels()) as instance:
        _, grad = case.run()
        assert instance.library.launches() == 1
    return grad


def check(case: Case, seed: int) -> None:
    with use_backend("reference"):
        _, expected = case.run(for_reference=True)
    torch.testing.assert_close(
        gradient(case, seed), expected, rtol=case.tolerance, atol=case.tolerance, equal_nan=True
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_reference(case: Case) -> None:
    check(case, seed=3)


@pytest.mark.parametrize("seed", range(10, 18))
@pytest.mark.parametrize("case", SCHEDULED, ids=lambda case: case.name)
def test_within_rounding_under_any_schedule(case: Case, seed: int) -> None:
    check(case, seed)


def test_last_bits_depend_on_the_schedule() -> None:
    # Else the emulated threads would add in one order, and the tests above show little.
    (case,) = (case for case in CASES if case.name == "roi_align-many-rois-contiguous")
    grads = [gradient(case, seed) for seed in range(6)]
    assert any(not torch.equal(grads[0], grad) for grad in grads[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("operator", ["roi_align", "multi_scale_roi_align"])
def test_as_a_contender(operator: str, channels_last: bool, dtype: torch.dtype) -> None:
    options = {"rois": 9, "channels": 8, "channels_last": channels_last, "backward": True}
    case = (
        RoiCase(operator, map_size=(13, 17), **options)
        if operator == "roi_align"
        else PyramidCase(operator, finest=(32, 40), **options)
    )
    inputs = case.make(0, torch.device("cpu"), dtype)
    error_of = case.check(inputs)
    library = kernels().library
    library.set_seed(5)
    result = case.bind(AtomicOps(NAMESPACE), inputs)()
    assert library.launches() == 1
    assert error_of(result) <= case.tolerance(dtype, other_library=False)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for grad in (result,) if isinstance(result, torch.Tensor) else result:
        assert grad.dtype == dtype
        assert grad.is_contiguous(memory_format=layout)


def test_no_rois() -> None:
    features = torch.ones(1, 2, 5, 5, requires_grad=True)
    with emulated(kernels=kernels()) as instance:
        pooled = ops.roi_align(features, torch.empty(0, 5), 3)
        (grad,) = torch.autograd.grad(pooled.sum(), features)
        assert instance.library.launches() == 0
    assert not grad.any()


def test_upstream_that_begins_inside_of_a_vector() -> None:
    memory = torch.randn(4 * 8 * 3 * 3 + 1)[1:]
    grad = memory.as_strided((4, 8, 3, 3), (8 * 9, 1, 8 * 3, 8))  # channels-last
    rois = torch.tensor([[0.0, 1, 1, 9, 8]]).repeat(4, 1)
    call = functools.partial(
        torch.ops.rcnn_ext.roi_align_backward, rois=rois, spatial_scale=0.5, pooled_height=3,
        pooled_width=3, batch_size=1, channels=8, height=6, width=7, sampling_ratio=2,
        aligned=True, channels_last=True,
    )  # fmt: skip
    with use_backend("reference"):
        expected = call(grad)
    with emulated(schedules=1, kernels=kernels()):
        torch.testing.assert_close(call(grad), expected)
