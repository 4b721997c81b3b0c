"""The record of machine, versions and source hash that a figure or a fault report carries."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import re
import shutil
import subprocess
from importlib import metadata
from typing import Any

import torch

import rcnn_ext
from rcnn_ext import _extension
from rcnn_ext._source_hash import csrc_hash
from rcnn_ext.ops import has_native_kernel

# Instruction sets that decide how fast the kernels, and those of other libraries, can be.
_FLAGS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vbmi")


def describe(device: torch.device) -> dict[str, Any]:
    """Describe machine and software, for the head of a result.

    Args:
        device: The device that the result is about.

    Returns:
        A dict for JSON. It names no user, host or path.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device.type,
        "device_name": device_name(device),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": describe_cpu(),
        "gpu": describe_gpu(),
        "versions": versions(),
        "csrc_hash": built_hash() or source_hash(),
        "build": _extension.build_info(),
    }


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor for the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(describe_cpu()["model"])


def describe_cpu() -> dict[str, Any]:
    """Describe the processor: model, cores given to this process, instruction sets."""
    fields = _cpu_info()
    present = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in present],
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_set": _extension.instruction_set(),
    }


def describe_gpu() -> dict[str, Any] | None:
    """Describe the current CUDA device; None where there is none."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20, 1) or None,
        "count": torch.cuda.device_count(),
        "driver": _driver_version(),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of the software in use; None for what is not installed."""
    return {
        "rcnn_ext": rcnn_ext.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": installed_version("torchvision"),
        "numpy": installed_version("numpy"),
        "pydantic": installed_version("pydantic"),
        "cuda": torch.version.cuda,
        "nvcc": _nvcc_version(),
    }


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def operator_backends(device_type: str) -> dict[str, str]:
    """Return which backend the dispatcher has for each operator, forward and backward.

    Args:
        device_type: ``cpu`` or ``cuda``.

    Returns:
        ``native`` or ``reference``, by the operator's name in ``torch.ops.rcnn_ext``.
    """
    prefix = "rcnn_ext::"
    names = sorted(
        name.removeprefix(prefix)
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(prefix)
    )
    return {
        name: "native" if has_native_kernel(name, device_type) else "reference" for name in names
    }


def built_hash() -> str | None:
    """Return the hash of the sources that the native modules were built from; None if unknown."""
    info = _extension.build_info()
    return None if info is None else info.get("csrc_hash")


def source_hash() -> str | None:
    """Return the hash of ``csrc/`` beside the package; None outside a source checkout."""
    checkout = _extension.source_checkout()
    return None if checkout is None else csrc_hash(checkout / "csrc")


def _cpu_info() -> dict[str, str]:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _nvcc_version() -> str | None:
    output = _first_output("nvcc", "--version")
    found = re.search(r"release ([\d.]+)", output or "")
    return found.group(1) if found else None


def _driver_version() -> str | None:
    output = _first_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return output.splitlines()[0].strip() if output else None


def _first_output(program: str, *arguments: str) -> str | None:
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
