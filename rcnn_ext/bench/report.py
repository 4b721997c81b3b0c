"""Format rows as a text table and as JSON."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import torch

from rcnn_ext.bench.cases.base import MAX_TIME_RATIO_TO_ATOMIC
from rcnn_ext.bench.contenders import AVX2, OURS, REFERENCE, TORCHVISION
from rcnn_ext.bench.runner import Row, Settings
from rcnn_ext.bench.timing import MIN_RUNS, Timing

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Report:
    """One run of the suite.

    Attributes:
        environment: The record of :func:`rcnn_ext._environment.describe`.
        settings: Device, threads and timing of the run.
        rows: One per case, dtype and number of threads.
        skipped: Names of the cases that the time limit left out.
        backends: ``native`` or ``reference``, by operator, on this device.
        suite: ``operators`` or ``growth``.
        copy_bandwidth: Copy bandwidth of a CUDA device, in bytes read and written per second.
    """

    environment: dict[str, Any]
    settings: Settings
    rows: list[Row]
    skipped: list[str]
    backends: dict[str, str]
    suite: str = "operators"
    copy_bandwidth: float | None = None

    @property
    def failures(self) -> list[str]:
        """One line per failure."""
        return [f"{_label(row)}: {failure}" for row in self.rows for failure in row.failures]

    def as_json(self) -> dict[str, Any]:
        """Return the whole report for JSON."""
        device = self.settings.device.type
        return {
            "schema": SCHEMA,
            "suite": self.suite,
            "environment": self.environment,
            "settings": {
                "threads": list(self.settings.threads),
                "min_run_s": self.settings.timing.min_run_time,
                "min_runs": MIN_RUNS,
            },
            "backends": self.backends,
            "copy_bytes_per_s": self.copy_bandwidth,
            "results": [row_as_json(row, device, self.copy_bandwidth) for row in self.rows],
            "skipped": self.skipped,
            "failures": self.failures,
        }


def result_name(environment: dict[str, Any], suffix: str = "") -> str:
    """Name a result file by date and device: ``2026-01-31-nvidia-h200.json``."""
    device = re.sub(r"[^a-z0-9]+", "-", str(environment["device_name"]).lower()).strip("-")
    kind = "" if environment["device"] == "cuda" else f"{environment['device']}-"
    return f"{environment['date'][:10]}-{kind}{device}{suffix}.json"


def format_report(report: Report) -> str:
    """Format environment, table, problems, skipped cases and a summary as text."""
    parts = [_head(report), _rows_table(report), _legend(report)]
    problems = [
        f"  {_label(row)}: {name}: {problem}"
        for row in report.rows
        for name, problem in row.problems.items()
    ]
    if problems:
        parts.append("\n".join(["Not timed:", *problems]))
    if report.skipped:
        parts.append("No time left for: " + ", ".join(report.skipped))
    parts.append(_summary(report))
    if report.failures:
        parts.append("\n".join(["FAILED:", *(f"  {failure}" for failure in report.failures)]))
    return "\n\n".join(parts) + "\n"


def format_table(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> str:
    """Align columns of text.

    Args:
        head: The column titles.
        body: The rows.
        left: Number of leading columns that are aligned left; the others are aligned right.
    """
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, body)])


def format_seconds(seconds: float) -> str:
    """Format a time with its unit and three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale * 0.9995:
            return f"{_digits(seconds / scale)} {unit}"
    return f"{_digits(seconds / 1e-9)} ns"


def _digits(value: float) -> str:
    """Format three significant digits without an exponent."""
    if value <= 0:
        return "0"
    value = float(f"{value:.2e}")  # 9.996 has two digits before the point once it is rounded
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _head(report: Report) -> str:
    environment = report.environment
    versions = environment["versions"]
    cpu, gpu = environment["cpu"], environment["gpu"]
    device = environment["device_name"]
    if environment["device"] == "cuda" and gpu:
        details = f"compute capability {gpu['capability']}, CUDA {versions['cuda']}"
    else:
        details = f"{cpu['cores']} cores, kernels use {cpu['instruction_set'] or 'no native code'}"
    names = ("rcnn_ext", "torch", "torchvision", "python")
    return (
        f"Operators on {device} ({details})\n"
        + ", ".join(f"{name} {versions[name]}" for name in names)
        + f"; sources {environment['csrc_hash'] or 'unknown'}; {environment['date']}"
    )


