"""``use_backend``: the choice between the native kernels and the reference."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rcnn_ext import _extension

Backend = Literal["native", "reference"]

# Filled by define_operator: the operator's overload -> its reference.
references: dict[Any, Callable[..., Any]] = {}


class _ReferenceMode(TorchDispatchMode):
    """Run the reference in place of the kernel that the dispatcher would choose.

    It sits below autograd, so derivatives take the reference as well. PyTorch hands it to the
    threads that run a backward pass for CUDA; hence it holds by itself whether it acts.
    """

    active = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        reference = references.get(func) if self.active else None
        if reference is None:
            return func(*args, **(kwargs or {}))
        return reference(*args, **(kwargs or {}))


# The reference modes around the present block of code, outermost first.
_modes: contextvars.ContextVar[tuple[_ReferenceMode, ...]] = contextvars.ContextVar(
    "rcnn_ext_reference_modes", default=()
)


@contextlib.contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Choose the implementation of this package's operators for a block of code.

    Without it the dispatcher chooses: the native kernel where there is one for the tensor's device,
    the reference elsewhere. The choice holds for the current thread, forward and backward; code
    under ``torch.compile`` is run uncompiled inside ``use_backend("reference")``.

    Args:
        backend: ``"reference"`` for the pure PyTorch operators of :mod:`rcnn_ext.reference`,
            ``"native"`` for the compiled kernels.

    Raises:
        ValueError: Unknown name.
        RuntimeError: ``"native"`` where the CPU kernels are not loaded; the message says why.

    Example:
        >>> with use_backend("reference"):
        ...     keep = nms(boxes, scores, 0.5)
    """
    if backend not in ("native", "reference"):
        raise ValueError(f"use_backend: expected 'native' or 'reference', got {backend!r}")
    if backend == "native":
        module = _extension.status()["_C"]
        if not module.loaded:
            raise RuntimeError(f"use_backend('native'): {module.name} is {module.reason}")
        with _suspended(_modes.get()):
            yield
        return
    mode = _ReferenceMode()
    token = _modes.set((*_modes.get(), mode))
    try:
        with mode:
            yield
    finally:
        _modes.reset(token)


@contextlib.contextmanager
def _suspended(modes: tuple[_ReferenceMode, ...]) -> Iterator[None]:
    before = [mode.active for mode in modes]
    for mode in modes:
        mode.active = False
    try:
        yield
    finally:
        for mode, active in zip(modes, before, strict=True):
            mode.active = active


def has_native_kernel(name: str, device_type: str) -> bool:
    """Return whether an operator has a compiled kernel for ``"cpu"`` or ``"cuda"``."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"rcnn_ext::{name}", device_type.upper())
