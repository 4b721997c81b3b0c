"""Every operator against torchvision and the reference, under pytest-benchmark.

The cases, their inputs and their float64 truth are those of ``rcnn-ext bench``. A contender whose
result is wrong fails before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from rcnn_ext.bench.cases import Case
from rcnn_ext.bench.contenders import OURS, REFERENCE, TORCHVISION
from rcnn_ext.bench.runner import SEED, active, contender_ops
from rcnn_ext.bench.suite import select, suite


class Prepared(NamedTuple):
    """A case with its inputs and the measure of a result's error."""

    case: Case
    inputs: Any
    check: Callable[[Any], float]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    device_type = torch.device(config.getoption("--bench-device")).type
    cases = select(suite(quick=not config.getoption("--bench-full")), device_type)
    pairs = [
        pytest.param(case, name, id=f"{case.name}-{name}")
        for case in cases
        for name in (OURS, TORCHVISION, REFERENCE)
        if case.has_counterpart or name != TORCHVISION
    ]
    metafunc.parametrize(("prepared", "contender"), pairs, indirect=["prepared"])


# One case at a time is in memory: its contenders run one after the other.
@pytest.fixture(scope="module")
def prepared(request: pytest.FixtureRequest) -> Prepared:
    case: Case = request.param
    device = torch.device(request.config.getoption("--bench-device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    inputs = case.make(SEED, device, case.dtypes[0])
    with active(REFERENCE, case):
        return Prepared(case, inputs, case.check(inputs))


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--bench-threads"))
    yield
    torch.set_num_threads(before)


def test_operator(prepared: Prepared, contender: str, benchmark: BenchmarkFixture) -> None:
    case, inputs, check = prepared
    dtype = case.dtypes[0]
    benchmark.group = case.name
    benchmark.extra_info.update(work=case.work, contender=contender)
    with active(contender, case):
        call = case.bind(contender_ops(contender), inputs)
        error = check(call())
        assert error <= case.tolerance(dtype, other_library=contender == TORCHVISION), case.measure
        benchmark(_synchronized(call))


def _synchronized(call: Callable[[], Any]) -> Callable[[], Any]:
    """Wait for a GPU: without it the clock stops when the work is queued, not when it is done."""
    if not torch.cuda.is_available():
        return call

    def timed() -> Any:
        result = call()
        torch.cuda.synchronize()
        return result

    return timed
