"""Rows written as they are measured, and going on after a fault."""

from __future__ import annotations

import json

import pytest
import torch

from rcnn_ext.bench import comparison, runner
from rcnn_ext.bench.row_lines import RowLines, read_lines, rows_of, started_cases
from rcnn_ext.bench.suite import suite, targets_first, tiny
from rcnn_ext.bench.timing import TimingConfig
from rcnn_ext.cli import main

CPU = torch.device("cpu")
FAST = runner.Settings(CPU, timing=TimingConfig(0.0, 0.0, 1))


def test_a_second_run_goes_on_behind_the_first(tmp_path, capsys):
    path = tmp_path / "folder" / "rows.jsonl"
    command = ["bench", "--quick", "--only", "box_ios", "--rows", str(path)]
    assert main(command) == 0
    lines = read_lines(path)
    names = started_cases(lines)
    assert len(names) == len(rows_of(lines)) == 2
    assert [row["case"] for row in rows_of(lines)] == names
    assert all(row["contenders"]["rcnn_ext"]["median_s"] > 0 for row in rows_of(lines))
    capsys.readouterr()
    assert main(command) == 0
    assert "has all cases" in capsys.readouterr().out
    # A case that was begun and did not end is what the last process died of.
    path.write_text(json.dumps({"started": names[0]}) + '\n{"row": {"ca')
    assert main(command) == 0
    rows = rows_of(read_lines(path))
    assert [row["case"] for row in rows] == [names[1]]


def test_a_fault_ends_the_process_after_its_row(tmp_path, monkeypatch):
    cases = tiny()[:3]
    lines = RowLines(tmp_path / "rows.jsonl")
    works = iter([True, False])
    monkeypatch.setattr(runner, "device_works", lambda device: next(works))
    with pytest.raises(runner.DeviceFaultError, match=f"after {cases[1].name}"):
        comparison.compare(FAST, cases, lines=lines)
    written = read_lines(lines.path)
    assert started_cases(written) == [row["case"] for row in rows_of(written)]
    assert started_cases(written) == [case.name for case in cases[:2]]
    monkeypatch.undo()
    assert lines.remaining(cases) == cases[2:]


def test_targets_come_first():
    cases = [case for case in suite(quick=False) if "cuda" in case.devices]
    ordered = targets_first(cases, "cuda")
    assert sorted(case.name for case in ordered) == sorted(case.name for case in cases)
    with_target = [case.targets.cuda is not None for case in ordered]
    assert with_target == sorted(with_target, reverse=True)
    assert any("roi_align" in case.name for case in ordered[: sum(with_target)])
