"""The implementations of the operators that one test body runs over.

To add one (say the CUDA kernels under an emulator), add a line to ``BACKENDS``.
"""

from __future__ import annotations

import contextlib
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


def _no_cuda_device() -> str | None:
    return None if torch.cuda.is_available() else "no CUDA device"


def _no_cuda_kernels() -> str | None:
    module = _extension.status()["_C_cuda"]
    if not module.loaded:
        return f"the CUDA kernels are not loaded: {module.reason}"
    return _no_cuda_device()


@dataclass(frozen=True)
class Backend:
    """One implementation on one device.

    Attributes:
        name: the id of the test.
        device: where the tensors lie.
        implementation: "native" or "reference".
        checks_batch_index: a RoI of an image that is not in the batch raises IndexError; without
            it (CUDA: no synchronisation to find out) such a RoI gives zeros.
        missing: why it can't run here, or None.
        needs_gpu: a machine without one skips it, unless FAIL_WITHOUT_CUDA=1.
    """

    name: str
    device: torch.device
    implementation: str
    checks_batch_index: bool = True
    missing: Callable[[], str | None] = _nothing_missing
    needs_gpu: bool = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The operators run on this backend inside."""
        if self.implementation == "native":
            yield  # what users get without asking
            return
        with use_backend("reference"):
            yield


_CPU, _CUDA = torch.device("cpu"), torch.device("cuda")

BACKENDS = (
    Backend("reference", _CPU, "reference"),
    Backend("cpu", _CPU, "native", missing=_no_cpu_kernels),
    Backend(
        "cuda", _CUDA, "native", checks_batch_index=False, missing=_no_cuda_kernels, needs_gpu=True
    ),
    # What a machine with a GPU but without nvcc runs.
    Backend(
        "reference-cuda",
        _CUDA,
        "reference",
        checks_batch_index=False,
        missing=_no_cuda_device,
        needs_gpu=True,
    ),
)
