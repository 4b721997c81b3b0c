"""The stages of the GPU gate: the command of each, and how its outcome is judged."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from gate_reports import (
    KERNEL_NAMES,
    count_sanitizer,
    count_tests,
    first_error,
    last_line,
    name_failures,
    parse_resources,
)

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SANITIZER_ERROR = 99

PASSED = "passed"
FAILED = "failed"
# A tool that this machine lacks: no fault of the code, but said, and not counted as passed.
MISSING = "missing"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The device that the gate runs on."""

    name: str
    capability: str


@dataclasses.dataclass(frozen=True)
class Context:
    """Shared input of the stages.

    Attributes:
        out: folder for the logs and the result.
        scratch: folder for what stages read back and nobody keeps.
        gpu: the device.
    """

    out: pathlib.Path
    scratch: pathlib.Path
    gpu: Gpu


@dataclasses.dataclass(frozen=True)
class Command:
    """A process to run.

    Attributes:
        arguments: program and arguments.
        environment: variables beside the present ones.
    """

    arguments: list[str]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return " ".join([*variables, *self.arguments])


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that ended.

    Attributes:
        code: its exit status.
        timed_out: whether it was stopped at its time limit.
        output: stdout and stderr, as far as kept.
    """

    code: int
    timed_out: bool
    output: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a stage.

    Attributes:
        status: ``passed``, ``failed`` or ``missing``.
        summary: one line for the table.
        details: more, for the JSON.
    """

    status: str
    summary: str
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the gate.

    Attributes:
        name: for the table, the log and ``--only``.
        least: seconds kept free for it while earlier stages run.
        prepare: gives the command for a time limit in seconds, or an outcome where there is nothing
            to run.
        judge: reads the outcome off the finished process.
    """

    name: str
    least: float
    prepare: Callable[[Context, float], Command | Outcome]
    judge: Callable[[Context, Finished], Outcome]


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


# --- build ------------------------------------------------------------------------------------


# What the report on registers and spills covers, beside the GPU at hand.
ARCHITECTURES = ("8.0", "9.0", "10.0")


def architectures(capability: str) -> list[str]:
    """Return the architectures of the GPU and of the report that this nvcc knows."""
    nvcc = find_tool("nvcc")
    if nvcc is None:
        return [capability]
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False)
    known = listed.stdout.split()
    wanted = [a for a in ARCHITECTURES if f"compute_{a.replace('.', '')}" in known]
    return sorted({capability, *wanted}, key=lambda name: tuple(map(int, name.split("."))))


def prepare_build(context: Context, limit: float) -> Command:
    """Build in place for the GPU at hand and those of the report, with every core."""
    chosen = architectures(context.gpu.capability)
    return Command(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        {
            "FORCE_CUDA": "1",
            "TORCH_CUDA_ARCH_LIST": ";".join(chosen),
            "MAX_JOBS": str(os.cpu_count() or 1),
            # nvcc's own: the architectures of a file side by side.
            "NVCC_APPEND_FLAGS": f"--threads={len(chosen)}",
        },
    )


def judge_build(context: Context, done: Finished) -> Outcome:
    """Look for the CUDA module."""
    modules = sorted(path.name for path in (REPOSITORY / "rcnn_ext").glob("_*.so"))
    if done.code != 0:
        return Outcome(FAILED, first_error(done.output))
    if not any(name.startswith("_C_cuda") for name in modules):
        return Outcome(FAILED, "the build ended well, but there is no _C_cuda")
    return Outcome(PASSED, f"{len(modules)} modules for {context.gpu.capability}")


# --- atomic -----------------------------------------------------------------------------------


def prepare_atomic(context: Context, limit: float) -> Command:
    """Build what the backward passes are compared with; a stage of its own, as it may fail."""
    build = prepare_build(context, limit)
    return dataclasses.replace(build, environment={**build.environment, "RCNN_EXT_BENCHMARKS": "1"})


def judge_atomic(context: Context, done: Finished) -> Outcome:
    """Look for the module."""
    if done.code != 0:
        return Outcome(FAILED, first_error(done.output))
    if not any((REPOSITORY / "benchmarks" / "cuda").glob("_atomic*.so")):
        return Outcome(FAILED, "the build ended well, but there is no _atomic")
    return Outcome(PASSED, f"for {context.gpu.capability}")


# --- load -------------------------------------------------------------------------------------


def prepare_load(context: Context, limit: float) -> Command:
    """Ask the doctor."""
    return Command([sys.executable, "-m", "rcnn_ext", "doctor", "--json"])


def judge_load(context: Context, done: Finished) -> Outcome:
    """Expect a working installation in which every operator has a CUDA kernel."""
    try:
        # Warnings may stand before and after it.
        findings, _ = json.JSONDecoder().raw_decode(done.output, done.output.index("{"))
    except ValueError:
        return Outcome(FAILED, last_line(done.output))
    problems = list(findings["problems"])
    operators = findings.get("operators", {}).get("cuda", {})
    problems += [
        f"{name} has no CUDA kernel" for name, kind in operators.items() if kind != "native"
    ]
    if problems or done.code != 0:
        return Outcome(FAILED, "; ".join(problems) or f"exit status {done.code}", findings)
    return Outcome(PASSED, f"{len(operators)} operators run native CUDA kernels", findings)


# --- tests ------------------------------------------------------------------------------------


def prepare_tests(context: Context, limit: float) -> Command:
    """Run the operators' tests on CUDA, and compare the device with the emulated kernels.

    A test may not skip for want of a device.
    """
    report = context.scratch / "tests.xml"
    return Command(
        [
            *(sys.executable, "-m", "pytest", "-q", "-k", "cuda and not emulated"),
            *("tests/ops", "tests/emulation/test_against_device.py"),
            *("-p", "no:cacheprovider", f"--junitxml={report}"),
        ],
        {"FAIL_WITHOUT_CUDA": "1"},
    )


def judge_tests(context: Context, done: Finished) -> Outcome:
    """Count what pytest reports."""
    report = context.scratch / "tests.xml"
    if not report.is_file():
        return Outcome(FAILED, last_line(done.output))
    counts = count_tests(report.read_text())
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    ran_well = done.code == 0 and counts["passed"] > 0
    details = {**counts, "not_passed": name_failures(report.read_text())}
    return Outcome(PASSED if ran_well else FAILED, summary or "no test ran", details)


# --- compare ----------------------------------------------------------------------------------


def prepare_compare(context: Context, limit: float) -> Command:
    """Run the operator comparison on CUDA within most of the time there is."""
    return Command(
        [
            *(sys.executable, "-m", "rcnn_ext", "bench", "--device", "cuda"),
            *("--budget", f"{0.7 * limit:.0f}", "--json", str(context.scratch / "bench.json")),
        ]
    )


def judge_compare(context: Context, done: Finished) -> Outcome:
    """Read the comparison's JSON."""
    try:
        report = json.loads((context.scratch / "bench.json").read_text())
    except (OSError, ValueError):
        return Outcome(FAILED, last_line(done.output))
    rows = report["results"]
    ratios = [row["ratio_torchvision"] for row in rows if row["ratio_torchvision"] is not None]
    reached = [row["target_reached"] for row in rows if row["target_reached"] is not None]
    summary = (
        f"{len(rows)} rows, faster than torchvision in {sum(r >= 1 for r in ratios)} of"
        f" {len(ratios)}, {sum(reached)} of {len(reached)} targets"
    )
    kept_up = [row["atomic"]["target_reached"] for row in rows if row.get("atomic")]
    if kept_up:
        summary += f", {sum(kept_up)} of {len(kept_up)} gradients within reach of atomic ones"
    if report["left_out"]:
        summary += f", {len(report['left_out'])} left out for time"
    if report["failures"]:
        summary += f"; {len(report['failures'])} failed: {report['failures'][0]}"
    good = done.code == 0 and rows and not report["failures"]
    return Outcome(PASSED if good else FAILED, summary, report)