def _rows_table(report: Report) -> str:
    """Format a line per case and dtype: times on the first number of threads, ratios on each."""
    device = report.settings.device.type
    threads = report.settings.threads[:1] if device == "cuda" else report.settings.threads
    with_avx2 = AVX2 in report.settings.contenders
    several = len(threads) > 1
    on_threads = [f", {count} thr." if several else "" for count in threads]
    head = ["operator", "work", OURS + on_threads[0], "min-max", TORCHVISION + on_threads[0]]
    head += ["min-max", REFERENCE, *(f"vs tv{on}" for on in on_threads), "target"]
    if with_avx2:
        head += [*(f"avx2 vs tv{on}" for on in on_threads), "target"]
    with_atomic = _has_atomic(report)
    head += ["of atomic"] * with_atomic
    head += ["vs ref", "extra MiB"] + ["kernels", "of copy"] * (device == "cuda")
    body = []
    for rows in _by_case(report.rows):
        row = rows.get(threads[0]) or next(iter(rows.values()))
        cells = [row.case.operator, _work(row)]
        for name in (OURS, TORCHVISION):
            timing = row.timings.get(name)
            missing = name == TORCHVISION and not row.case.has_counterpart
            cells += ["no counterpart" if missing else _median(timing), _range(timing)]
        cells += [_median(row.timings.get(REFERENCE))]
        for ours in (OURS, AVX2) if with_avx2 else (OURS,):
            ratios = [rows[n].ratio(TORCHVISION, ours) if n in rows else None for n in threads]
            cells += [*map(_factor, ratios), _target(row, device, ours)]
        if with_atomic:
            ratio = row.time_ratio_to_atomic()
            cells += [
                "" if ratio is None else _factor(ratio) + "*" * bool(_within_atomic_limit(row))
            ]
        cells += [_factor(row.ratio(REFERENCE))]
        pair = (OURS, TORCHVISION)
        cells += [" / ".join(_mebibytes(row.extra_bytes.get(name)) for name in pair)]
        if device == "cuda":
            cells += [" / ".join(str(row.kernel_count(name) or "-") for name in pair)]
            fraction = row.copy_bandwidth_fraction(report.copy_bandwidth)
            cells += ["" if fraction is None else f"{fraction:.0%}"]
        body.append(cells)
    return format_table(head, body, left=2)


def _by_case(rows: Sequence[Row]) -> list[dict[int, Row]]:
    """Group the rows of one case and dtype, by their number of threads."""
    grouped: dict[tuple[str, torch.dtype], dict[int, Row]] = {}
    for row in rows:
        grouped.setdefault((row.case.name, row.dtype), {})[row.threads] = row
    return list(grouped.values())


def _target(row: Row, device: str, ours: str) -> str:
    target, reached = row.target(device, ours), _reached(row, device, ours)
    return ("" if target is None else f"{target:g}x") + "*" * bool(reached)


def _reached(row: Row, device: str, ours: str) -> bool | None:
    """Return whether a row reaches its target; None where it has none or was not timed."""
    ratio, target = row.ratio(TORCHVISION, ours), row.target(device, ours)
    return None if ratio is None or target is None else ratio >= target


def _has_atomic(report: Report) -> bool:
    return any(row.time_ratio_to_atomic() is not None for row in report.rows)


def _within_atomic_limit(row: Row) -> bool | None:
    """Return whether determinism costs no more than it may; None where that was not timed."""
    ratio = row.time_ratio_to_atomic()
    return None if ratio is None else ratio <= MAX_TIME_RATIO_TO_ATOMIC


def _legend(report: Report) -> str:
    lines = [
        f"Times are medians of at least {MIN_RUNS} interleaved runs (~ marks a single run). vs tv,"
        " vs ref: how many times",
        f"faster {OURS} is than torchvision and than the pure-PyTorch reference; avx2: with the"
        " kernels for AVX2. target: the",
        "project's goal for that row (CPU: one thread), * where it is reached. extra MiB: peak"
        f" memory beyond the result, {OURS} / torchvision"
        + ("; kernels likewise." if report.settings.device.type == "cuda" else "."),
    ]
    if _has_atomic(report):
        lines += [
            f"of atomic: time of {OURS}, whose gradients are deterministic, relative to"
            f" a variant by atomic additions; * at most {MAX_TIME_RATIO_TO_ATOMIC:g}."
        ]
    if report.copy_bandwidth is not None:
        lines += [
            "of copy: fraction of the copy bandwidth,"
            f" {report.copy_bandwidth / 1e12:.2f} TB/s, if each input and result is moved once."
        ]
    if not all(row.case.has_counterpart for row in report.rows):
        lines += ["no counterpart: torchvision has no such operator; compare with the reference."]
    fallback = sorted(name for name, kind in report.backends.items() if kind != "native")
    if fallback:
        names = ", ".join(fallback)
        lines.append(f"NO NATIVE KERNELS FOR {names}: there, rcnn_ext is the reference.")
    return "\n".join(lines)


