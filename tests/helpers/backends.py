"""The implementations of the operators that one test body runs over.

To add one, add a line to ``BACKENDS``.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from rcnn_ext import _extension
from rcnn_ext.ops import use_backend


def _nothing_missing() -> None:
    return None


def _no_cpu_kernels() -> str | None:
    module = _extension.status()["_C"]
    return None if module.loaded else f"the CPU kernels are not loaded: {module.reason}"


def _lacks(instruction_set: str) -> Callable[[], str | None]:
    def reason() -> str | None:
        if instruction_set in _extension.instruction_sets():
            return None
        return _no_cpu_kernels() or f"this processor has no {instruction_set}"

    return reason


def _no_cuda_device() -> str | None:
    return None if torch.cuda.is_available() else "no CUDA device"


def _no_cuda_kernels() -> str | None:
    module = _extension.status()["_C_cuda"]
    if not module.loaded:
        return f"the CUDA kernels are not loaded: {module.reason}"
    return _no_cuda_device()


def _no_emulator() -> str | None:
    from tests.helpers.emulation.build import why_not

    return why_not()


@contextlib.contextmanager
def running(implementation: str) -> Iterator[None]:
    """Run the operators on an implementation in a block of code.

    Args:
        implementation: "native", "reference", "emulated" or an instruction set of the CPU kernels.
    """
    if implementation == "native":
        yield  # the default for users
    elif implementation == "emulated":
        from tests.helpers.emulation.backend import emulated

        # Schedules of its own for each test, the same in every run.
        with emulated(seed=zlib.crc32(os.environ.get("PYTEST_CURRENT_TEST", "").encode())):
            yield
    elif implementation == "reference":
        with use_backend("reference"):
            yield
    else:
        with _extension.use_instruction_set(implementation):
            yield


@dataclass(frozen=True)
class Backend:
    """One implementation on one device.

    Attributes:
        name: the id of the test.
        device: where the tensors lie.
        implementation: "native", "reference", "emulated" (the CUDA kernels on CPU tensors) or an
            instruction set of the CPU kernels.
        checks_batch_index: a RoI of an image that is not in the batch raises IndexError; without
            it (CUDA: no synchronization to find out) such a RoI gives zeros.
        missing: why it can't run here, or None.
        needs_gpu: a machine without one skips it, unless FAIL_WITHOUT_CUDA=1.
        optional: a machine where it is missing skips it; otherwise that is a failure.
    """

    name: str
    device: torch.device
    implementation: str
    checks_batch_index: bool = True
    missing: Callable[[], str | None] = _nothing_missing
    needs_gpu: bool = False
    optional: bool = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the operators on this backend in a block of code."""
        with running(self.implementation):
            yield


_CPU, _CUDA = torch.device("cpu"), torch.device("cuda")

BACKENDS = (
    Backend("reference", _CPU, "reference"),
    Backend("cpu", _CPU, "native", missing=_no_cpu_kernels),
    # "cpu" is the best that this processor has; all give the same bits.
    Backend("cpu-baseline", _CPU, "baseline", missing=_lacks("baseline")),
    Backend("cpu-avx2", _CPU, "avx2", missing=_lacks("avx2"), optional=True),
    Backend("cuda-emulated", _CPU, "emulated", checks_batch_index=False, missing=_no_emulator),
    Backend(
        "cuda", _CUDA, "native", checks_batch_index=False, missing=_no_cuda_kernels, needs_gpu=True
    ),
    # Run by a machine with a GPU but without nvcc.
    Backend(
        "reference-cuda",
        _CUDA,
        "reference",
        checks_batch_index=False,
        missing=_no_cuda_device,
        needs_gpu=True,
    ),
)
