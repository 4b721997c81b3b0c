"""Faster R-CNN against torchvision's, with equal weights: ``rcnn-ext bench --models``.

Detections and losses are compared before anything is timed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from rcnn_ext import _environment
from rcnn_ext.bench import memory
from rcnn_ext.bench.contenders import OURS, TORCHVISION
from rcnn_ext.bench.floor import Speed, measure_speed
from rcnn_ext.bench.model_cases import (
    AS_BUILT,
    Call,
    ModelCase,
    dtype_of,
    inference_case,
    outside_case,
    training_case,
)
from rcnn_ext.bench.model_pair import SMALL, Scale
from rcnn_ext.bench.report import SCHEMA, format_seconds, format_table
from rcnn_ext.bench.timing import (
    MIN_RUNS,
    Contender,
    Timing,
    TimingConfig,
    WallAndCpuClock,
    clock_for,
    time_interleaved,
)
from rcnn_ext.models.detector import fast_dtype
from rcnn_ext.progress import Progress

# Scores, 1 - IoU of the boxes, and losses may differ by this between libraries in float32.
_TOLERANCE = 1e-3


@dataclasses.dataclass
class ModelRow:
    """The result of a case with one number of threads."""

    case: ModelCase
    threads: int
    timings: dict[str, Timing]
    errors: dict[str, float]
    extra_bytes: dict[str, int | None]
    failures: list[str]
    flops: int | None = None
    floors: dict[str, float | None] = dataclasses.field(default_factory=dict)

    def ratio(self, name: str) -> float | None:
        """Return how many times faster a contender is than torchvision."""
        if name not in self.timings or TORCHVISION not in self.timings:
            return None
        return self.timings[TORCHVISION].median / self.timings[name].median

    def as_json(self, device: torch.device) -> dict[str, Any]:
        """Return the row in the format of the operators' results."""
        ratio = self.ratio(OURS)
        target = self.case.target if device.type == "cpu" else None
        return {
            "case": self.case.name,
            "operator": "faster_rcnn",
            "work": self.case.work,
            "size": None,
            "dtype": "float32",
            "threads": self.threads,
            "flops": self.flops,
            "error_measure": self.case.error_measure,
            "contenders": {
                name: {
                    **(self.timings[name].as_json() if name in self.timings else {}),
                    "error": error if math.isfinite(error) else None,
                    "problem": None if name in self.timings else "wrong result",
                    "kernels": None,
                    "extra_bytes": self.extra_bytes.get(name),
                    "ratio_torchvision": self.ratio(name),
                    "floor_s": self.floors.get(name),
                }
                for name, error in self.errors.items()
            },
            "ratio_torchvision": ratio,
            "ratio_reference": None,
            "target": target,
            "target_reached": None if None in (ratio, target) else ratio >= target,  # type: ignore[operator]
            "failures": self.failures,
        }


def run_models(
    device: torch.device, threads: tuple[int, ...], quick: bool
) -> tuple[dict[str, Any], str]:
    """Compare the detectors.

    Args:
        device: The device that they run on.
        threads: Numbers of CPU threads, with rows for each.
        quick: Small detectors and images, half a minute; for tests of the comparison itself.

    Returns:
        The report for JSON and the text to print. The report's ``failures`` are empty if all went
        well.
    """
    scale = SMALL if quick else Scale()
    config = TimingConfig(min_run_time=0.0, budget=1.0 if quick else 10.0, max_runs=15)
    rows = []
    speeds: dict[int, Speed] = {}
    half = fast_dtype(device) is torch.bfloat16
    dtypes = (torch.float32, torch.bfloat16) if half else (torch.float32,)
    before = torch.get_num_threads()
    try:
        makers = _makers(scale, device, runtimes=not quick)
        for count in threads:
            torch.set_num_threads(count)
            speeds[count] = measure_speed(device, dtypes, quick=quick)
        with Progress("Comparing", len(makers) * len(threads), "row") as progress:
            for make in makers:
                case = make()
                for count in threads:
                    torch.set_num_threads(count)
                    rows.append(run_case(case, count, device, config, speeds[count]))
                    progress.advance(note=case.name)
                del case  # the detectors of a case are large
    finally:
        torch.set_num_threads(before)
    description = _environment.describe(device)
    failures = [f"{row.case.name}: {failure}" for row in rows for failure in row.failures]
    report = {
        "schema": SCHEMA,
        "suite": "models",
        "environment": description,
        "settings": {
            "threads": list(threads),
            "min_run_s": config.min_run_time,
            "min_runs": MIN_RUNS,
            **dataclasses.asdict(scale),
            "speeds": {str(count): speed.as_json() for count, speed in speeds.items()},
        },
        "backends": _environment.operator_backends(device.type),
        "results": [row.as_json(device) for row in rows],
        "skipped": [],
        "failures": failures,
    }
    return report, _format(report, rows)


