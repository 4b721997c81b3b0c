"""The table, the JSON, the names of files and the plots."""

from __future__ import annotations

import json
import math
import pathlib
import re
from typing import Any

import pytest
import torch

from rcnn_ext.bench import plots, report, runner
from rcnn_ext.bench.cases import NmsCase, SoftNmsCase, Targets
from rcnn_ext.bench.contenders import ATOMIC, AVX2, OURS, REFERENCE, TORCHVISION
from rcnn_ext.bench.report import Report, format_report, format_seconds, format_table, result_name
from rcnn_ext.bench.runner import Row, Settings
from rcnn_ext.bench.timing import Timing, TimingConfig

ENVIRONMENT = {
    "date": "2026-01-31T12:00:00+00:00",
    "device": "cpu",
    "device_name": "Some CPU (R) @ 3 GHz",
    "cpu": {
        "model": "Some CPU",
        "cores": 2,
        "flags": [],
        "torch_capability": "AVX2",
        "instruction_set": "avx2",
    },
    "gpu": None,
    "versions": {"rcnn_ext": "1", "torch": "2", "torchvision": "3", "python": "4", "cuda": None},
    "csrc_hash": "0123456789abcdef",
}


def _row(count: int, ours: float, threads: int = 1, **targets: float) -> Row:
    row = Row(NmsCase("nms", Targets(**targets), count=count), torch.float32, threads)
    row.timings = {
        OURS: Timing((ours,) * 5, 1),
        TORCHVISION: Timing((0.01,) * 5, 1),
        REFERENCE: Timing((0.5,), 1),
    }
    row.errors = {OURS: 0.0, TORCHVISION: 0.0, REFERENCE: 0.0}
    return row


def _report(rows: list[Row], **changes: Any) -> Report:
    settings = Settings(torch.device("cpu"))
    return Report(ENVIRONMENT, settings, rows, [], {"nms": "native", **changes})


def test_share_of_the_copy_bandwidth() -> None:
    row = _row(100, 0.002)
    assert row.copy_bandwidth_fraction(1e9) is None
    row.moved_bytes = 1_000_000
    assert row.copy_bandwidth_fraction(None) is None
    assert row.copy_bandwidth_fraction(1e9) == pytest.approx(0.5)
    settings = Settings(torch.device("cuda"))
    environment = {**ENVIRONMENT, "device": "cuda"}
    made = Report(environment, settings, [row], [], {}, copy_bandwidth=1e9)
    assert made.as_json()["results"][0]["copy_bandwidth_fraction"] == pytest.approx(0.5)
    assert made.as_json()["copy_bytes_per_s"] == 1e9
    assert " 50%" in format_report(made)


def test_bytes_that_a_call_moves() -> None:
    settings = Settings(
        torch.device("cpu"), timing=TimingConfig(min_run_time=0, budget=0), contenders=(OURS,)
    )
    (row,) = runner.run_case(NmsCase("nms", count=10), torch.float32, settings)
    kept = row.moved_bytes - 10 * 4 * 5  # boxes and scores
    assert kept > 0
    assert kept % 8 == 0


def test_ratio_and_target() -> None:
    row = _row(100, 0.002, cpu=4, cuda=3)
    assert row.ratio(TORCHVISION) == pytest.approx(5)
    assert row.ratio(REFERENCE) == pytest.approx(250)
    assert row.target("cpu") == 4
    assert row.target("cuda") == 3
    assert Row(row.case, torch.float32, 1).ratio(TORCHVISION) is None


def test_cpu_targets_are_for_one_thread_and_the_usual_dtype() -> None:
    assert _row(100, 0.002, threads=2, cpu=4).target("cpu") is None
    assert Row(NmsCase("nms", Targets(cpu=4)), torch.float64, 1).target("cpu") is None


def test_avx2_has_targets_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    row = _row(100, 0.002, cpu=12, cpu_avx2=8)
    monkeypatch.setattr(runner._extension, "instruction_set", lambda: "avx512")
    assert row.target("cpu") == 12
    assert row.target("cpu", AVX2) == 8
    monkeypatch.setattr(runner._extension, "instruction_set", lambda: "avx2")
    assert row.target("cpu") == 8
    assert _row(100, 0.002, cpu=12).target("cpu") == 12


def test_table_shows_times_ratios_and_reached_targets() -> None:
    text = format_report(_report([_row(100, 0.002, cpu=4), _row(1000, 0.002, cpu=8)]))
    first, second = (line for line in text.splitlines() if line.startswith("nms"))
    assert "2.00 ms" in first
    assert "10.0 ms" in first
    assert "~500 ms" in first  # a single run
    assert "5.00x" in first
    assert "4x*" in first
    assert "8x*" not in second
    assert "8x" in second
    assert "Targets reached: 1 of 2" in text
    assert "Faster than torchvision in 2 of 2 rows" in text
    assert ENVIRONMENT["csrc_hash"] in text


def test_table_has_a_line_for_all_threads_and_both_instruction_sets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner._extension, "instruction_set", lambda: "avx512")
    rows = [_row(100, 0.002, cpu=4, cpu_avx2=3), _row(100, 0.001, threads=2, cpu=4)]
    rows[0].timings[AVX2] = Timing((0.004,) * 5, 1)
    rows[1].timings[AVX2] = Timing((0.0025,) * 5, 1)
    settings = Settings(torch.device("cpu"), threads=(1, 2), contenders=(OURS, AVX2, TORCHVISION))
    text = format_report(Report(ENVIRONMENT, settings, rows, [], {}))
    (line,) = (line for line in text.splitlines() if line.startswith("nms"))
    ratios = [cell for cell in line.split() if re.match(r"[\d.]+x\*?$", cell)]
    assert ratios == ["5.00x", "10.0x", "4x*", "2.50x", "4.00x", "3x", "250x"]
    assert "Targets reached with the kernels for AVX2: 0 of 1." in text


