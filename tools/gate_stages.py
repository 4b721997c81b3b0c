"""The stages of the GPU gate: the command of each, and how its outcome is judged."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import sys

from gate_reports import count_outcomes, first_error, last_line, sum_up_rows
from gate_toolkit import judge_resources, prepare_resources, sanitizer_stage
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

from rcnn_ext.bench.row_lines import read_lines

# --- modules ----------------------------------------------------------------------------------


def _doctor() -> Command:
    return Command([sys.executable, "-m", "rcnn_ext", "doctor", "--json"])


def prepare_carried(context: Context, limit: float) -> Command | Outcome:
    """Ask the doctor about modules that came along with the sources, where there are any."""
    if not list((REPOSITORY / "rcnn_ext").glob("_C_cuda*.so")):
        return Outcome(MISSING, "no modules came along")
    return _doctor()


def judge_carried(context: Context, done: Finished) -> Outcome:
    """Take the modules if they are of these sources and work on this device."""
    outcome = judge_load(context, done)
    sources = outcome.details.get("sources", {})
    if outcome.status == PASSED and sources.get("built") == sources.get("present"):
        context.notes["loaded"] = outcome
        return outcome
    reason = outcome.summary if outcome.status != PASSED else "they are of other sources"
    # No fault of the code: they are built here.
    return Outcome(MISSING, f"not taken: {reason}", outcome.details)


def prepare_build(context: Context, limit: float) -> Command | Outcome:
    """Build in place for the GPU at hand, with every core, unless working modules came along."""
    if "loaded" in context.notes:
        return Outcome(PASSED, "working modules came along")
    return Command([sys.executable, "setup.py", "build_ext", "--inplace"], _build_options(context))


def _build_options(context: Context) -> dict[str, str]:
    return {
        "FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": context.gpu.capability,
        "MAX_JOBS": str(os.cpu_count() or 1),
    }


def judge_build(context: Context, done: Finished) -> Outcome:
    """Look for the CUDA module."""
    modules = sorted(path.name for path in (REPOSITORY / "rcnn_ext").glob("_*.so"))
    if done.code != 0:
        return Outcome(FAILED, first_error(done.output))
    if not any(name.startswith("_C_cuda") for name in modules):
        return Outcome(FAILED, "the build ended well, but there is no _C_cuda")
    return Outcome(PASSED, f"{len(modules)} modules for {context.gpu.capability}")


def prepare_load(context: Context, limit: float) -> Command | Outcome:
    """Ask the doctor, unless it was asked."""
    return context.notes.get("loaded") or _doctor()


def judge_load(context: Context, done: Finished) -> Outcome:
    """Expect a working installation in which every operator has a CUDA kernel."""
    try:
        # Warnings may stand before and after it.
        findings, _ = json.JSONDecoder().raw_decode(done.output, done.output.index("{"))
        problems = list(findings["problems"])
    except (ValueError, KeyError):
        return Outcome(FAILED, last_line(done.output))
    operators = findings.get("operators", {}).get("cuda", {})
    problems += [
        f"{name} has no CUDA kernel" for name, kind in operators.items() if kind != "native"
    ]
    if problems or done.code != 0:
        return Outcome(FAILED, "; ".join(problems) or f"exit status {done.code}", findings)
    return Outcome(PASSED, f"{len(operators)} operators run native CUDA kernels", findings)


def _atomic_modules() -> list[pathlib.Path]:
    return sorted((REPOSITORY / "benchmarks" / "cuda").glob("_atomic*.so"))


# What nvcc needs for it on a machine with many cores.
_ATOMIC_SECONDS = 25


def prepare_atomic(context: Context, limit: float) -> Command | Outcome:
    """Build what the backward passes are compared with; a stage of its own, as it may fail."""
    if "loaded" in context.notes and _atomic_modules():
        return Outcome(PASSED, "came along")
    if limit < _ATOMIC_SECONDS:
        return Outcome(MISSING, "no time to build it")
    options = {**_build_options(context), "RCNN_EXT_BENCHMARKS": "1"}
    return Command([sys.executable, "setup.py", "build_ext", "--inplace"], options)


def judge_atomic(context: Context, done: Finished) -> Outcome:
    """Look for the module."""
    if done.code != 0:
        return Outcome(FAILED, first_error(done.output))
    if not _atomic_modules():
        return Outcome(FAILED, "the build ended well, but there is no _atomic")
    return Outcome(PASSED, f"for {context.gpu.capability}")


# --- workload ---------------------------------------------------------------------------------


# Seconds for the start of a process that imports torch, and for its end.
_START = 8


def prepare_workload(context: Context, limit: float) -> Command:
    """Run every operator, forward and backward, and compare with the CPU."""
    seconds = max(5.0, limit - _START)
    return Command([sys.executable, "tools/sanitizer_workload.py", "--seconds", f"{seconds:.0f}"])


def judge_workload(context: Context, done: Finished) -> Outcome:
    """Read which calls were wrong and how many there were."""
    wrong = re.findall(r"^WRONG: (.*)", done.output, re.MULTILINE)
    work = re.search(r"^WORKLOAD: (\d+) of (\d+) calls", done.output, re.MULTILINE)
    details = {"wrong": wrong, "calls": int(work[1]) if work else 0}
    if wrong:
        return Outcome(FAILED, f"{len(wrong)} wrong results; {wrong[0]}", details)
    if work is None or done.code != 0:
        return Outcome(FAILED, f"did not end well: {last_line(done.output)}", details)
    good = int(work[1]) > 0
    return Outcome(PASSED if good else FAILED, f"{work[1]} of {work[2]} calls right", details)


# --- comparison -------------------------------------------------------------------------------


def rows_file(context: Context) -> pathlib.Path:
    """Return the file of the lines of the comparison with torchvision."""
    return context.scratch / "rows.jsonl"


def prepare_compare(context: Context, limit: float) -> Command:
    """Run the operator comparison on CUDA, rows with a target first."""
    contenders = ["rcnn_ext", "torchvision"] + ["atomic"] * bool(_atomic_modules())
    return Command(
        [
            *(sys.executable, "tools/gate_compare.py", "--rows", str(rows_file(context))),
            *("--seconds", f"{max(5.0, limit - _START):.0f}", "--", "--device", "cuda"),
            *("--targets-first", "--contenders", ",".join(contenders)),
        ]
    )


def judge_compare(context: Context, done: Finished) -> Outcome:
    """Read the rows; a comparison that was stopped counts as far as it went."""
    outcome = sum_up_rows(read_lines(rows_file(context)))
    return outcome if _ended_well(done) else _failed(outcome, done)


def _ended_well(done: Finished) -> bool:
    return done.code in (0, _NO_TESTS) or done.timed_out


def _failed(outcome: Outcome, done: Finished) -> Outcome:
    """Return an outcome of a process that ended badly, whatever it had done by then."""
    summary = f"{outcome.summary}; exit status {done.code}: {last_line(done.output)}"
    return Outcome(FAILED, summary, outcome.details)


# --- tests ------------------------------------------------------------------------------------


_MOST_WORKERS = 12
# pytest's exit status where no test was left to run.
_NO_TESTS = 5
# Slow tests, those of large inputs, and the reference run when the rest is known.
_SHORT = "cuda and not emulated and not reference and not large"


def outcomes_file(context: Context) -> pathlib.Path:
    """Return the file of the lines of the outcomes of tests."""
    return context.scratch / "outcomes.jsonl"


def _pytest(context: Context, select: list[str]) -> Command:
    parallel = []
    if importlib.util.find_spec("xdist") is not None:
        workers = min(_MOST_WORKERS, os.cpu_count() or 1)
        parallel = ["-n", str(workers), "--dist", "worksteal"]
    return Command(
        [
            *(sys.executable, "-m", "pytest", "-q", *select, *parallel),
            *("tests/ops", "tests/emulation/test_against_device.py"),
            *("-p", "no:cacheprovider", "-p", "tests.helpers.outcome_lines"),
        ],
        # A test may not skip for want of a device.
        {"FAIL_WITHOUT_CUDA": "1", "OUTCOME_LINES": str(outcomes_file(context))},
    )


def prepare_tests(context: Context, limit: float) -> Command:
    """Run the operators' tests on CUDA, and compare the device with the emulated kernels."""
    return _pytest(context, ["-k", _SHORT, "-m", "not slow"])