# --- sanitizers -------------------------------------------------------------------------------


# Enough that a report on a kernel of ours is printed, whatever is said of others.
_INITCHECK = ("--print-limit", "10000")


def sanitizer_stage(tool: str, least: float) -> Stage:
    """Make the stage of one compute-sanitizer tool."""

    def prepare(context: Context, limit: float) -> Command | Outcome:
        program = find_tool("compute-sanitizer")
        if program is None:
            return Outcome(MISSING, "compute-sanitizer is not installed: NOT CHECKED")
        # initcheck has to see who else writes memory; what it says of others is left out later.
        ours = ["--error-exitcode", str(SANITIZER_ERROR), "--kernel-name", f"kns={KERNEL_NAMES}"]
        return Command(
            [
                *(program, "--tool", tool, *(ours if tool != "initcheck" else _INITCHECK)),
                # PyTorch asks for things that may fail, and handles it.
                *("--report-api-errors", "no"),
                *(sys.executable, "tools/sanitizer_workload.py", "--seconds", f"{0.6 * limit:.0f}"),
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


STAGES = (
    Stage("build", 120, prepare_build, judge_build),
    Stage("load", 20, prepare_load, judge_load),
    Stage("tests", 90, prepare_tests, judge_tests),
    Stage("atomic", 45, prepare_atomic, judge_atomic),
    Stage("compare", 90, prepare_compare, judge_compare),
    sanitizer_stage("memcheck", 60),
    sanitizer_stage("racecheck", 45),
    sanitizer_stage("initcheck", 30),
    Stage("resources", 10, prepare_resources, judge_resources),
)
