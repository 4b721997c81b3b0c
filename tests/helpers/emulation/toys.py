"""Launches the kernels of toy_kernels.cu, which try the emulator itself."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import pytest

from tests.helpers.emulation.backend import SANITIZE, EmulationError, Library
from tests.helpers.emulation.build import EMULATOR

SANITIZED = bool(os.environ.get(SANITIZE))
TOYS = EMULATOR.parent / "toy_kernels.cu"
SEEDS = range(12)


def signed(bits):
    return struct.unpack("i", struct.pack("I", bits & 0xFFFFFFFF))[0]


class Toys:
    """Launches the toy kernels on guarded buffers."""

    def __init__(self, library: Path) -> None:
        self.library = Library(library)
        self._launch = self.library.functions["toy_launch"]
        self._launch.restype = ctypes.c_char_p
        self._launch.argtypes = [
            ctypes.c_char_p,
            ctypes.c_uint * 3,
            ctypes.c_uint * 3,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int,
        ]

    def __call__(self, name, values, out=None, *, grid=(1, 1, 1), block=None, shared=0, seed=0):
        """The numbers that a kernel leaves in its output (and, second, in its input)."""
        block = block or (len(values), 1, 1)
        out = [0] * len(values) if out is None else out
        assert len(out) >= len(values)
        self.library.set_seed(seed)
        addresses, arrays = [], []
        for numbers in (values, out):
            addresses.append(self.library.allocate(4 * len(numbers), 0))
            arrays.append((ctypes.c_int32 * len(numbers)).from_address(addresses[-1]))
            arrays[-1][:] = numbers
        try:
            message = self._launch(
                name.encode(), (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), shared,
                *addresses, len(values),
            ).decode()  # fmt: skip
            results = list(arrays[1]), list(arrays[0])
        finally:
            damage = []
            for address in addresses:
                try:
                    self.library.release(address)
                except EmulationError as error:
                    damage.append(str(error))
        if message or damage:
            raise EmulationError(message or damage[0])
        return results

    def error(self, name, values, *args, **kwargs) -> str:
        """The message of the error that a kernel ends with."""
        with pytest.raises(EmulationError) as caught:
            self(name, values, *args, **kwargs)
        return str(caught.value)
