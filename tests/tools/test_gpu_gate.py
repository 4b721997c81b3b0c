"""The GPU gate without a GPU: its plan, its processes, its result."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tarfile
import time

import gate_process
import gate_reports
import gate_stages
import gpu_gate
import pytest
from gate_types import (
    FAILED,
    MISSING,
    PASSED,
    REPOSITORY,
    Command,
    Context,
    Finished,
    Gpu,
    Outcome,
    Stage,
)

GPU = Gpu("NVIDIA H200", "9.0")


@pytest.fixture
def context(tmp_path: pathlib.Path) -> Context:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    return Context(out, scratch, GPU)


def _stage(name: str, code: str, status: str = PASSED, least: float = 1.0) -> Stage:
    return Stage(
        name,
        least,
        lambda context, limit: Command([sys.executable, "-c", code]),
        lambda context, done: Outcome(status if done.code == 0 else FAILED, done.output.strip()),
    )


def test_time_limits_leave_room_for_later_stages() -> None:
    stages = [_stage(name, "", least=least) for name, least in (("a", 10), ("b", 20), ("c", 30))]
    assert gpu_gate.time_limit(stages, 0, 100) == 50
    assert gpu_gate.time_limit(stages, 1, 95) == 65
    assert gpu_gate.time_limit(stages, 2, 40) == 40
    # Too little for all: each has its share, and the last one something.
    assert gpu_gate.time_limit(stages, 1, 25) == pytest.approx(10)
    assert gpu_gate.time_limit(stages, 2, -5) == 0
    # What all others need may take from theirs, but never more than there is.
    build = Stage("build", 0, stages[0].prepare, stages[0].judge, takes=80)
    assert gpu_gate.time_limit([build, *stages], 0, 100) == 80
    assert gpu_gate.time_limit([build, *stages], 0, 50) == 50


def test_all_stages_fit_into_the_budget() -> None:
    """With modules that came along; two runs fit into the time that machines are lent for."""
    assert sum(stage.least for stage in gate_stages.STAGES) <= gpu_gate.BUDGET <= 400


def test_stage_is_run_and_logged(context: Context) -> None:
    entry = gpu_gate.run_stage(_stage("a", "print('hello')"), context, 30)
    assert entry["status"] == PASSED
    assert entry["summary"] == "hello"
    assert (context.scratch / "a.log").read_text() == "hello\n"


def test_stage_is_stopped_with_its_children_at_its_limit(context: Context) -> None:
    heartbeat = context.scratch / "heartbeat"
    child = f"import time\nwhile True: open({str(heartbeat)!r}, 'a').write('x'); time.sleep(0.05)"
    code = (
        "import subprocess, sys, time;"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    start = time.monotonic()
    entry = gpu_gate.run_stage(_stage("a", code), context, 3)
    assert time.monotonic() - start < 30
    assert entry["status"] == FAILED
    assert entry["summary"].startswith("stopped after 3 s")
    beats = heartbeat.read_text() if heartbeat.exists() else ""
    time.sleep(0.3)
    assert (heartbeat.read_text() if heartbeat.exists() else "") == beats


def test_a_fault_of_the_gate_fails_the_stage(context: Context) -> None:
    stage = Stage("a", 1, lambda context, limit: Command(["/no/such/program"]), lambda c, d: 1 / 0)  # type: ignore[arg-type, return-value]
    entry = gpu_gate.run_stage(stage, context, 5)
    assert entry["status"] == FAILED
    assert "No such file" in entry["summary"]


def test_long_logs_keep_both_ends(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_process, "_LOG_HALF", 100)
    code = "print('first'); print('x' * 1000); print('last')"
    log = context.out / "a.log"
    done = gate_process.run_command(Command([sys.executable, "-c", code]), log, 30)
    assert done.output.startswith("first\n")
    assert done.output.endswith("last\n")
    assert len(done.output) < 250
    assert log.read_text() == done.output


def test_a_process_is_interrupted_before_it_is_killed(context: Context) -> None:
    """So that pytest and the comparison can write what they know."""
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('known so far')"
    start = time.monotonic()
    done = gate_process.run_command(Command([sys.executable, "-c", code]), context.out / "a.log", 6)
    assert time.monotonic() - start < 20
    assert done == Finished(0, True, "known so far\n")


def test_summaries_are_one_printable_line() -> None:
    assert gate_reports.printable("a\x00b\nc\x1b[31m") == "a?b?c?[31m"
    assert len(gate_reports.printable("x" * 5000)) < 500


def test_result_and_table() -> None:
    stages = [_stage("build", ""), _stage("memcheck", ""), _stage("tests", "")]
    entries = [
        {"name": "build", "status": PASSED, "seconds": 61.5, "summary": "3 modules", "details": {}},
        {"name": "memcheck", "status": MISSING, "seconds": 0.1, "summary": "no", "details": {}},
    ]
    part = gpu_gate.assemble(GPU, entries, stages, 70)
    assert not part["complete"]
    assert not part["passed"]
    entries.append(
        {"name": "tests", "status": PASSED, "seconds": 9.0, "summary": "5", "details": {}}
    )
    whole = gpu_gate.assemble(GPU, entries, stages, 80)
    assert whole["complete"]
    assert whole["passed"]
    assert whole["not_checked"] == ["memcheck"]
    table = gpu_gate.format_result(whole).splitlines()
    assert table[0].startswith("GPU gate on NVIDIA H200, sources ")
    assert table[2].split() == ["build", "PASSED", "61.5", "3", "modules"]
    assert table[-1] == "PASSED (not checked: memcheck) in 80 s"
    entries[2]["status"] = FAILED
    failed = gpu_gate.assemble(GPU, entries, stages, 80)
    assert not failed["passed"]
    assert gpu_gate.format_result(failed).splitlines()[-1].startswith("FAILED")


def test_whole_gate(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = (_stage("one", "print('fine')"), _stage("two", "import sys; sys.exit(3)"))
    monkeypatch.setattr(gpu_gate, "STAGES", stages)
    monkeypatch.setattr(gpu_gate, "find_gpu", lambda: GPU)
    assert gpu_gate.main(["--out", str(tmp_path / "gpu")]) == 1
    result = json.loads((tmp_path / "gpu" / "gpu.json").read_text())
    assert result["complete"]
    assert [stage["status"] for stage in result["stages"]] == [PASSED, FAILED]
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("FAILED in")
    # No more than two: a machine may give back only so many.
    files = sorted(path.name for path in (tmp_path / "gpu").iterdir())
    assert files == ["gpu.json", "logs.tar.gz"]
    with tarfile.open(tmp_path / "gpu" / "logs.tar.gz") as archive:
        assert archive.getnames() == ["one.log", "two.log"]


def test_no_gpu_is_one_line_and_status_2(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_gate, "find_gpu", lambda: "no driver")
    assert gpu_gate.main(["--out", str(tmp_path / "gpu")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "GPU gate: no GPU that torch can use (no driver)\n"
    assert not (tmp_path / "gpu").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [stage.name for stage in gate_stages.STAGES]),
        (["--only", "compare,build"], ["build", "compare"]),
    ],
)
def test_dry_run_names_every_stage(
    tmp_path: pathlib.Path, options: list[str], expected: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "tools/gpu_gate.py", "--out", str(tmp_path / "x"), "--dry-run", *options],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    names = [line.split(" ", 1)[0] for line in done.stdout.splitlines()]
    assert names == expected
    assert not (tmp_path / "x").exists()


def test_unknown_stage() -> None:
    with pytest.raises(SystemExit, match="no stage nothing"):
        gpu_gate.choose("build,nothing")
    assert [stage.name for stage in gpu_gate.choose("compare,build")] == ["build", "compare"]
