"""The base class of the benchmark's cases, and the comparison with the float64 truth."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# A bound call, ready to be timed; and the function that measures the error of its result.
Call = Callable[[], Any]
Check = Callable[[Any], float]

# What determinism may cost: the time of a deterministic gradient relative to atomic additions.
MAX_TIME_RATIO_TO_ATOMIC = 1.2

# Relative error ||result - truth|| / ||truth|| that counts as right. Float32 sampling positions
# cost some 1e-5 on noise, half types are rounded once or twice on the way.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}


@dataclasses.dataclass(frozen=True)
class Targets:
    """Target speed-ups over torchvision, at float32.

    Attributes:
        cpu: On one thread.
        cpu_avx2: On one thread with the kernels for AVX2, where that differs.
        cuda: On a GPU of the H200's class.
    """

    cpu: float | None = None
    cpu_avx2: float | None = None
    cuda: float | None = None


@dataclasses.dataclass(frozen=True)
class Case(ABC):
    """One operator on one kind of input.

    A subclass says how inputs are made, how an operator library is called on them and what the
    right result is. ``ops`` is always a module with the names of ``torchvision.ops``.

    Attributes:
        operator: The operator's name.
        targets: Target speed-ups over torchvision, where there are any.
        devices: Device types that this case runs on.
        dtypes: Dtypes that it runs in unless the user names others.
        only_ours: Whether only this package runs it, because the others would take minutes.
    """

    operator: str
    targets: Targets = Targets()
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    only_ours: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Operator and size, unique in the suite, for example ``nms/1000``."""

    @property
    @abstractmethod
    def work(self) -> str:
        """Short description of the work, for the table."""

    @property
    def size(self) -> int | None:
        """The size for the plot of cost against size; None for a case outside such a series."""
        return None

    @property
    def has_counterpart(self) -> bool:
        """Whether torchvision has this operator; where not, only the reference is compared."""
        return True

    @property
    def differentiates(self) -> bool:
        """Whether the timed call runs autograd; the others run without recording a graph."""
        return False

    @property
    def has_atomic_variant(self) -> bool:
        """Whether :mod:`rcnn_ext.bench.atomic` does the same work."""
        return False

    @property
    def measure(self) -> str:
        """Name of the error measure."""
        return "relative error"

    def tolerance(self, dtype: torch.dtype, other_library: bool) -> float:
        """Return the largest error that counts as right.

        Args:
            dtype: Dtype of the inputs.
            other_library: Whether the result is another library's, which may promise less.
        """
        return TOLERANCES[dtype]

    @abstractmethod
    def make(self, seed: int, device: torch.device, dtype: torch.dtype) -> Any:
        """Draw one set of inputs."""

    @abstractmethod
    def bind(self, ops: Any, inputs: Any) -> Call:
        """Return the call to time; everything that is not part of the work is done before."""

    @abstractmethod
    def check(self, inputs: Any) -> Check:
        """Compute the truth in float64, once, and return the function that measures errors."""


@contextlib.contextmanager
def double_reference() -> Iterator[Any]:
    """Yield ``rcnn_ext.ops`` on its pure-PyTorch backend, for float64 inputs."""
    from rcnn_ext import ops

    with ops.use_backend("reference"):
        yield ops


def relative_error(result: Tensor, truth: Tensor) -> float:
    """Return ||result - truth|| / ||truth||, or NaN where the shapes differ.

    Args:
        result: Any shape.
        truth: Same shape and device as ``result``, float64.
    """
    if result.shape != truth.shape:
        return math.nan
    difference = squared = 0.0
    # In pieces: a float64 copy of an 80 MB result, its difference and square would be 480 MB.
    for part, true_part in zip(_pieces(result), _pieces(truth), strict=True):
        difference += (part.double() - true_part).square().sum().item()
        squared += true_part.square().sum().item()
    if squared == 0:
        return math.sqrt(difference)
    return math.sqrt(difference / squared)


def _pieces(tensor: Tensor, elements: int = 1 << 22) -> Iterator[Tensor]:
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
    yield from flat.split(elements) if flat.numel() else ()


def worst_error(results: Any, truths: tuple[Tensor, ...]) -> float:
    """Return the largest relative error among one result or a tuple of them; NaN if any has it."""
    tensors = (results,) if isinstance(results, Tensor) else tuple(results)
    if len(tensors) != len(truths):
        return math.nan
    errors = [relative_error(a, b) for a, b in zip(tensors, truths, strict=True)]
    return math.nan if any(math.isnan(error) for error in errors) else max(errors)
