"""Build, test, check and time the CUDA kernels on a bare GPU machine: one command, no network.

Needs torch, torchvision, nvcc, ninja, pybind11, setuptools and pytest. Writes ``gpu.json`` (whole
after every stage, never in part) and a log for each stage, and prints one table last. Exit status:
0 when all passed, 1 when a stage failed, 2 when there is no GPU to run on.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from gate_reports import last_line
from gate_stages import (
    FAILED,
    MISSING,
    REPOSITORY,
    STAGES,
    Command,
    Context,
    Finished,
    Gpu,
    Outcome,
    Stage,
)

from rcnn_ext._source_hash import csrc_hash
from rcnn_ext.files import write_json

# A log keeps its beginning and its end; a sanitizer that finds much writes gigabytes.
_LOG_HALF = 2 << 20
# The stages that need no GPU.
WITHOUT_DEVICE = ("build", "atomic", "resources")
_PROBE = (
    "import json, torch; p = torch.cuda.get_device_properties(0);"
    "print(json.dumps({'name': p.name, 'capability': f'{p.major}.{p.minor}'}))"
)


def find_gpu() -> Gpu | str:
    """Return the first GPU that torch can use, or in one line why there is none.

    A process of its own asks: the gate itself holds no memory on the device.
    """
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False
    )
    if probe.returncode != 0:
        return last_line(probe.stderr)
    return Gpu(**json.loads(last_line(probe.stdout)))


def time_limit(stages: Sequence[Stage], index: int, remaining: float) -> float:
    """Return the time limit of a stage: all that is left, less what later stages need at least.

    Args:
        stages: all stages of the run.
        index: which of them is next.
        remaining: seconds left of the budget.

    Returns:
        Seconds; where too little is left for all, the stages share it in the ratio of their needs.
    """
    later = sum(stage.least for stage in stages[index + 1 :])
    own = stages[index].least
    if remaining >= own + later:
        return remaining - later
    return max(1.0, remaining * own / (own + later))


def run_command(command: Command, log: pathlib.Path, limit: float) -> Finished:
    """Run a process with its output in a log; stop it, and all it started, at its time limit."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **command.environment}
    with log.open("w+b") as output:
        process = subprocess.Popen(
            command.arguments,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        timed_out = False
        try:
            process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        size = output.seek(0, os.SEEK_END)
        output.seek(0)
        kept = output.read(2 * _LOG_HALF)
        if size > 2 * _LOG_HALF:
            output.seek(-_LOG_HALF, os.SEEK_END)
            kept = kept[:_LOG_HALF] + b"\n[...]\n" + output.read()
            output.seek(0)
            output.truncate()
            output.write(kept)
    return Finished(process.returncode, timed_out, kept.decode(errors="replace"))


def run_stage(stage: Stage, context: Context, limit: float) -> dict[str, Any]:
    """Run one stage and give its entry in the result; whatever happens, the gate goes on."""
    start = time.monotonic()
    try:
        prepared = stage.prepare(context, limit)
        if isinstance(prepared, Outcome):
            outcome = prepared
        else:
            done = run_command(prepared, context.out / f"{stage.name}.log", limit)
            outcome = stage.judge(context, done)
            if done.timed_out:
                summary = f"stopped after {limit:.0f} s; {outcome.summary}"
                outcome = Outcome(FAILED, summary, outcome.details)
    except Exception as error:
        outcome = Outcome(FAILED, f"the gate itself failed: {error!r}")
    return {
        "name": stage.name,
        "status": outcome.status,
        "seconds": round(time.monotonic() - start, 1),
        "summary": outcome.summary,
        "details": outcome.details,
    }


def assemble(
    gpu: Gpu, entries: Sequence[dict[str, Any]], stages: Sequence[Stage], seconds: float
) -> dict[str, Any]:
    """Put the result together.

    Args:
        gpu: the device.
        entries: what :func:`run_stage` gave, so far.
        stages: all stages of the run.
        seconds: time since the start.
    """
    complete = len(entries) == len(stages)
    return {
        "schema": 1,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gpu": {"name": gpu.name, "capability": gpu.capability},
        "csrc_hash": csrc_hash(REPOSITORY / "csrc"),
        "complete": complete,
        "passed": complete and not any(entry["status"] == FAILED for entry in entries),
        "not_checked": [entry["name"] for entry in entries if entry["status"] == MISSING],
        "seconds": round(seconds, 1),
        "stages": list(entries),
    }


def format_result(result: dict[str, Any]) -> str:
    """Return the table: a line per stage, then the verdict."""
    rows = [("stage", "result", "seconds", "summary")]
    rows += [
        (stage["name"], stage["status"].upper(), f"{stage['seconds']:.1f}", stage["summary"])
        for stage in result["stages"]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {status:<{widths[1]}}  {seconds:>{widths[2]}}  {summary}"
        for name, status, seconds, summary in rows
    ]
    verdict = "PASSED" if result["passed"] else "FAILED"
    if result["not_checked"]:
        verdict += f" (not checked: {', '.join(result['not_checked'])})"
    head = f"GPU gate on {result['gpu']['name']}, sources {result['csrc_hash']}"
    return "\n".join([head, *lines, f"{verdict} in {result['seconds']:.0f} s"])


def choose(names: str | None) -> tuple[Stage, ...]:
    """Return the stages of a comma-separated list, in the gate's order; all for None."""
    if names is None:
        return STAGES
    wanted = names.split(",")
    unknown = set(wanted) - {stage.name for stage in STAGES}
    if unknown:
        known = ", ".join(stage.name for stage in STAGES)
        raise SystemExit(f"--only: no stage {', '.join(sorted(unknown))}; there are {known}")
    return tuple(stage for stage in STAGES if stage.name in wanted)


def print_plan(stages: Sequence[Stage], context: Context, budget: float) -> None:
    """Print what would run, with the time limits that hold if nothing before took any time."""
    for index, stage in enumerate(stages):
        limit = time_limit(stages, index, budget)
        prepared = stage.prepare(context, limit)
        text = prepared.summary if isinstance(prepared, Outcome) else str(prepared)
        print(f"{stage.name} (at most {limit:.0f} s, at least {stage.least:.0f} s): {text}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the gate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument(
        "--budget", type=float, default=540, metavar="SECONDS", help="for all stages (default: 540)"
    )
    parser.add_argument("--only", metavar="STAGE[,STAGE]", help="run these stages alone")
    parser.add_argument(
        "--no-device",
        action="store_true",
        help="on a machine without a GPU: compile, and report registers and spills",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    options = parser.parse_args(arguments)
    stages = choose(options.only)
    if options.no_device:
        stages = tuple(stage for stage in stages if stage.name in WITHOUT_DEVICE)
    start = time.monotonic()
    if options.dry_run:
        nowhere = pathlib.Path("SCRATCH")
        print_plan(stages, Context(options.out, nowhere, Gpu("none", "9.0")), options.budget)
        return 0
    gpu = Gpu("no device", "9.0") if options.no_device else find_gpu()
    if isinstance(gpu, str):
        print(f"GPU gate: no GPU that torch can use ({gpu})", file=sys.stderr)
        return 2

    options.out.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(options.out.resolve(), pathlib.Path(scratch), gpu)
        for index, stage in enumerate(stages):
            limit = time_limit(stages, index, options.budget - (time.monotonic() - start))
            print(f"{stage.name} (at most {limit:.0f} s) ...", flush=True)
            entries.append(run_stage(stage, context, limit))
            result = assemble(gpu, entries, stages, time.monotonic() - start)
            write_json(options.out / "gpu.json", result)
    comparison = options.out / "compare.log"
    if comparison.is_file():
        print("\n" + comparison.read_text(errors="replace"))
    print(format_result(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