def prepare_more_tests(context: Context, limit: float) -> Command:
    """Run the tests that did not run yet."""
    return _pytest(context, ["-k", "cuda and not emulated"])


def judge_tests(context: Context, done: Finished) -> Outcome:
    """Count the outcomes; tests that were stopped count as far as they went."""
    counts, failures = count_outcomes(outcomes_file(context))
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    details = {**counts, "not_passed": failures}
    if failures:
        return Outcome(FAILED, f"{summary}; {failures[0]['test']}", details)
    outcome = Outcome(PASSED if counts["passed"] else FAILED, summary or "no test ran", details)
    return outcome if _ended_well(done) else _failed(outcome, done)


# --- whole models -----------------------------------------------------------------------------


def prepare_models(context: Context, limit: float) -> Command:
    """Compare whole detectors with torchvision's."""
    target = context.scratch / "models.json"
    return Command(
        [
            *(sys.executable, "-m", "rcnn_ext", "bench", "--models", "--quick", "--threads", "1"),
            *("--device", "cuda", "--json", str(target)),
        ]
    )


def judge_models(context: Context, done: Finished) -> Outcome:
    """Read the comparison's JSON."""
    try:
        report = json.loads((context.scratch / "models.json").read_text())
    except (OSError, ValueError):
        return Outcome(FAILED, last_line(done.output))
    ratios = [
        f"{row['case']} {row['ratio_torchvision']:.2f}x"
        for row in report["results"]
        if row["ratio_torchvision"] is not None
    ]
    summary = ", ".join(ratios) or "nothing was timed"
    if report["failures"]:
        summary += f"; {len(report['failures'])} failed: {report['failures'][0]}"
    good = done.code == 0 and ratios and not report["failures"]
    return Outcome(PASSED if good else FAILED, summary, report)


# In the order of what is learnt per second. The least times are those of an H200 with 16 cores; the
# time that a stage leaves goes to the next one.
STAGES = (
    Stage("carried", 15, prepare_carried, judge_carried),
    Stage("build", 0, prepare_build, judge_build, takes=150),
    Stage("load", 0, prepare_load, judge_load, takes=25),
    Stage("workload", 25, prepare_workload, judge_workload),
    Stage("atomic", 0, prepare_atomic, judge_atomic),
    Stage("compare", 110, prepare_compare, judge_compare, may_be_stopped=True),
    Stage("tests", 70, prepare_tests, judge_tests, may_be_stopped=True),
    sanitizer_stage("memcheck", 60),
    sanitizer_stage("racecheck", 55),
    Stage("models", 25, prepare_models, judge_models),
    sanitizer_stage("initcheck", 20),
    Stage("more_tests", 10, prepare_more_tests, judge_tests, may_be_stopped=True),
    Stage("resources", 5, prepare_resources, judge_resources),
)