def _summary(report: Report) -> str:
    device = report.settings.device.type
    ratios = [ratio for row in report.rows if (ratio := row.ratio(TORCHVISION)) is not None]
    faster = sum(ratio >= 1 for ratio in ratios)
    compared = sum(len(row.errors) for row in report.rows)
    lines = [f"{compared} results compared with float64, {len(report.failures)} failures."]
    if ratios:
        geometric = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(
            f"Faster than torchvision in {faster} of {len(ratios)} rows"
            f" (geometric mean {_digits(geometric)}x)."
        )
    without = sum(not row.case.has_counterpart for row in report.rows)
    if without:
        lines.append(f"Rows without a counterpart in torchvision: {without}.")
    for ours in (OURS, AVX2):
        reached = [
            found for row in report.rows if (found := _reached(row, device, ours)) is not None
        ]
        if reached:
            which = "" if ours == OURS else " with the kernels for AVX2"
            lines.append(f"Targets reached{which}: {sum(reached)} of {len(reached)}.")
    within = [found for row in report.rows if (found := _within_atomic_limit(row)) is not None]
    if within:
        lines.append(
            f"Within {MAX_TIME_RATIO_TO_ATOMIC:g} times the atomic variant's time:"
            f" {sum(within)} of {len(within)}."
        )
    return " ".join(lines)


def row_as_json(row: Row, device: str, copy_bandwidth: float | None) -> dict[str, Any]:
    """Return a row for JSON.

    Args:
        row: The row.
        device: Type of the device.
        copy_bandwidth: Copy bandwidth of the device in bytes per second, where it is known.
    """
    # Every contender that was timed or failed.
    names = dict.fromkeys([*row.timings, *row.errors, *row.problems])
    contenders = {}
    for name in names:
        timing = row.timings.get(name)
        error = row.errors.get(name)
        contenders[name] = {
            **({} if timing is None else timing.as_json()),
            "error": error if error is not None and math.isfinite(error) else None,
            "problem": row.problems.get(name),
            "kernels": row.kernel_count(name),
            "kernel_times": [
                {"name": kernel, "count": count, "seconds": seconds}
                for kernel, (count, seconds) in row.kernels.get(name, {}).items()
            ],
            "extra_bytes": row.extra_bytes.get(name),
        }
    return {
        "case": row.case.name,
        "operator": row.case.operator,
        "work": row.case.work,
        "size": row.case.size,
        "dtype": _dtype_name(row.dtype),
        "threads": row.threads,
        "error_measure": row.case.measure,
        "contenders": contenders,
        "counterpart": TORCHVISION if row.case.has_counterpart else None,
        "ratio_torchvision": row.ratio(TORCHVISION),
        "ratio_reference": row.ratio(REFERENCE),
        "moved_bytes": row.moved_bytes,
        "copy_bandwidth_fraction": row.copy_bandwidth_fraction(copy_bandwidth),
        "target": row.target(device),
        "target_reached": _reached(row, device, OURS),
        "avx2": {
            "ratio_torchvision": row.ratio(TORCHVISION, AVX2),
            "target": row.target(device, AVX2),
            "target_reached": _reached(row, device, AVX2),
        }
        if AVX2 in row.timings
        else None,
        "atomic": {
            "time_ratio": row.time_ratio_to_atomic(),
            "max_time_ratio": MAX_TIME_RATIO_TO_ATOMIC,
            "target_reached": _within_atomic_limit(row),
        }
        if row.time_ratio_to_atomic() is not None
        else None,
        "failures": row.failures,
    }


def _label(row: Row) -> str:
    return f"{row.case.name} ({_dtype_name(row.dtype)}, {row.threads} threads)"


def _work(row: Row) -> str:
    name = _dtype_name(row.dtype)
    return row.case.work if name == "float32" else f"{row.case.work}, {name}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _median(timing: Timing | None) -> str:
    if timing is None:
        return "-"
    return "~" * (len(timing.seconds) < MIN_RUNS) + format_seconds(timing.median)


def _range(timing: Timing | None) -> str:
    if timing is None or len(timing.seconds) < 2:
        return ""
    scale = timing.median
    return f"-{1 - min(timing.seconds) / scale:.0%} +{max(timing.seconds) / scale - 1:.0%}"


def _factor(ratio: float | None) -> str:
    return "-" if ratio is None else f"{_digits(ratio)}x"


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.1f}"
