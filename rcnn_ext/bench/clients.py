"""torchvision's detectors, alone and accelerated: ``rcnn-ext bench --clients``.

The contenders are one and the same detector; what differs is what is on while it runs. Detections
and losses are compared before anything is timed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rcnn_ext import _environment
from rcnn_ext.accelerate import Acceleration, Level
from rcnn_ext.bench.client_models import MAKERS, make_client
from rcnn_ext.bench.contenders import TORCHVISION
from rcnn_ext.bench.model_cases import detection_error, loss_error
from rcnn_ext.bench.model_pair import SMALL, Scale, make_image, make_target
from rcnn_ext.bench.report import SCHEMA, format_seconds, format_table
from rcnn_ext.bench.timing import Contender, TimingConfig, WallAndCpuClock, time_interleaved
from rcnn_ext.progress import Progress

_LEVELS: dict[str, Level | None] = {TORCHVISION: None, "operators": "operators", "models": "models"}
_TASKS: dict[str, Callable[[Any, Any], float]] = {
    "inference": detection_error,
    "training_step": loss_error,
}
_SCALE = Scale(num_classes=21, height=400, width=544, min_size=400, max_size=544)
_QUICK = ("faster_rcnn", "retinanet")

# Largest difference of scores, 1 - IoU or losses. At the level "models" another order of equal
# scores draws another random sample, which moves a loss by some hundredths.
_TOLERANCE = 1e-3
_OTHER_SAMPLE = 0.1


def run_clients(
    device: torch.device, threads: tuple[int, ...], quick: bool
) -> tuple[dict[str, Any], str]:
    """Compare torchvision's detectors with themselves, accelerated.

    Args:
        device: The device that they run on.
        threads: Numbers of CPU threads, with rows for each.
        quick: Small detectors and images, half a minute; for tests of the comparison itself.

    Returns:
        The report for JSON and the text to print. The report's ``failures`` are empty if all went
        well.
    """
    scale = dataclasses.replace(SMALL, num_classes=4) if quick else _SCALE
    # Three turns: each contender follows each other, in both directions.
    config = TimingConfig(min_run_time=0.0, budget=0.0, max_runs=3, min_runs=1 if quick else 3)
    image, target = make_image(scale, device), make_target(scale, device)
    target["masks"] = torch.zeros(len(target["boxes"]), *image.shape[1:], dtype=torch.uint8)
    target["masks"][:, ::2] = 1
    target["masks"] = target["masks"].to(device)
    names = _QUICK if quick else tuple(MAKERS)
    rows = []
    before = torch.get_num_threads()
    try:
        with Progress("Comparing", len(names) * len(_TASKS) * len(threads), "row") as progress:
            for name in names:
                model = make_client(name, scale, image)
                calls: dict[str, Callable[[], Any]] = {
                    "inference": partial(_detect, model, image),
                    "training_step": partial(_train_step, model, image, target),
                }
                for count in threads:
                    torch.set_num_threads(count)
                    for task, call in calls.items():
                        rows.append(_run_row(name, task, call, count, config))
                        progress.advance(note=f"{name} {task}")
    finally:
        torch.set_num_threads(before)
    report = {
        "schema": SCHEMA,
        "suite": "clients",
        "environment": _environment.describe(device),
        "settings": {
            "threads": list(threads),
            "min_runs": config.min_runs,
            **dataclasses.asdict(scale),
        },
        "backends": _environment.operator_backends(device.type),
        "results": rows,
        "skipped": [],
        "failures": [f"{row['case']}: {failure}" for row in rows for failure in row["failures"]],
    }
    return report, _format(report)


@torch.no_grad()
def _detect(model: Any, image: Tensor) -> list[dict[str, Tensor]]:
    found: list[dict[str, Tensor]] = model.eval()([image])
    return found


def _train_step(model: Any, image: Tensor, target: dict[str, Tensor]) -> dict[str, Tensor]:
    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    losses = model([image], [dict(target)])
    torch.stack(list(losses.values())).sum().backward()
    return {name: value.detach() for name, value in losses.items()}


def _acceleration(level: Level | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if level is None else Acceleration(level)


def _run_row(
    name: str, task: str, call: Callable[[], Any], threads: int, config: TimingConfig
) -> dict[str, Any]:
    """Compare results, then time the contenders in turns."""
    expected = call()
    errors, failures, contenders = {}, [], []
    for name_of_level, level in _LEVELS.items():
        with _acceleration(level):
            error = errors[name_of_level] = _TASKS[task](call(), expected)
        sampled = task == "training_step" and level == "models"
        tolerance = _OTHER_SAMPLE if sampled else _TOLERANCE
        if not error <= tolerance:  # NaN is wrong too
            failures.append(f"{name_of_level}: error {error:.3g}, allowed {tolerance:.3g}")
        contenders.append(Contender(name_of_level, [call], partial(_acceleration, level)))
    timings = time_interleaved(contenders, WallAndCpuClock(), config)
    entries: dict[str, dict[str, Any]] = {}
    for contender in contenders:
        error = errors[contender.name]
        entries[contender.name] = {
            **timings[contender.name].as_json(),
            "error": error if math.isfinite(error) else None,
        }
    for entry in entries.values():
        alone = entries[TORCHVISION]
        entry["ratio_torchvision"] = alone["median_s"] / entry["median_s"]
        entry["cpu_ratio_torchvision"] = alone["median_cpu_s"] / entry["median_cpu_s"]
    return {
        "case": f"{name}/{task}",
        "operator": name,
        "work": f"{MAKERS[name][0]}, {task.replace('_', ' ')}",
        "dtype": "float32",
        "threads": threads,
        "contenders": entries,
        "ratio_torchvision": entries["operators"]["ratio_torchvision"],
        "failures": failures,
    }


def _format(report: dict[str, Any]) -> str:
    described = report["environment"]
    versions = described["versions"]
    head = ["work", "threads", "contender", "median", "CPU time", "speed-up", "of CPU time"]
    cells = []
    for row in report["results"]:
        for name, entry in row["contenders"].items():
            alone = name == TORCHVISION
            cells.append(
                [
                    row["work"] if alone else "",
                    str(row["threads"]),
                    name,
                    format_seconds(entry["median_s"]),
                    format_seconds(entry["median_cpu_s"]),
                    "" if alone else f"{entry['ratio_torchvision']:.2f}x",
                    "" if alone else f"{entry['cpu_ratio_torchvision']:.2f}x",
                ]
            )
    lines = [
        f"torchvision's detectors, accelerated, on {described['device_name']}, "
        + ", ".join(f"{name} {versions[name]}" for name in ("rcnn_ext", "torch", "torchvision")),
        "",
        format_table(head, cells, left=1),
        "",
        f"Medians of {report['settings']['min_runs']} interleaved runs of one detector, float32: "
        "alone, with",
        "rcnn_ext.accelerate() (operators), and with accelerate(level='models').",
    ]
    if report["failures"]:
        lines += ["", "FAILED:", *(f"  {failure}" for failure in report["failures"])]
    return "\n".join(lines) + "\n"
