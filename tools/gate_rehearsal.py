"""The GPU gate without a GPU: programs that print and write what the stages' commands would.

``tools/gpu_gate.py --no-device`` runs this file in the place of each command, well or with a fault,
and reads, judges and writes as on a device: that a gate which fails, hangs or overruns anywhere
still leaves its result. Nothing that it writes is a measurement.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from gate_types import MISSING, PASSED, Command, Context, Outcome, Stage

# What a program does once half of its output is written.
_OUTLIVE = "outlive"
FAULTS = ("fails", "crashes", "hangs", "overruns", "floods", "garbles")


def rehearse(stages: Sequence[Stage], faults: Sequence[str]) -> tuple[Stage, ...]:
    """Return stages whose commands are this file.

    Args:
        stages: the stages.
        faults: ``STAGE=FAULT`` each.

    Raises:
        SystemExit: no such stage or fault.
    """
    chosen = {}
    for text in faults:
        name, _, fault = text.partition("=")
        if fault not in FAULTS or name not in PROGRAMS:
            raise SystemExit(f"--fault: no stage or no fault in {text!r}: {', '.join(FAULTS)}")
        chosen[name] = fault
    return tuple(_rehearsed(stage, chosen.get(stage.name, "well")) for stage in stages)


def _rehearsed(stage: Stage, fault: str) -> Stage:
    def prepare(context: Context, limit: float) -> Command | Outcome:
        prepared = stage.prepare(context, limit)
        if isinstance(prepared, Outcome) and prepared.status == PASSED:
            return prepared
        if stage.name not in PROGRAMS:
            return Outcome(MISSING, "a rehearsal builds nothing")
        scratch = str(context.scratch)
        return Command([sys.executable, os.path.abspath(__file__), stage.name, fault, scratch])

    return dataclasses.replace(stage, prepare=prepare)


def _doctor(scratch: pathlib.Path) -> Iterator[str]:
    findings = {
        "problems": [],
        "operators": {"cuda": {"nms": "native", "roi_align": "native"}},
        "sources": {"built": "0123", "present": "0123"},
    }
    yield "a warning\n"
    yield json.dumps(findings, indent=1) + "\n"


def _rows(scratch: pathlib.Path) -> Iterator[str]:
    _append(scratch / "rows.jsonl", {"planned": [f"rehearsal/{number}" for number in range(6)]})
    for number in range(6):
        row = {
            "case": f"rehearsal/{number}",
            "ratio_torchvision": 2.0,
            "target_reached": True,
            "atomic": None,
            "failures": [],
        }
        _append(scratch / "rows.jsonl", {"started": row["case"]})
        _append(scratch / "rows.jsonl", {"row": row})
        yield f"{row['case']}\n"


def _outcomes(scratch: pathlib.Path) -> Iterator[str]:
    for number in range(6):
        line = {"test": f"rehearsal::{number}", "outcome": "passed"}
        _append(scratch / "outcomes.jsonl", line)
        yield "."


def _models(scratch: pathlib.Path) -> Iterator[str]:
    yield "comparing\n"
    report = {"results": [{"case": "rehearsal", "ratio_torchvision": 2.0}], "failures": []}
    (scratch / "models.json").write_text(json.dumps(report))
    yield "done\n"


def _lines(*lines: str) -> Callable[[pathlib.Path], Iterator[str]]:
    def generate(scratch: pathlib.Path) -> Iterator[str]:
        yield from (line + "\n" for line in lines)

    return generate


_WORK = "WORKLOAD: 9 of 9 calls"
_ERRORS = "========= ERROR SUMMARY: 0 errors"
_RACES = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
PROGRAMS: dict[str, Callable[[pathlib.Path], Iterator[str]]] = {
    "carried": _doctor,
    "load": _doctor,
    "workload": _lines("starting", _WORK),
    "compare": _rows,
    "tests": _outcomes,
    "memcheck": _lines("starting", _WORK, _ERRORS),
    "racecheck": _lines("starting", _WORK, _RACES),
    "models": _models,
    "initcheck": _lines("starting", _WORK, _ERRORS),
    "more_tests": _outcomes,
    "resources": _lines(
        "arch = sm_90",
        " Function _ZN8rcnn_ext5helloIdEEvPT_i:\n"
        "  REG:30 STACK:0 SHARED:1536 LOCAL:0 CONSTANT[0]:540 TEXTURE:0 SURFACE:0 SAMPLER:0",
    ),
}


# The part after which a fault strikes.
_FIRST_HALF = {name: 2 if name in ("compare", "tests", "more_tests") else 0 for name in PROGRAMS}


def _append(path: pathlib.Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _misbehave(fault: str, scratch: pathlib.Path) -> None:
    """Do what a fault is; returns after an overrun that was interrupted."""
    if fault == "fails":
        print("RuntimeError: CUDA error: an illegal memory access was encountered", flush=True)
        sys.exit(1)
    if fault == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "hangs":
        _hang()
    if fault == "overruns":
        try:
            time.sleep(3600)
        except KeyboardInterrupt:
            return
    if fault == "floods":
        block = "x" * (1 << 20)
        while True:
            sys.stdout.write(block)
    if fault == "garbles":
        garbage = b'\xff{"row": \n[1]\n{"outcome": "passed"}\n{"test": 3, "outcome": "odd"}\n'
        sys.stdout.buffer.write(b"\xff\xfe{\x00 WORKLOAD: many of 9 calls\n")
        for name in ("rows.jsonl", "outcomes.jsonl"):
            with (scratch / name).open("ab") as file:
                file.write(garbage)
        (scratch / "models.json").write_bytes(b'{"results": 3')
        sys.exit(0)


def _hang() -> NoReturn:
    """Ignore all requests to stop, as a process stuck in a driver does, and leave a child too."""
    gate = os.getppid()
    subprocess.Popen([sys.executable, os.path.abspath(__file__), _OUTLIVE, str(gate)])
    _outlive(gate)


def _outlive(gate: int) -> NoReturn:
    """Live as long as the gate, that a rehearsal whose gate was killed leaves nothing behind."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while os.path.exists(f"/proc/{gate}"):
        time.sleep(0.5)
    os._exit(1)


def main(name: str, fault: str, scratch: pathlib.Path) -> None:
    """Write the output of a stage's command; with a fault, half of it."""
    for number, part in enumerate(PROGRAMS[name](scratch)):
        print(part, end="", flush=True)
        if fault != "well" and number == _FIRST_HALF[name]:
            _misbehave(fault, scratch)


if __name__ == "__main__":
    if sys.argv[1] == _OUTLIVE:
        _outlive(int(sys.argv[2]))
    main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
