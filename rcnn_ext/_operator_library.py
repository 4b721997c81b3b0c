"""The operator libraries: native modules without a symbol of Python, loaded by ctypes.

``_C`` and ``_C_cuda`` hold kernels and the operators' schemas, and a program without Python loads
the same files. So they are no Python modules, whatever the suffix of their names.
"""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path

import torch


def load(path: Path) -> ctypes.CDLL:
    """Load an operator library: its schemas and kernels are registered with the dispatcher.

    Args:
        path: The file.

    Returns:
        The library, for its functions of C.

    Raises:
        OSError: The file can't be loaded, as with a torch older than it was built for.
    """
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path))


class InstructionSets:
    """The choice of the instruction set in ``_C``, for all threads.

    Args:
        library: The library.

    Raises:
        OSError: The library has no such functions: it was built from other sources.
        ValueError: An unknown name in ``RCNN_EXT_DISABLE_CPU_FEATURES``.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        try:
            self._last_error = library.rcnn_ext_last_error
            self._current = library.rcnn_ext_instruction_set
            self._at = library.rcnn_ext_instruction_set_at
            self._use = library.rcnn_ext_use_instruction_set
        except AttributeError:
            raise OSError(
                "it was built from other sources than those of this package; build it again"
            ) from None
        self._last_error.restype = self._current.restype = self._at.restype = ctypes.c_char_p
        self._at.argtypes = [ctypes.c_int]
        self._use.argtypes = [ctypes.c_char_p]
        self._use.restype = ctypes.c_bool
        # A library that was built before it had kernels with them lacks the function.
        self._has_bf16_products = getattr(library, "rcnn_ext_has_bf16_products", None)
        if self._has_bf16_products is not None:
            self._has_bf16_products.restype = ctypes.c_bool
        self.current()

    def _error(self) -> ValueError:
        return ValueError(self._last_error().decode())

    def current(self) -> str:
        """Return the name of the instruction set that kernels use."""
        name = self._current()
        if name is None:
            raise self._error()
        return name.decode()

    def available(self) -> tuple[str, ...]:
        """Return the instruction sets of this processor, the best last."""
        names = iter(map(self._at, itertools.count()).__next__, None)
        return tuple(name.decode() for name in names)

    def has_bf16_products(self) -> bool:
        """Return whether kernels use the processor's dot products of bfloat16."""
        return self._has_bf16_products is not None and bool(self._has_bf16_products())

    def use(self, name: str) -> None:
        """Choose an instruction set.

        Args:
            name: One of :meth:`available`.

        Raises:
            ValueError: The name is unknown, or this processor lacks the instruction set.
            TypeError: The name is no string.
        """
        if not isinstance(name, str):
            raise TypeError(f"expected the name of an instruction set, got {name!r}")
        if not self._use(name.encode()):
            raise self._error()
