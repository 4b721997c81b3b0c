"""The stages of the GPU gate that run programs of the CUDA toolkit."""

from __future__ import annotations

import glob
import os
import pathlib
import re
import shutil
import sys

from gate_reports import KERNEL_NAMES, count_sanitizer, last_line, parse_resources
from gate_types import (
    FAILED,
    MISSING,
    PASSED,
    REPOSITORY,
    Command,
    Context,
    Finished,
    Outcome,
    Stage,
)

# Seconds for the start of a process under a sanitizer, which looks at every kernel of torch too.
SANITIZED_START = 45
SANITIZER_ERROR = 99


def find_tool(name: str) -> str | None:
    """Find a program of the CUDA toolkit: on PATH, in a toolkit, or beside Triton."""
    found = shutil.which(name)
    if found is not None:
        return found
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    homes += sorted(glob.glob("/usr/local/cuda-*"), reverse=True)
    folders = [pathlib.Path(home) / part for home in homes if home for part in ("bin", name)]
    folders += [
        pathlib.Path(entry) / "triton" / "backends" / "nvidia" / "bin" for entry in sys.path
    ]
    for folder in folders:
        found = shutil.which(name, path=str(folder))
        if found is not None:
            return found
    return None


# --- sanitizers -------------------------------------------------------------------------------


# Enough that a report on a kernel of ours is printed, whatever is said of others.
_INITCHECK = ("--print-limit", "10000")


def sanitizer_stage(tool: str, least: float) -> Stage:
    """Make the stage of one compute-sanitizer tool."""

    def prepare(context: Context, limit: float) -> Command | Outcome:
        program = find_tool("compute-sanitizer")
        if program is None:
            return Outcome(MISSING, "compute-sanitizer is not installed: NOT CHECKED")
        seconds = max(5.0, limit - SANITIZED_START)
        # initcheck has to see who else writes memory; what it says of others is left out later.
        ours = ["--error-exitcode", str(SANITIZER_ERROR), "--kernel-name", f"kns={KERNEL_NAMES}"]
        return Command(
            [
                *(program, "--tool", tool, *(ours if tool != "initcheck" else _INITCHECK)),
                # PyTorch asks for things that may fail, and handles it.
                *("--report-api-errors", "no"),
                *(sys.executable, "tools/sanitizer_workload.py", "--seconds", f"{seconds:.0f}"),
            ],
            # With a caching allocator an overrun of one tensor lands inside the next.
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )

    return Stage(tool, least, prepare, lambda context, done: judge_sanitizer(tool, done))


def judge_sanitizer(tool: str, done: Finished) -> Outcome:
    """Read the sanitizer's summary and whether the workload under it came to its end."""
    if "Device not supported" in done.output:
        return Outcome(MISSING, "compute-sanitizer does not support this device: NOT CHECKED")
    counts = count_sanitizer(tool, done.output)
    work = re.search(r"^WORKLOAD: (\d+) of (\d+) calls", done.output, re.MULTILINE)
    if counts is None:
        return Outcome(FAILED, f"no summary of {tool}: {last_line(done.output)}")
    calls = f" in {work[1]} of {work[2]} calls" if work else ""
    summary = ", ".join(f"{count} {name}" for name, count in counts.items()) + calls
    details = {**counts, "calls": int(work[1]) if work else 0}
    if work is None:
        return Outcome(FAILED, f"the workload did not end well; {summary}", details)
    if int(work[1]) == 0 or counts["errors"] or done.code != 0:
        return Outcome(FAILED, summary, details)
    return Outcome(PASSED, summary, details)


# --- resources --------------------------------------------------------------------------------


def prepare_resources(context: Context, limit: float) -> Command | Outcome:
    """Ask cuobjdump what each kernel takes of a multiprocessor."""
    program = find_tool("cuobjdump")
    if program is None:
        return Outcome(MISSING, "cuobjdump is not installed")
    modules = sorted((REPOSITORY / "rcnn_ext").glob("_C_cuda*.so"))
    if not modules:
        return Outcome(FAILED, "there is no _C_cuda to look into")
    return Command([program, "-res-usage", str(modules[0])])


def judge_resources(context: Context, done: Finished) -> Outcome:
    """List registers, shared memory and stack; a stack often means spilled registers."""
    kernels = parse_resources(done.output)
    if done.code != 0 or not kernels:
        return Outcome(FAILED, last_line(done.output))
    ours = [kernel for kernel in kernels if KERNEL_NAMES in kernel["kernel"]]
    if not ours:
        # The sanitizers filter by this name: they would have looked at nothing.
        return Outcome(FAILED, f"no kernel has {KERNEL_NAMES!r} in its name")
    parts = []
    for architecture in dict.fromkeys(kernel["architecture"] for kernel in ours):
        there = [kernel for kernel in ours if kernel["architecture"] == architecture]
        stacks = sum(kernel["stack"] > 0 for kernel in there)
        most = max(kernel["registers"] for kernel in there)
        parts.append(
            f"{architecture}: {len(there)} kernels, at most {most} registers, "
            f"{stacks} with a stack frame"
        )
    return Outcome(PASSED, "; ".join(parts), {"kernels": ours})
