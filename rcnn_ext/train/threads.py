"""A hint where the threads of a run fight for the cores of the machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from rcnn_ext.distributed import Processes

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def thread_hint(processes: Processes, device: torch.device, workers: int) -> str | None:
    """Return a line for the user if this machine's processes have more threads than its cores.

    PyTorch takes a thread per core, and waits in each operator for the last of them, which another
    process may have kept from its core: a step can take several times as long as with one thread.

    Args:
        processes: The processes of the run.
        device: The device that it trains on; on a GPU, the threads of PyTorch have little to do.
        workers: Number of worker processes that read images, per process.

    Returns:
        The line, or None where there are cores enough.
    """
    if device.type != "cpu":
        return None
    cores, local, threads = available_cores(), processes.local_count, torch.get_num_threads()
    if local * (threads + workers) <= cores:
        return None
    fitting = max(1, cores // local - workers)
    advice = f"OMP_NUM_THREADS={fitting}"
    if threads <= fitting:
        fewer = max(0, cores // local - threads)
        advice = f"data.workers={fewer}" if fewer < workers else "fewer processes"
    each = f"{local} processes with " if local > 1 else ""
    return (
        f"{each}{threads} threads and {workers} workers share {cores} cores; if steps are slow, "
        f"try {advice}"
    )


def available_cores() -> int:
    """Return the number of cores that this process may use, as container limits have it."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = _CPU_MAX.read_text().split()
        limit = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return cores
    return max(1, min(cores, limit))