def _makers(scale: Scale, device: torch.device, *, runtimes: bool) -> list[Callable[[], ModelCase]]:
    makers: list[Callable[[], ModelCase]] = [
        partial(inference_case, scale, device, runtimes=runtimes),
        partial(outside_case, scale, device),
        partial(training_case, scale, device),
    ]
    if runtimes:
        smaller = dataclasses.replace(scale, backbone="resnet18")
        makers.insert(1, partial(inference_case, smaller, device, runtimes=True))
    return makers


def run_case(
    case: ModelCase,
    threads: int,
    device: torch.device,
    config: TimingConfig,
    speed: Speed | None = None,
) -> ModelRow:
    """Compare results, measure memory, then time the contenders in turns.

    Args:
        case: The case.
        threads: Number of CPU threads, which PyTorch has been told already.
        device: The device that the contenders run on.
        config: How long to measure.
        speed: What the device reaches with these threads, for the floor; None leaves it out.
    """
    row = ModelRow(case, threads, {}, {}, {}, [])
    contenders = []

    def context() -> contextlib.AbstractContextManager[Any]:
        return torch.enable_grad() if case.gradients else torch.no_grad()

    with context():
        expected = case.calls[TORCHVISION]()
        for name, call in case.calls.items():
            error = row.errors[name] = case.error(call(), expected)
            tolerance = case.tolerances.get(name, _TOLERANCE)
            if not error <= tolerance:  # NaN is wrong too
                row.failures.append(
                    f"{name}: {case.error_measure} {error:.3g}, allowed {tolerance:.3g}"
                )
                continue

            def without_result(call: Call = call) -> tuple[()]:
                call()
                return ()

            row.extra_bytes[name] = memory.extra_bytes(without_result, device)
            contenders.append(Contender(name, [call], context))
    if speed is not None and case.count is not None:
        with context():
            work = case.count()
        row.flops = work.flops
        row.floors = {name: work.floor(speed, dtype_of(name)) for name in row.errors}
    clock = WallAndCpuClock() if device.type == "cpu" else clock_for(device)
    row.timings = time_interleaved(contenders, clock, config)
    return row


def _format(report: dict[str, Any], rows: list[ModelRow]) -> str:
    described = report["environment"]
    versions = described["versions"]
    head = ["work", "threads", "contender", "median", "min", "floor"]
    head += ["vs torchvision", "target"]
    head += ["CPU time", "error", "extra MiB"]
    lines = [
        f"Detectors of equal weights on {described['device_name']}, "
        + ", ".join(f"{name} {versions[name]}" for name in ("rcnn_ext", "torch", "torchvision")),
        "",
        format_table(head, list(_cells(rows, described["device"])), left=1),
        "",
        f"Medians of at least {MIN_RUNS} interleaved runs; CPU time is that of all threads, the",
        f"least of the runs. float32, unless the name says otherwise. {OURS}: prepared for",
        f"inference, or with channels last in training; {AS_BUILT}: as the builder gives it.",
        "floor: the convolutions and products of the model at the speed of a large product or",
        "convolution on as many threads, or its weights read once, if longer; convolutions by",
        "Winograd's algorithm, which multiply less, may be below it.",
        "Errors in bfloat16 say nothing: rounding reorders the proposals of an untrained network.",
    ]
    if report["failures"]:
        lines += ["", "FAILED:", *(f"  {failure}" for failure in report["failures"])]
    return "\n".join(lines) + "\n"


def _cells(rows: list[ModelRow], device: str) -> Iterator[list[str]]:
    for row in rows:
        for name, error in row.errors.items():
            timing, ratio, extra = row.timings.get(name), row.ratio(name), row.extra_bytes.get(name)
            floor = row.floors.get(name)
            has_target = name == OURS and row.case.target is not None and device == "cpu"
            reached = has_target and ratio is not None and ratio >= (row.case.target or 0)
            yield [
                row.case.work if name == TORCHVISION else "",
                str(row.threads),
                name,
                "-" if timing is None else format_seconds(timing.median),
                "-" if timing is None else format_seconds(min(timing.seconds)),
                "-" if floor is None else format_seconds(floor),
                "-" if ratio is None else f"{ratio:.2f}x",
                f"{row.case.target:g}x" + "*" * reached if has_target else "",
                "-"
                if timing is None or not timing.cpu_seconds
                else format_seconds(min(timing.cpu_seconds)),
                f"{error:.1e}",
                "-" if extra is None else f"{extra / 2**20:.0f}",
            ]
