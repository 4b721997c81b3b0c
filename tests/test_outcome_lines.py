"""The plugin that writes the outcomes of tests as they are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xdist")
REPOSITORY = Path(__file__).resolve().parents[1]
TESTS = """
import pytest
import tests.helpers.outcome_lines as plugin

lost = []
plugin.device_works = lambda: not lost  # in the place of CUDA

@pytest.mark.parametrize("number", range(6))
def test_number(number):
    if number == 2:
        lost.append(True)
        raise RuntimeError("an illegal memory access")

@pytest.fixture
def broken():
    raise OSError

def test_error(broken): ...

def test_skipped(): pytest.skip("no reason")
"""


def _run(folder: Path, *options: str) -> list[dict[str, str]]:
    environment = {
        **os.environ,
        "OUTCOME_LINES": str(folder / "lines.jsonl"),
        "PYTHONPATH": str(REPOSITORY),
        "PYTEST_ADDOPTS": "",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.helpers.outcome_lines"]
    command += ["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder), *options]
    subprocess.run(
        [*command, "test_made.py"], cwd=folder, env=environment, capture_output=True, check=False
    )
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def test_a_lost_device_costs_one_worker(tmp_path):
    (tmp_path / "test_made.py").write_text(TESTS)
    lines = _run(tmp_path, "-n", "1")
    outcomes = {line["test"].partition("::")[2]: line for line in lines}
    # What came after it ran in another process.
    for number in (0, 1, 3, 4, 5):
        assert outcomes[f"test_number[{number}]"]["outcome"] == "passed"
    lost = [line for line in lines if "number[2]" in line["test"]]
    assert [line["outcome"] for line in lost][0] == "failed"
    assert "an illegal memory access" in lost[0]["reason"]
    assert outcomes["test_error"]["outcome"] == "errors"
    assert outcomes["test_skipped"]["outcome"] == "skipped"


def test_tests_with_an_outcome_are_left_out(tmp_path):
    (tmp_path / "test_made.py").write_text("def test_a(): ...\ndef test_b(): ...\n")
    (tmp_path / "lines.jsonl").write_text('{"test": "test_made.py::test_a", "outcome": "passed"}\n')
    lines = _run(tmp_path)
    assert [line["test"] for line in lines] == ["test_made.py::test_a", "test_made.py::test_b"]
