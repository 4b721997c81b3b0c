"""Plots of a report: ratios as bars, and how cost grows with size."""

from __future__ import annotations

import importlib.util
import pathlib
from typing import TYPE_CHECKING

from rcnn_ext.bench.contenders import AVX2, OURS, REFERENCE, TORCHVISION
from rcnn_ext.bench.report import Report
from rcnn_ext.bench.runner import Row
from rcnn_ext.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = {
    OURS: "#0b6e4f",
    AVX2: "#66b28f",
    TORCHVISION: "#d1495b",
    REFERENCE: "#8d99ae",
}


def can_plot() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_plots(report: Report, folder: pathlib.Path, stem: str) -> list[pathlib.Path]:
    """Draw what the report has rows for.

    Args:
        report: A run of the suite.
        folder: Folder to write into.
        stem: Beginning of the file names.

    Returns:
        The files written: ``<stem>-ratios.png`` and ``<stem>-growth.png``, each only where there is
        something to draw; a stem that ends so already is not given the ending twice. None without
        matplotlib.
    """
    if not can_plot():
        return []
    written = []
    for kind, figure in (("ratios", _ratios(report)), ("growth", _growth(report))):
        if figure is None:
            continue
        path = folder / f"{stem.removesuffix(f'-{kind}')}-{kind}.png"
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=120, bbox_inches="tight")
        written.append(path)
    return written


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: it would choose a backend for the whole process and keep every figure.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _ratios(report: Report) -> Figure | None:
    device = report.settings.device.type
    rows = [row for row in report.rows if row.ratio(TORCHVISION) is not None]
    if not rows:
        return None
    figure = _figure(9, 1.6 + 0.27 * len(rows))
    axes = figure.subplots()
    positions = list(range(len(rows)))
    # From 1 to the ratio, so that a slower row points the other way.
    lengths = [(row.ratio(TORCHVISION) or 1) - 1 for row in rows]
    colors = [_COLORS[OURS if length >= 0 else TORCHVISION] for length in lengths]
    axes.barh(positions, lengths, left=1, color=colors)
    for position, row in zip(positions, rows, strict=True):
        target = row.target(device)
        if target is not None:
            axes.plot([target, target], [position - 0.4, position + 0.4], color="black")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.margins(y=0.01)
    axes.set_yticks(positions, [_label(row, report) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than torchvision (red: slower; black mark: target)")
    axes.set_title(f"Operators on {report.environment['device_name']}")
    axes.grid(axis="x", which="both", alpha=0.3)
    return figure


def _growth(report: Report) -> Figure | None:
    series: dict[str, list[Row]] = {}
    first_threads = report.settings.threads[0]
    for row in report.rows:
        usual = row.dtype == row.case.dtypes[0] and row.threads == first_threads
        if row.case.size is not None and usual and row.timings:
            series.setdefault(_series(row), []).append(row)
    series = {name: rows for name, rows in series.items() if len(rows) > 1}
    if not series:
        return None
    figure = _figure(5 * len(series), 4)
    for axes, (operator, rows) in zip(
        figure.subplots(1, len(series), squeeze=False)[0], series.items(), strict=True
    ):
        for name, color in _COLORS.items():
            points = sorted(
                (row.case.size or 0, row.timings[name].median * 1e3)
                for row in rows
                if name in row.timings
            )
            if points:
                axes.plot(*zip(*points, strict=True), "o-", label=name, color=color)
        axes.set_xscale("log")
        axes.set_yscale("log")
        sizes = [row.case.size or 0 for row in rows]
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("RoIs" if "roi" in operator else "boxes")
        axes.set_ylabel("milliseconds")
        axes.set_title(operator)
        axes.grid(which="both", alpha=0.3)
        axes.legend()
    return figure


def _series(row: Row) -> str:
    """Operator and pass: what one curve is of."""
    return row.case.operator + (", backward" if row.case.differentiates else "")


def _label(row: Row, report: Report) -> str:
    threads = f", {row.threads} threads" if len(report.settings.threads) > 1 else ""
    dtype = str(row.dtype).removeprefix("torch.")
    return row.case.name + threads + ("" if dtype == "float32" else f", {dtype}")
