from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests.helpers.backends import BACKENDS, Backend
from tests.helpers.peer import torchvision

CUDA = next(backend for backend in BACKENDS if backend.name == "cuda")


def _params(native_only: bool = False) -> list:
    return [
        pytest.param(backend, id=backend.name, marks=[pytest.mark.cuda] * backend.needs_gpu)
        for backend in BACKENDS
        if backend.implementation == "native" or not native_only
    ]


def _backend_of(item: pytest.Item) -> Backend | None:
    """Return the backend that a test runs on."""
    if "cuda" in getattr(item, "fixturenames", ()):
        return CUDA
    params = getattr(item, "callspec", None)
    values = params.params.values() if params is not None else ()
    return next((value for value in values if isinstance(value, Backend)), None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Here and not in the fixtures: what is skipped here makes one line of the report, not hundreds.
    backend = _backend_of(item)
    if backend is None:
        return
    demanded = os.environ.get("FAIL_WITHOUT_CUDA") == "1"
    if not backend.optional and (demanded or not backend.needs_gpu):
        return
    reason = backend.missing()
    if reason is not None:
        pytest.skip(reason)


def _require(backend: Backend) -> None:
    # Without its CPU kernels the package would pass and show nothing, so that is a failure.
    reason = backend.missing()
    if reason is not None:
        pytest.fail(reason, pytrace=False)


@pytest.fixture(params=_params())
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Every implementation in turn; the operators run on it for the whole test."""
    _require(request.param)
    with request.param.running():
        yield request.param


@pytest.fixture(params=_params(native_only=True))
def native(request: pytest.FixtureRequest) -> Backend:
    """Every implementation with kernels of its own."""
    _require(request.param)
    return request.param


@pytest.fixture
def cuda() -> torch.device:
    """For tests of what only a GPU shows; mark them with ``pytest.mark.cuda`` too."""
    _require(CUDA)
    return CUDA.device


@pytest.fixture
def needs_torchvision() -> None:
    """For tests that use it in a process of their own."""
    assert torchvision.ops  # skips where it can't be imported
