"""The comparison of the GPU gate goes on behind a case that faults, hangs or kills its process."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import time

import gate_compare
import pytest

from rcnn_ext.bench.row_lines import read_lines, rows_of, started_cases

# In the place of ``rcnn-ext bench``: measures the cases that were not begun; two of them go wrong.
BENCH = """
import json, os, sys, time
path = sys.argv[sys.argv.index("--rows") + 1]
lines = [json.loads(line) for line in open(path)] if os.path.exists(path) else []
begun = [line["started"] for line in lines if "started" in line]
def write(line):
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\\n")
for case in ("a", "faults", "b", "hangs", "c"):
    if case in begun:
        continue
    write({"started": case})
    if case == "faults":
        os.abort()
    if case == "hangs":
        time.sleep(3600)
    write({"row": {"case": case}})
"""


@pytest.fixture
def command(tmp_path: pathlib.Path) -> list[str]:
    package = tmp_path / "rcnn_ext"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(BENCH)
    code = (
        f"import sys; sys.path.insert(0, {str(pathlib.Path(gate_compare.__file__).parent)!r});"
        "import gate_compare; sys.exit(gate_compare.main())"
    )
    return [sys.executable, "-c", code, "--rows", str(tmp_path / "rows.jsonl")]


def test_other_cases_are_measured(tmp_path: pathlib.Path, command: list[str]) -> None:
    done = subprocess.run(
        [*command, "--seconds", "60", "--case-limit", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = read_lines(tmp_path / "rows.jsonl")
    assert started_cases(lines) == ["a", "faults", "b", "hangs", "c"]
    assert [row["case"] for row in rows_of(lines)] == ["a", "b", "c"]
    assert done.stdout.endswith("COMPARISON: 3 rows of 5 cases begun\n")


def test_it_ends_in_time_and_when_interrupted(tmp_path: pathlib.Path, command: list[str]) -> None:
    start = time.monotonic()
    done = subprocess.run([*command, "--seconds", "3"], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert time.monotonic() - start < 20
    assert started_cases(read_lines(tmp_path / "rows.jsonl"))[:2] == ["a", "faults"]

    (tmp_path / "rows.jsonl").write_text(json.dumps({"started": "faults"}) + "\n")
    running = subprocess.Popen([*command, "--seconds", "600"], cwd=tmp_path)
    end = time.monotonic() + 30
    while "hangs" not in started_cases(read_lines(tmp_path / "rows.jsonl")):
        assert time.monotonic() < end
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert running.wait(20) == 0


def test_a_comparison_that_cannot_begin_fails(tmp_path: pathlib.Path, command: list[str]) -> None:
    (tmp_path / "rcnn_ext" / "__main__.py").write_text("raise SystemExit(2)")
    done = subprocess.run([*command, "--seconds", "60"], cwd=tmp_path, check=False)
    assert done.returncode == 1
