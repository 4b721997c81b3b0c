"""Build, test, check and time the CUDA kernels on a bare GPU machine: one command, no network.

Needs torch, torchvision and pytest; nvcc, ninja, pybind11 and setuptools where no modules for the
device came along (``make gpu-modules`` builds them on a machine without one); uses pytest-xdist and
compute-sanitizer where they are. Writes two files, each whole at every moment: ``gpu.json`` and
``logs.tar.gz``. Prints one table last. Exit status: 0 when all passed, 1 when a stage failed, 2
when there is no GPU to run on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from gate_process import no_core_files, run_command
from gate_rehearsal import FAULTS, rehearse
from gate_reports import last_line, printable
from gate_stages import STAGES
from gate_types import FAILED, MISSING, REPOSITORY, Context, Gpu, Outcome, Stage

from rcnn_ext._source_hash import csrc_hash
from rcnn_ext.files import replacing, write_json

# Seconds for all stages: a second run must fit into the time that machines are lent for.
BUDGET = 400.0
# Seconds below which a process is not even started.
_SHORTEST = 0.1
NO_DEVICE = "no device"
RESULT = "gpu.json"
LOGS = "logs.tar.gz"
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
    remaining = max(0.0, remaining)
    enough = remaining >= own + later
    limit = remaining - later if enough else remaining * own / (own + later)
    return min(remaining, max(limit, stages[index].takes))


def run_stage(stage: Stage, context: Context, limit: float) -> dict[str, Any]:
    """Run one stage and give its entry in the result; whatever happens, the gate goes on."""
    start = time.monotonic()
    try:
        prepared = stage.prepare(context, limit)
        if isinstance(prepared, Outcome):
            outcome = prepared
        elif limit < _SHORTEST:
            outcome = Outcome(FAILED, "no time was left: NOT CHECKED")
        else:
            limit -= time.monotonic() - start
            done = run_command(prepared, context.scratch / f"{stage.name}.log", limit)
            outcome = stage.judge(context, done)
            if done.timed_out or done.flooded:
                why = "it wrote too much" if done.flooded else f"{limit:.0f} s"
                killed = done.code == -signal.SIGKILL
                if killed and not done.flooded:
                    why += ", which it did not do when asked"
                fine = stage.may_be_stopped and not killed
                status = outcome.status if fine else FAILED
                outcome = Outcome(
                    status, f"stopped after {why}; {outcome.summary}", outcome.details
                )
    except Exception as error:
        outcome = Outcome(FAILED, f"the gate itself failed: {error!r}")
    return {
        "name": stage.name,
        "status": outcome.status,
        "seconds": round(time.monotonic() - start, 1),
        "summary": printable(outcome.summary),
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
        "schema": 2,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gpu": {"name": gpu.name, "capability": gpu.capability},
        # Rows that nobody measured are never taken for measured ones.
        "rehearsal": gpu.name == NO_DEVICE,
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


def write_logs(scratch: pathlib.Path, out: pathlib.Path) -> None:
    """Archive the logs, and the lines that stages wrote, in one file that is whole or absent."""
    with replacing(out / LOGS) as temporary, tarfile.open(temporary, "w:gz") as archive:
        for path in sorted(scratch.iterdir()):
            if path.suffix in (".log", ".jsonl"):
                archive.add(path, arcname=path.name)


def run_stages(
    stages: Sequence[Stage], context: Context, budget: float, start: float
) -> dict[str, Any]:
    """Run stages within a budget; result and logs on disk are whole at every moment.

    Args:
        stages: the stages.
        context: what they share.
        budget: seconds for all, from ``start`` on.
        start: reading of the monotonic clock.

    Returns:
        The result, as it is in the file.
    """
    entries: list[dict[str, Any]] = []
    result = assemble(context.gpu, entries, stages, time.monotonic() - start)
    write_json(context.out / RESULT, result)
    for index, stage in enumerate(stages):
        limit = time_limit(stages, index, budget - (time.monotonic() - start))
        print(f"{stage.name} (at most {limit:.0f} s) ...", flush=True)
        entries.append(run_stage(stage, context, limit))
        result = assemble(context.gpu, entries, stages, time.monotonic() - start)
        write_json(context.out / RESULT, result)
        write_logs(context.scratch, context.out)
        print(f"  {entries[-1]['status'].upper()}: {entries[-1]['summary']}", flush=True)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the gate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET,
        metavar="SECONDS",
        help=f"for all stages (default: {BUDGET:.0f})",
    )
    parser.add_argument("--only", metavar="STAGE[,STAGE]", help="run these stages alone")
    parser.add_argument(
        "--no-device",
        action="store_true",
        help="rehearse on a machine without a GPU: a program in the place of each stage's command"
        " prints and writes what that would",
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="STAGE=FAULT",
        help=f"with --no-device: let a stage's program have a fault: {', '.join(FAULTS)}",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    options = parser.parse_args(arguments)
    stages = choose(options.only)
    if options.fault and not options.no_device:
        raise SystemExit("--fault is for --no-device")
    start = time.monotonic()
    if options.dry_run:
        nowhere = pathlib.Path("SCRATCH")
        print_plan(stages, Context(options.out, nowhere, Gpu("none", "9.0")), options.budget)
        return 0
    gpu = Gpu(NO_DEVICE, "9.0") if options.no_device else find_gpu()
    if isinstance(gpu, str):
        print(f"GPU gate: no GPU that torch can use ({gpu})", file=sys.stderr)
        return 2
    if options.no_device:
        stages = rehearse(stages, options.fault)

    # Whoever runs this may stop it in either way; the result on disk is whole then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, no_core_files():
        context = Context(options.out.resolve(), pathlib.Path(scratch), gpu)
        result = run_stages(stages, context, options.budget, start)
    print(format_result(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
