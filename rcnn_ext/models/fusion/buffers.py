"""Memory of large feature maps, kept from one call of a model to the next.

The C library takes memory for an allocation above 32 MiB from the system and gives it back when
it is freed; of smaller ones it gives back what is free beyond some 64 MiB, as at the end of a call.
The system clears each page at its next use, which was a tenth of the time of a detector on a CPU.
A model that keeps such memory for its own maps pays once, and the allocator of the process stays as
it is.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

# Sizes are rounded up, so that images of about one size take one buffer.
_GRANULARITY = 2**20
# A buffer is at most so many times as large as the map in it.
_MAX_EXCESS = 4

# Number of the references to the memory of a tensor; a private name of PyTorch.
_use_count = getattr(torch._C, "_storage_Use_Count", None)


class MapBuffers:
    """Buffers for large feature maps of one model, for any number of threads.

    A buffer is given out again only when no tensor refers to its memory any more: a map that
    somebody holds, or a view of it, never changes. Copies and pickles start empty.
    """

    # With so much in buffers, detectors of 800x1088 pixels take next to no new pages in a call.
    # Lower bounds were no faster, since most layers have to clear a buffer first. Measured on AMD
    # EPYC (Zen 5) with glibc 2.36, December 2026.
    MIN_BYTES: ClassVar[int] = 16 * 2**20

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return MapBuffers, ()

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def take(
        self, shape: Sequence[int], dtype: torch.dtype, min_bytes: int | None = None
    ) -> Tensor | None:
        """Return an uninitialized channels-last map.

        Args:
            shape: ``[N, C, H, W]``.
            dtype: Type of the map.
            min_bytes: The least number of bytes that is worth a buffer; None means ``MIN_BYTES``.

        Returns:
            None if the map is smaller: the allocator does better then.
        """
        needed = math.prod(shape) * dtype.itemsize
        if needed < (self.MIN_BYTES if min_bytes is None else min_bytes) or _use_count is None:
            return None
        n, c, h, w = shape
        with self._lock:
            storage = self._find(needed).untyped_storage()
            # No view of the buffer: to autograd the map is a tensor of its own.
            with torch.inference_mode(False):
                map_ = torch.empty(0, dtype=dtype)
                map_.set_(storage, 0, (n, c, h, w), (c * h * w, 1, c * w, c))
        return map_

    def _find(self, needed: int) -> Tensor:
        """Return a buffer of at least ``needed`` bytes that nobody uses, a new one if must be."""
        free = [buffer for buffer in self._buffers if _is_free(buffer)]
        free.sort(key=lambda buffer: buffer.nbytes)
        for buffer in free:
            # A small map in a large buffer would make the next large map take a further one.
            if needed <= buffer.nbytes <= needed * _MAX_EXCESS + _GRANULARITY:
                return buffer
        smaller = [buffer for buffer in free if buffer.nbytes < needed]
        if smaller:  # The largest takes the new size, so that buffers do not gather.
            self._buffers = [buffer for buffer in self._buffers if buffer is not smaller[-1]]
        size = -(-needed // _GRANULARITY) * _GRANULARITY
        with torch.inference_mode(False):
            buffer = torch.empty(size, dtype=torch.uint8)
        self._buffers.append(buffer)
        return buffer


def _is_free(buffer: Tensor) -> bool:
    assert _use_count is not None
    storage = buffer.untyped_storage()
    return _use_count(storage._cdata) == _UNUSED


def _count_of_unused() -> int:
    """Return the count of memory that one tensor refers to, and the call that asks."""
    if _use_count is None:
        return 0
    buffer = torch.empty(1, dtype=torch.uint8)
    return _use_count(buffer.untyped_storage()._cdata)


_UNUSED = _count_of_unused()