def _row_without_counterpart() -> Row:
    row = Row(SoftNmsCase("soft_nms", count=100), torch.float32, 1)
    row.timings = {OURS: Timing((0.001,) * 5, 1), REFERENCE: Timing((0.5,), 1)}
    row.errors = {OURS: 0.0, REFERENCE: 0.0}
    return row


def test_row_without_a_counterpart_is_compared_with_the_reference() -> None:
    made = _report([_row(100, 0.002, cpu=4), _row_without_counterpart()])
    text = format_report(made)
    (line,) = (line for line in text.splitlines() if line.startswith("soft_nms"))
    assert "no counterpart" in line
    assert "~500 ms" in line
    assert "500x" in line
    assert "no counterpart: torchvision has no such operator" in text
    assert "Faster than torchvision in 1 of 1 rows (geometric mean 5.00x)." in text
    assert "Rows without a counterpart in torchvision: 1." in text
    with_counterpart, without = made.as_json()["results"]
    assert with_counterpart["counterpart"] == TORCHVISION
    assert without["counterpart"] is None
    assert without["ratio_torchvision"] is None
    assert without["ratio_reference"] == pytest.approx(500)
    assert without["target_reached"] is None
    assert "counterpart" not in format_report(_report([_row(100, 0.002)]))


def test_gradients_beside_atomic_ones() -> None:
    rows = [_row(100, 0.002), _row(1000, 0.002), _row(10, 0.002)]
    for row, seconds in zip(rows, (0.0025, 0.0016), strict=False):
        row.timings[ATOMIC] = Timing((seconds,) * 5, 1)
    made = _report(rows)
    assert [result["atomic"] for result in made.as_json()["results"]] == [
        {"time_ratio": pytest.approx(0.8), "max_time_ratio": 1.2, "target_reached": True},
        {"time_ratio": pytest.approx(1.25), "max_time_ratio": 1.2, "target_reached": False},
        None,
    ]
    text = format_report(made)
    cells = [line.split()[-5] for line in text.splitlines() if line.startswith("nms")]
    assert cells[:2] == ["0.800x*", "1.25x"]
    assert "of atomic" in text
    assert "Within 1.2 times the atomic variant's time: 1 of 2." in text
    assert "atomic" not in format_report(_report(rows[2:]))


def test_failures_and_fallbacks_stand_out() -> None:
    row = _row(100, 0.002)
    row.problems[OURS] = "IoU beyond the threshold 0.3"
    row.failures.append(f"{OURS}: IoU beyond the threshold 0.3")
    text = format_report(_report([row], roi_align="reference"))
    assert "FAILED:\n  nms/100 (float32, 1 threads): rcnn_ext: IoU beyond" in text
    assert "NO NATIVE KERNELS FOR" in text
    assert "roi_align" in text.split("NO NATIVE KERNELS FOR")[1]


def test_report_without_any_timing() -> None:
    row = Row(NmsCase("nms", count=5), torch.float32, 1)
    text = format_report(_report([row]))
    assert "0 results compared" in text


def test_json_is_strict_and_complete() -> None:
    row = _row(100, 0.002, cpu=4)
    row.errors[REFERENCE] = math.inf
    data = json.loads(json.dumps(_report([row]).as_json(), allow_nan=False))
    assert data["schema"] == report.SCHEMA
    (result,) = data["results"]
    assert result["case"] == "nms/100"
    assert result["ratio_torchvision"] == pytest.approx(5)
    assert result["target_reached"] is True
    assert result["contenders"][OURS]["runs"] == 5
    assert result["contenders"][REFERENCE]["error"] is None


def test_result_name() -> None:
    assert result_name(ENVIRONMENT) == "2026-01-31-cpu-some-cpu-r-3-ghz.json"
    assert result_name(ENVIRONMENT, "-growth") == "2026-01-31-cpu-some-cpu-r-3-ghz-growth.json"
    gpu = {**ENVIRONMENT, "device": "cuda", "device_name": "NVIDIA H200"}
    assert result_name(gpu) == "2026-01-31-nvidia-h200.json"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ns"),
        (2.5e-8, "25.0 ns"),
        (1.234e-6, "1.23 us"),
        (9.996e-4, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (0.99999, "1.00 s"),
        (123.4, "123 s"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_format_table_aligns() -> None:
    assert format_table(["a", "b"], [["long", "1"], ["x", "23"]]).splitlines() == [
        "a      b",
        "----  --",
        "long   1",
        "x     23",
    ]


def test_plots(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [_row(100, 0.002, cpu=4), _row(1000, 0.02)]
    written = plots.write_plots(_report(rows), tmp_path, "x")
    assert [path.name for path in written] == ["x-ratios.png", "x-growth.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-growth.png", "x-ratios.png"]
    written = plots.write_plots(_report(rows), tmp_path, "y-growth")
    assert [path.name for path in written] == ["y-growth-ratios.png", "y-growth.png"]


def test_plots_only_what_there_is(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    one = [_row(100, 0.002)]
    assert [p.name for p in plots.write_plots(_report(one), tmp_path, "x")] == ["x-ratios.png"]
    assert plots.write_plots(_report([]), tmp_path, "y") == []
    assert plots.write_plots(_report([_row_without_counterpart()]), tmp_path, "y") == []
    monkeypatch.setattr(plots, "can_plot", lambda: False)
    assert plots.write_plots(_report(one), tmp_path, "z") == []
