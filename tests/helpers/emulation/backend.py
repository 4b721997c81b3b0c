"""The operators on emulated CUDA kernels: one more backend for the operators' tests.

``emulated(seed)`` redirects ``rcnn_ext::op`` to ``rcnn_ext_emulated::op`` for a block of code. It
does so below autograd: public functions and derivatives stay what they are. Each call runs under
several schedules and must give the same bits under all of them; inputs and outputs lie between
guard zones, and outputs begin as poison.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from rcnn_ext.ops import _backend
from tests.helpers.emulation.build import build

NAMESPACE = "rcnn_ext_emulated"
# Set in a process that runs under AddressSanitizer.
SANITIZE = "RCNN_EMULATION_SANITIZE"
# Another library instead of the one built from csrc: mutated kernels.
LIBRARY = "RCNN_EMULATION_LIBRARY"


class EmulationError(AssertionError):
    """A kernel broke the rules: the message names the kernel, the block and the thread.

    No RuntimeError, so that a test which expects one for bad input doesn't take this for it.
    """


class Library:
    """A library of emulated kernels with the functions of tests/emulation/csrc/interface.h."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        self.functions.rcnn_emulation_set_seed.argtypes = [ctypes.c_uint64]
        self.functions.rcnn_emulation_launches.restype = ctypes.c_uint64
        self.functions.rcnn_emulation_allocate.argtypes = [ctypes.c_size_t, ctypes.c_int]
        self.functions.rcnn_emulation_allocate.restype = ctypes.c_void_p
        self.functions.rcnn_emulation_release.argtypes = [ctypes.c_void_p]
        self.functions.rcnn_emulation_release.restype = ctypes.c_char_p
        self.functions.rcnn_emulation_take_error.restype = ctypes.c_char_p
        self.has_address_sanitizer = bool(self.functions.rcnn_emulation_has_address_sanitizer())

    def set_seed(self, seed: int) -> None:
        """Draw the schedules from here on from a seed."""
        self.functions.rcnn_emulation_set_seed(seed)

    def launches(self) -> int:
        """Return how many kernels were launched since the seed was set."""
        return self.functions.rcnn_emulation_launches()

    def poison_byte(self) -> int:
        """Return the byte that fills memory not written yet under this seed."""
        return self.functions.rcnn_emulation_poison_byte()

    def allocate(self, size: int, fill: int) -> int:
        """Allocate ``size`` bytes between guard zones and return their address."""
        address = self.functions.rcnn_emulation_allocate(size, fill)
        if address is None:
            raise MemoryError(f"no {size} bytes for an emulated buffer")
        return address

    def release(self, address: int) -> None:
        """Release a buffer.

        Raises:
            EmulationError: something wrote to its guard zones.
        """
        damage = self.functions.rcnn_emulation_release(address).decode()
        if damage:
            raise EmulationError(damage)

    def check(self) -> None:
        """Raise an error that AddressSanitizer found outside of a launch."""
        message = self.functions.rcnn_emulation_take_error().decode()
        if message:
            raise EmulationError(message)


class Guarded:
    """Tensors between guard zones, released together."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._addresses: list[int] = []

    def empty_like(self, like: torch.Tensor, fill: int) -> torch.Tensor:
        """Allocate a tensor of the same dtype, sizes and strides, every byte ``fill``.

        The bytes are exactly those that the strides span: no element lies outside.
        """
        return self._allocate(like, fill, shift=0)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy the tensor's memory between guard zones, including gaps of its strides.

        It is aligned as the tensor's is, so that a view which begins inside of a vector still does.
        """
        guarded = self._allocate(tensor, fill=0xFF, shift=tensor.data_ptr() % 16)
        if guarded.numel() > 0:
            memory = tensor.detach().as_strided((_span(tensor),), (1,))
            guarded.as_strided(memory.shape, (1,)).copy_(memory)
        return guarded

    def _allocate(self, like: torch.Tensor, fill: int, shift: int) -> torch.Tensor:
        if like.numel() == 0:
            return like.detach()
        size = shift + _span(like) * like.element_size()
        address = self._library.allocate(size, fill)
        self._addresses.append(address)
        memory = (ctypes.c_uint8 * size).from_address(address)
        flat = torch.frombuffer(memory, dtype=like.dtype, offset=shift)
        return flat.as_strided(like.shape, like.stride())

    def release(self) -> None:
        """Release all; no tensor may be used any more."""
        damage = None
        while self._addresses:
            try:
                self._library.release(self._addresses.pop())
            except EmulationError as error:
                damage = error
        if damage is not None:
            raise damage


def _span(tensor: torch.Tensor) -> int:
    """Elements from the first to the last."""
    return 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))


class _GuardedAllocation(TorchDispatchMode):
    """Allocates the kernels' results as poisoned memory between guard zones.

    It also counts the PyTorch operators that the host code of the kernels calls.
    """

    def __init__(self, guarded: Guarded, fill: int) -> None:
        super().__init__()
        self._guarded = guarded
        self._fill = fill
        self.count = 0
        self.calls: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls[func._schema.name] += 1
        if func in (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default):
            self.count += 1
            return self._guarded.empty_like(result, self._fill)
        return result


