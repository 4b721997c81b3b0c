"""Memory of large feature maps, kept from one call of a model to the next.

The C library takes memory for an allocation above 32 MiB from the system and gives it back when
it is freed. The system clears each page at its first use, which was a tenth of the time of a
detector on a CPU. A model that keeps such memory for its own maps pays once, and the allocator
of the process stays as it is.
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

# Number of the references to the memory of a tensor; a private name of PyTorch.
_use_count = getattr(torch._C, "_storage_Use_Count", None)


class MapBuffers:
    """Buffers for large feature maps of one model, for any number of threads.

    A buffer is given out again only when no tensor refers to its memory any more: a map that
    somebody holds, or a view of it, never changes. Copies and pickles start empty.
    """

    # From here on glibc maps memory anew for each allocation, whatever it learned of the process.
    MIN_BYTES: ClassVar[int] = 32 * 2**20

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return MapBuffers, ()

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
        """Return an uninitialized channels-last map ``[N, C, H, W]``.

        Returns:
            None if the map is not large: the allocator does better then.
        """
        needed = math.prod(shape) * dtype.itemsize
        if needed < self.MIN_BYTES or _use_count is None:
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
            if buffer.nbytes >= needed:
                return buffer
        if free:  # The largest takes the new size, so that buffers do not gather.
            self._buffers = [buffer for buffer in self._buffers if buffer is not free[-1]]
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
