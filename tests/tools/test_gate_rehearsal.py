"""The GPU gate rehearsed: whatever a stage does, its result is whole, true and in time."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import tarfile
import time
from typing import Any

import gate_rehearsal
import gate_stages
import gpu_gate
import pytest
from gate_types import FAILED, MISSING, PASSED, REPOSITORY

NAMES = [stage.name for stage in gate_stages.STAGES]
# Commands that run in a rehearsal; the others have nothing to do once modules came along.
RUN = [name for name in NAMES if name not in ("build", "load", "atomic")]
# Seconds for all stages; each has its share, so that a process has time to start.
BUDGET = 60.0


def _rehearse(out: pathlib.Path, *faults: str, budget: float = BUDGET) -> dict[str, Any]:
    arguments = ["--no-device", "--out", str(out), "--budget", str(budget)]
    for fault in faults:
        arguments += ["--fault", fault]
    start = time.monotonic()
    gpu_gate.main(arguments)
    assert time.monotonic() - start < budget + 10
    return _read(out)


def _read(out: pathlib.Path) -> dict[str, Any]:
    """Read the result, and the archive that belongs to it, whole."""
    result = json.loads((out / "gpu.json").read_text())
    assert result["rehearsal"]
    with tarfile.open(out / "logs.tar.gz") as archive:
        logs = {name.partition(".")[0] for name in archive.getnames()}
        assert all(archive.extractfile(name) is not None for name in archive.getnames())
    assert logs - {"rows", "outcomes"} <= set(NAMES)
    assert sorted(path.name for path in out.iterdir()) == ["gpu.json", "logs.tar.gz"]
    return result


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that hangs is stopped after some seconds instead of its share of 400."""
    stages = tuple(
        stage.__class__(**{**vars(stage), "least": 2.0 if stage.least else 0.0, "takes": 0.0})
        for stage in gate_stages.STAGES
    )
    monkeypatch.setattr(gpu_gate, "STAGES", stages)
    limits = gpu_gate.time_limit

    def short(*arguments: Any) -> float:
        return min(2.0, limits(*arguments))

    monkeypatch.setattr(gpu_gate, "time_limit", short)


def test_without_a_fault_all_is_read(tmp_path: pathlib.Path) -> None:
    result = _rehearse(tmp_path / "out")
    assert result["complete"]
    statuses = {stage["name"]: stage["status"] for stage in result["stages"]}
    assert statuses.pop("atomic") == MISSING  # nothing is built
    assert set(statuses.values()) == {PASSED}
    compared = next(stage for stage in result["stages"] if stage["name"] == "compare")
    assert len(compared["details"]["results"]) == 6


@pytest.mark.parametrize("fault", gate_rehearsal.FAULTS)
def test_every_stage_may_go_wrong(
    tmp_path: pathlib.Path, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """All at once: each stage must be judged by itself, and none take another's time."""
    # One that overruns takes its time: some stand for all.
    chosen = ["compare", "tests", "memcheck", "models"] if fault == "overruns" else RUN
    result = _rehearse(tmp_path / "out", *(f"{name}={fault}" for name in chosen))
    assert result["complete"]
    assert [stage["name"] for stage in result["stages"]] == NAMES
    assert all(line.isprintable() for line in capfd.readouterr().out.splitlines())
    for stage in result["stages"]:
        name, status, summary = stage["name"], stage["status"], stage["summary"]
        assert summary.isprintable()
        if name in ("compare", "tests", "more_tests") and fault in ("overruns", "garbles"):
            # Half of the work was done and ended well, and that is said.
            assert status == PASSED, summary
            assert summary.startswith("stopped after") == (fault == "overruns" and name in chosen)
            continue
        if name == "load" and fault in gate_rehearsal.FAULTS:
            assert status == PASSED  # asked again after modules that came along were not taken
        elif name in chosen and name != "carried":
            assert status == FAILED, (name, summary)
        if fault == "hangs" and name in RUN:
            assert "which it did not do when asked" in summary
    assert not result["passed"]


def test_what_was_measured_before_a_fault_is_there(tmp_path: pathlib.Path) -> None:
    result = _rehearse(tmp_path / "out", "compare=crashes", "tests=fails")
    details = {stage["name"]: stage["details"] for stage in result["stages"]}
    assert len(details["compare"]["results"]) == 3
    assert len(details["compare"]["left_out"]) == 3
    assert details["tests"]["passed"] == 3
    assert next(s for s in result["stages"] if s["name"] == "memcheck")["status"] == PASSED


def test_a_budget_too_short_is_said(tmp_path: pathlib.Path) -> None:
    result = _rehearse(tmp_path / "out", budget=0.05)
    assert result["complete"]
    assert not result["passed"]
    summary = result["stages"][NAMES.index("memcheck")]["summary"]
    assert summary == "no time was left: NOT CHECKED"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_gate_itself_may_be_stopped(tmp_path: pathlib.Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "tools/gpu_gate.py", "--no-device", "--out", str(out)]
    gate = subprocess.Popen([*command, "--fault", "memcheck=hangs"], cwd=REPOSITORY)
    end = time.monotonic() + 60
    stages: list[dict[str, Any]] = []
    while len(stages) < NAMES.index("memcheck") and time.monotonic() < end:
        time.sleep(0.05)
        if (out / "gpu.json").exists():
            stages = json.loads((out / "gpu.json").read_text())["stages"]  # whole at every moment
    gate.send_signal(number)
    assert gate.wait(20) != 0
    result = json.loads((out / "gpu.json").read_text())
    assert [stage["name"] for stage in result["stages"]] == NAMES[: NAMES.index("memcheck")]
    assert not result["complete"]
    assert not result["passed"]


@pytest.mark.parametrize("fault", ["nothing=fails", "compare=sings", "compare"])
def test_unknown_faults(tmp_path: pathlib.Path, fault: str) -> None:
    with pytest.raises(SystemExit, match=f"no stage or no fault in '{fault}'"):
        gpu_gate.main(["--no-device", "--out", str(tmp_path), "--fault", fault])
    with pytest.raises(SystemExit, match="--fault is for --no-device"):
        gpu_gate.main(["--out", str(tmp_path), "--fault", "compare=fails"])
