"""Run cases of the suite with progress, and write table, JSON and plots."""

from __future__ import annotations

import pathlib

import torch

from rcnn_ext import _environment, files
from rcnn_ext.bench import plots, suite
from rcnn_ext.bench.cases import Case
from rcnn_ext.bench.memory import keep_freed_memory
from rcnn_ext.bench.report import Report, format_report, format_seconds, row_as_json
from rcnn_ext.bench.row_lines import RowLines
from rcnn_ext.bench.runner import Row, Settings, run_cases
from rcnn_ext.bench.timing import TimingConfig, copy_bandwidth
from rcnn_ext.progress import Progress

QUICK_TIMING = TimingConfig(budget=0.25, max_runs=15, slow_threshold=0.5)
CUDA_TIMING = TimingConfig(min_run_time=0.005, budget=1.0, max_runs=25)


def run_quick(out_dir: pathlib.Path) -> pathlib.Path:
    """Run the small comparison on the CPU, print its table and write its files.

    It takes well under a minute on two cores.

    Args:
        out_dir: Folder for ``operators.txt``, ``operators.json`` and, where matplotlib is
            installed, the plots.

    Returns:
        The path of the table, ``operators.txt``.

    Raises:
        RuntimeError: An operator failed or gave a wrong result.
    """
    settings = Settings(device=torch.device("cpu"), timing=QUICK_TIMING)
    report = compare(settings, suite.select(suite.suite(quick=True), "cpu"))
    print(format_report(report), end="")
    write_report(report, out_dir, "operators")
    if report.failures:
        raise RuntimeError("operators failed: " + "; ".join(report.failures))
    return out_dir / "operators.txt"


def compare(
    settings: Settings,
    cases: list[Case],
    name: str = "operators",
    lines: RowLines | None = None,
) -> Report:
    """Run cases with progress on the terminal.

    Args:
        settings: Device, dtypes, threads and timing.
        cases: The cases to run.
        name: Name of the suite in the JSON.
        lines: A file to write each row to as soon as it is measured.

    Raises:
        DeviceFaultError: A kernel made a CUDA device unusable.
    """
    total = sum(
        len(settings.dtypes or case.dtypes)
        * (1 if settings.device.type == "cuda" else len(settings.threads))
        for case in cases
    )
    with Progress("Comparing", total, "row") as progress:
        allocator = keep_freed_memory() if settings.device.type == "cpu" else None
        ceiling = copy_bandwidth(settings.device)

        def report(row: Row) -> None:
            if lines is not None:
                lines.add(row_as_json(row, settings.device.type, ceiling))
            progress.advance(note=_note(row))

        rows, skipped = run_cases(cases, settings, report, None if lines is None else lines.start)
    backends = _environment.operator_backends(settings.device.type)
    description = _environment.describe(settings.device) | {"allocator": allocator}
    return Report(description, settings, rows, skipped, backends, name, ceiling)


def write_report(report: Report, folder: pathlib.Path, stem: str) -> list[pathlib.Path]:
    """Write table, JSON and, with matplotlib, plots into a folder, and return their paths."""
    text, data = folder / f"{stem}.txt", folder / f"{stem}.json"
    files.write_text(text, format_report(report))
    files.write_json(data, report.as_json())
    if not plots.can_plot():
        print("no plots: matplotlib is not installed (pip install matplotlib)")
    return [text, data, *plots.write_plots(report, folder, stem)]


def _note(row: Row) -> str:
    times = ", ".join(
        f"{name} {format_seconds(timing.median)}" for name, timing in row.timings.items()
    )
    return f"{row.case.name}: {'FAILED' if row.failures else times}"
