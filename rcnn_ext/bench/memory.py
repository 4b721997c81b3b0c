"""Peak memory of a call beyond its result, and on CUDA its kernels and their times."""

from __future__ import annotations

import ctypes
import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# For each name of a kernel, how many were launched and their time in seconds.
KernelTimes = dict[str, tuple[int, float]]


def extra_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Return the peak of memory during a call, less what was there before and less its result.

    On CUDA this is the caching allocator's count. On the CPU it is the resident size of the
    process, so it comes in pages, also counts what the call does not return to the system at once,
    and is known on Linux only.

    Args:
        call: The work; it ran before, so that nothing is loaded now.
        device: The device that it runs on.

    Returns:
        Bytes, or None where this cannot be measured.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        peak = torch.cuda.max_memory_allocated(device)
    else:
        found = resident_peak(call)
        if found is None:
            return None
        before, peak, result = found.before, found.highest, found.result
    return max(0, peak - before - bytes_of(result))


# Of glibc's malloc.h, and the largest threshold that it takes.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_THRESHOLD = 32 << 20


def keep_freed_memory() -> str | None:
    """Have the C library keep what is freed, as a long-running process comes to do by itself.

    Otherwise the sizes and the order of earlier calls decide whether a result of some megabytes
    lies in memory at hand or in fresh pages, whose faults may cost as much as the work: the same
    case may then take twice as long in one run as in another, and not for all contenders. The
    setting stays in force until the process ends.

    Returns:
        A description of the setting, for the report; None where the C library is not glibc.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is None:
        return None
    kept = set_option(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    kept = set_option(_M_TRIM_THRESHOLD, 2**31 - 1) and kept
    return "freed memory kept; results above 32 MiB in fresh pages" if kept else None


def kernel_times(call: Callable[[], Any], device: torch.device) -> KernelTimes | None:
    """Profile the kernels (with copies and fills) that a call puts on the device.

    Returns:
        Their names with counts and times; None on the CPU, and where there is no profiler.
    """
    if device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize(device)
    try:
        with torch.profiler.profile(activities=activities) as profile:
            call()
            torch.cuda.synchronize(device)
    except RuntimeError:  # no CUPTI, or another profiler holds it
        return None
    seconds: dict[str, list[float]] = {}
    for event in profile.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            seconds.setdefault(event.name, []).append(event.device_time / 1e6)
    return {name: (len(times), sum(times)) for name, times in seconds.items()}


def bytes_of(result: Any) -> int:
    """Return the size of a tensor, or of a sequence of tensors."""
    tensors = (result,) if isinstance(result, Tensor) else tuple(result)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclasses.dataclass(frozen=True)
class ResidentPeak:
    """The resident size of the process around a call, in bytes, and the result of the call."""

    before: int
    highest: int
    result: Any


def resident_peak(call: Callable[[], Any]) -> ResidentPeak | None:
    """Call and watch the resident size of the process; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    try:
        # Memory that the allocator holds back from earlier work would hide what the call takes.
        ctypes.CDLL(None).malloc_trim(0)
        # 5 sets the peak back to the present size (proc(5)).
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        result = call()
        return ResidentPeak(before, _status_bytes("VmHWM"), result)
    except (OSError, AttributeError, KeyError):
        return None


def _status_bytes(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)
