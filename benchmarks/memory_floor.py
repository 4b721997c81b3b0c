"""Time the memory traffic of the RoI operators alone, beside ours and torchvision.

Usage: python benchmarks/memory_floor.py [PATTERN]

For each case of the CPU suite whose name contains PATTERN (default: roi), one thread writes a
number to every element of memory of the results' size, fresh where the suite's is, in huge pages
where the system has them, and reads every input once. Where RoIs cover the map, no kernel can move
less. Times are medians of interleaved runs, in milliseconds; "at most" is the ratio to
torchvision that this traffic leaves.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rcnn_ext.bench.cases.pooling import PoolingCase, PyramidInputs
from rcnn_ext.bench.contenders import OURS, TORCHVISION
from rcnn_ext.bench.memory import keep_freed_memory
from rcnn_ext.bench.runner import SEED, active, contender_ops
from rcnn_ext.bench.suite import select, suite
from rcnn_ext.bench.timing import Contender, TimingConfig, WallClock, time_interleaved

_FLOOR = "floor"
_HUGE_PAGE = 1 << 21
_MADV_HUGEPAGE = 14  # of Linux


def main() -> None:
    """Time the cases and print a line for each."""
    pattern = sys.argv[1] if len(sys.argv) > 1 else "roi"
    torch.set_num_threads(1)
    keep_freed_memory()
    advise = _advise()
    print(f"{'case':<36}{'floor':>8}{'ours':>8}{'torchvision':>13}{'ratio':>8}{'at most':>9}")
    for case in select(suite(quick=False), "cpu", pattern):
        if not isinstance(case, PoolingCase):
            continue
        inputs = case.make(SEED, torch.device("cpu"), torch.float32)
        contenders = [_contender(name, case, inputs) for name in (OURS, TORCHVISION)]
        contenders.append(Contender(_FLOOR, [_traffic(case, inputs, advise)]))
        times = time_interleaved(contenders, WallClock(), TimingConfig())
        floor, ours, other = (times[name].median for name in (_FLOOR, OURS, TORCHVISION))
        print(
            f"{case.name:<36}{floor * 1e3:>8.1f}{ours * 1e3:>8.1f}{other * 1e3:>13.1f}"
            f"{other / ours:>7.1f}x{other / floor:>8.1f}x",
            flush=True,
        )


def _contender(name: str, case: PoolingCase, inputs: Any) -> Contender:
    with active(name, case):
        call = case.bind(contender_ops(name), inputs)
        call()
    return Contender(name, [call], lambda: active(name, case))


def _traffic(
    case: PoolingCase, inputs: Any, advise: Callable[[Tensor], None]
) -> Callable[[], list[Tensor]]:
    """Return the call that writes what the operator writes and reads what it reads."""
    pyramid = isinstance(inputs, PyramidInputs)
    features = list(inputs.levels.values()) if pyramid else [inputs.features]
    pooled = (case.rois, case.channels, case.output_size, case.output_size)
    places = [torch.zeros(pooled, dtype=torch.int32)] if case.operator == "roi_pool" else []
    if case.backward:
        written = [(tuple(level.shape), level.dtype) for level in features]
        read = [inputs.gradient, *places]
    else:
        written = [(pooled, features[0].dtype), *((pooled, place.dtype) for place in places)]
        read = features

    def call() -> list[Tensor]:
        results = []
        for shape, dtype in written:
            fresh = torch.empty(math.prod(shape), dtype=dtype)
            advise(fresh)
            results.append(fresh.fill_(1))
        # The greatest number, since torch adds integers at less than the speed of memory.
        return [*results, *(_in_memory_order(tensor).max() for tensor in read)]

    return call


def _in_memory_order(tensor: Tensor) -> Tensor:
    """Return all elements of a dense tensor, of any layout, as they lie."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _advise() -> Callable[[Tensor], None]:
    """Return the function that asks for huge pages behind a tensor, as the kernels do."""
    if not sys.platform.startswith("linux"):
        return lambda tensor: None
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def advise(tensor: Tensor) -> None:
        start = tensor.data_ptr()
        stop = start + tensor.numel() * tensor.element_size()
        first, last = -(-start // _HUGE_PAGE) * _HUGE_PAGE, stop // _HUGE_PAGE * _HUGE_PAGE
        if first < last:
            library.madvise(first, last - first, _MADV_HUGEPAGE)

    return advise


if __name__ == "__main__":
    main()