_CPU_KERNEL = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


class _Emulation(TorchDispatchMode):
    """Runs the emulated kernel in place of the one that the dispatcher would choose."""

    def __init__(self, emulator: Kernels, seeds: tuple[int, ...]) -> None:
        super().__init__()
        self._emulator = emulator
        self._seeds = seeds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = self._emulator.operators.get(func)
        if operator is None or not all(issubclass(t, torch.Tensor) for t in types):
            return func(*args, **kwargs)
        # Straight to the kernel: it runs inside a mode that is for what it calls, not for itself.
        kernel = functools.partial(operator.redispatch, _CPU_KERNEL)
        results = [self._emulator.call(kernel, args, kwargs, seed) for seed in self._seeds]
        self._emulator.compare(operator, results, self._seeds)
        return results[0]


class Kernels:
    """A library of emulated kernels, and the operators that they stand for.

    Args:
        path: the library.
        names: the operators, with the names under which the library registers its kernels.
    """

    def __init__(self, path: Path, names: dict[Any, str]) -> None:
        # Schemas first: they are those of rcnn_ext, word for word.
        for original, name in names.items():
            schema = str(original._schema).partition("(")
            torch.library.define(f"{NAMESPACE}::{name}", schema[1] + schema[2])
        torch.ops.load_library(str(path))
        # Of the last call: the PyTorch operators that its host code called, and its launches.
        self.calls: collections.Counter[str] = collections.Counter()
        self.launches = 0
        self.library = Library(path)
        self.poisoned_outputs = (
            0  # of the last call; results of PyTorch's operators are not poisoned
        )
        self.operators = {
            original: getattr(getattr(torch.ops, NAMESPACE), name).default
            for original, name in names.items()
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CPU")
        }

    def call(self, kernel: Callable[..., Any], args: tuple, kwargs: dict, seed: int) -> Any:
        """Call an operator's kernel once under the schedule of a seed.

        Raises:
            EmulationError: the kernel broke a rule, wrote to an input or outside of a buffer.
        """
        self.library.set_seed(seed)
        guarded = Guarded(self.library)
        inputs: list[tuple[torch.Tensor, torch.Tensor]] = []

        def guard(tensor: torch.Tensor) -> torch.Tensor:
            copy = guarded.copy(tensor)
            inputs.append((tensor, copy))
            return copy

        try:
            arguments = tree_map_only(torch.Tensor, guard, (args, kwargs))
            try:
                with _GuardedAllocation(guarded, self.library.poison_byte()) as allocation:
                    result = kernel(*arguments[0], **arguments[1])
                self.poisoned_outputs = allocation.count
                self.calls = allocation.calls
                self.launches = self.library.launches()
            except RuntimeError as error:
                if "[seed " in str(error):
                    raise EmulationError(str(error)) from None
                raise
            for original, copy in inputs:
                if not _same_bits(original.detach(), copy):
                    raise EmulationError("an input was written to")
            result = tree_map_only(torch.Tensor, _own_copy, result)
        finally:
            guarded.release()
        self.library.check()
        return result

    @staticmethod
    def compare(operator: Any, results: Sequence[Any], seeds: Sequence[int]) -> None:
        """Raise where the schedules of the seeds gave results that differ in a bit."""
        for seed, result in zip(seeds[1:], results[1:], strict=True):
            if not _same_bits(results[0], result):
                raise EmulationError(
                    f"{operator}: the result depends on the schedule: "
                    f"seeds {seeds[0]} and {seed} differ"
                )


def _own_copy(tensor: torch.Tensor) -> torch.Tensor:
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return copy.copy_(tensor)


def _same_bits(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_same_bits, a, b))
    if a.shape != b.shape or a.dtype != b.dtype or a.stride() != b.stride():
        return False
    if a.numel() == 0:
        return True
    a, b = (torch.empty(t.shape, dtype=t.dtype).copy_(t) for t in (a, b))  # contiguous
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@functools.cache
def emulator() -> Kernels:
    """Return the kernels of csrc, built on the first call."""
    names = {original: original._schema.name.partition("::")[2] for original in _backend.references}
    if os.environ.get(LIBRARY):
        return Kernels(Path(os.environ[LIBRARY]), names)
    return Kernels(build(address_sanitizer=bool(os.environ.get(SANITIZE))), names)


@contextlib.contextmanager
def emulated(
    seed: int = 0, schedules: int = 2, kernels: Kernels | None = None
) -> Iterator[Kernels]:
    """Run this package's operators on emulated CUDA kernels, on CPU tensors.

    Args:
        seed: of the schedules.
        schedules: how many each call runs under.
        kernels: those of csrc by default.

    Example:
        >>> with emulated(seed=7):
        ...     keep = ops.nms(boxes, scores, 0.5)
    """
    instance = kernels or emulator()
    with _Emulation(instance, tuple(range(seed, seed + schedules))):
        yield instance
