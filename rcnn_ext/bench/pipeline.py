"""Files to detections against a loop over torchvision's: ``rcnn-ext bench --pipeline``.

Three contenders take the same JPEG files in turns, a part of them at a time: ours, which decodes in
threads while the network works; torchvision's detector of equal weights, in the loop that its
documentation shows; and our network alone, on tensors that are in memory already, which is what
overlapping everything else could reach at best.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from rcnn_ext import _environment
from rcnn_ext.bench.contenders import OURS, TORCHVISION
from rcnn_ext.bench.model_cases import detection_error
from rcnn_ext.bench.model_pair import SMALL, Scale, make_image, make_pair
from rcnn_ext.bench.report import SCHEMA, format_table
from rcnn_ext.bench.timing import Timing, collector_paused
from rcnn_ext.models import FasterRCNN
from rcnn_ext.predict.predictor import Predictor
from rcnn_ext.progress import Progress

NETWORK = "rcnn_ext-network"

# At least so many times torchvision's rate, and this part of the network's alone.
RATIO_TARGET = 1.5
NETWORK_TARGET = 0.95

# Scores and 1 - IoU may differ by this between libraries in float32.
_TOLERANCE = 1e-3
_BATCH_SIZES = (1, 4)
_PARTS = 10
# The deviation of the noise that makes JPEG files as large as those of photographs.
_NOISE = 0.04

Results = list[dict[str, Tensor]]
# Gives the detections in some files.
Call = Callable[[Sequence[Path]], Results]


@dataclasses.dataclass
class PipelineRow:
    """The rates of the contenders with one number of threads.

    Attributes:
        work: Short description for the table.
        threads: Number of threads.
        timings: Seconds per picture of each part of the files, by contender.
        batch_sizes: The batch size of each contender: the faster one of a trial.
        errors: The largest difference to torchvision's detections, by contender.
        failures: What went wrong, one line each.
    """

    work: str
    threads: int
    timings: dict[str, Timing]
    batch_sizes: dict[str, int]
    errors: dict[str, float]
    failures: list[str]

    def rate(self, name: str) -> float:
        """Return the pictures per second of a contender, over all files."""
        seconds = self.timings[name].seconds
        return len(seconds) / sum(seconds)

    @property
    def ratio(self) -> float:
        """How many times torchvision's rate ours is."""
        return self.rate(OURS) / self.rate(TORCHVISION)

    @property
    def of_network(self) -> float:
        """Which part of our network's own rate ours is."""
        return self.rate(OURS) / self.rate(NETWORK)

    def as_json(self, device: torch.device) -> dict[str, Any]:
        """Return the row in the format of the operators' results."""
        target = RATIO_TARGET if device.type == "cpu" else None
        return {
            "case": "folder",
            "operator": "detect",
            "work": self.work,
            "size": None,
            "dtype": "float32",
            "threads": self.threads,
            "error_measure": "score or 1 - IoU",
            "contenders": {
                name: {
                    **timing.as_json(),
                    "pictures_per_s": self.rate(name),
                    "batch_size": self.batch_sizes[name],
                    "error": self.errors.get(name),
                    "extra_bytes": None,
                    "ratio_torchvision": self.rate(name) / self.rate(TORCHVISION),
                }
                for name, timing in self.timings.items()
            },
            "ratio_torchvision": self.ratio,
            "ratio_reference": None,
            "of_network": self.of_network,
            "of_network_target": NETWORK_TARGET,
            "target": target,
            "target_reached": None if target is None else self.ratio >= target,
            "failures": self.failures,
        }


def run_pipeline(
    device: torch.device, threads: tuple[int, ...], quick: bool, pictures: int | None = None
) -> tuple[dict[str, Any], str]:
    """Compare the pipelines.

    Args:
        device: The device of the networks.
        threads: Numbers of CPU threads, with a row for each.
        quick: A small detector and small pictures; for tests of the comparison itself.
        pictures: Number of pictures; None means 300, which take some minutes on two cores, or
            20 with ``quick``.

    Returns:
        The report for JSON and the text to print. The report's ``failures`` are empty if all went
        well.
    """
    scale = SMALL if quick else Scale("resnet18", 91, 480, 640, 320, 640)
    count = pictures or (20 if quick else 300)
    before = torch.get_num_threads()
    rows = []
    with tempfile.TemporaryDirectory(prefix="rcnn-ext-") as folder:
        paths = make_pictures(Path(folder), scale, count)
        ours, theirs = make_pair(scale, device, trainable_layers=0)
        ours.prepare_for_inference(dtype=None)
        try:
            with Progress("Detecting", len(threads) * _PARTS, "part") as progress:
                for number in threads:
                    torch.set_num_threads(number)
                    work = (
                        f"{count:,} JPEG files of {scale.width}x{scale.height}, Faster R-CNN "
                        f"{scale.backbone} FPN at {scale.min_size}"
                    )
                    rows.append(run_row(work, number, ours, theirs, paths, progress.advance))
        finally:
            torch.set_num_threads(before)
    failures = [f"{row.threads} threads: {failure}" for row in rows for failure in row.failures]
    report = {
        "schema": SCHEMA,
        "suite": "pipeline",
        "environment": _environment.describe(device),
        "settings": {"threads": list(threads), "pictures": count, **dataclasses.asdict(scale)},
        "backends": _environment.operator_backends(device.type),
        "results": [row.as_json(device) for row in rows],
        "skipped": [],
        "failures": failures,
    }
    return report, _format(report, rows)


def make_pictures(folder: Path, scale: Scale, count: int) -> list[Path]:
    """Write pictures as JPEG files.

    Args:
        folder: Where to write them.
        scale: Their size.
        count: Their number.

    Returns:
        The files. They differ, and are about as large as photographs of their size.
    """
    paths = []
    for seed in range(count):
        colors = make_image(scale, torch.device("cpu"), seed).permute(1, 2, 0).numpy()
        noise = np.random.default_rng(seed).normal(0.0, _NOISE, colors.shape)
        pixels = ((colors + noise).clip(0, 1) * 255).astype(np.uint8)
        paths.append(folder / f"{seed:06d}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def run_row(
    work: str,
    threads: int,
    ours: FasterRCNN,
    theirs: nn.Module,
    paths: Sequence[Path],
    advance: Callable[[], Any] = lambda: None,
) -> PipelineRow:
    """Compare detections, choose batch sizes, then time the contenders in turns.

    Args:
        work: Short description for the table.
        threads: Number of threads, which is set already.
        ours: Our detector, prepared for inference.
        theirs: Torchvision's, of equal weights.
        paths: The files.
        advance: Called after each part of the files.
    """
    device = next(theirs.parameters()).device
    num_classes = ours.state_dict()["roi_heads.box_predictor.cls_score.bias"].numel()
    predictor = Predictor(ours, [str(label) for label in range(1, num_classes)])

    def make_call(name: str, size: int) -> Call:
        if name == OURS:
            return lambda files: _predict(predictor, files, size)
        return lambda files: _plain_loop(theirs, files, size, device)

    trial = paths[: min(len(paths), 2 * max(_BATCH_SIZES))]
    calls: dict[str, Call] = {}
    sizes: dict[str, int] = {}
    for name in (TORCHVISION, OURS):
        tried = {size: make_call(name, size) for size in _BATCH_SIZES}
        for call in tried.values():
            call(trial[:1])
        seconds = {size: _seconds(call, trial) for size, call in tried.items()}
        sizes[name] = min(seconds, key=lambda size: seconds[size])
        calls[name] = tried[sizes[name]]
    error = detection_error(calls[OURS](trial), calls[TORCHVISION](trial))
    row = PipelineRow(work, threads, {}, sizes, {TORCHVISION: 0.0, OURS: error}, [])
    if not error <= _TOLERANCE:  # NaN is wrong too
        row.failures.append(f"{OURS}: score or 1 - IoU {error:.3g}, allowed {_TOLERANCE:g}")
    sizes[NETWORK] = sizes[OURS]

    found: dict[str, list[float]] = {TORCHVISION: [], OURS: [], NETWORK: []}
    length = -(-len(paths) // min(_PARTS, len(paths)))
    with collector_paused():
        for start in range(0, len(paths), length):
            part = paths[start : start + length]
            tensors = [_read(path).to(device) for path in part]
            turn = {
                **calls,
                NETWORK: lambda _: _network(ours, tensors, sizes[NETWORK]),  # noqa: B023
            }
            order = list(found) if start // length % 2 == 0 else list(found)[::-1]
            for name in order:
                found[name].append(_seconds(turn[name], part) / len(part))
            advance()
    row.timings = {name: Timing(tuple(seconds), length) for name, seconds in found.items()}
    return row


def _seconds(call: Call, files: Sequence[Path]) -> float:
    start = time.perf_counter()
    call(files)
    return time.perf_counter() - start


def _predict(predictor: Predictor, files: Sequence[Path], batch_size: int) -> Results:
    found = predictor.predict(list(files), batch_size=batch_size)
    return [{"boxes": one.boxes, "labels": one.labels, "scores": one.scores} for one in found]


@torch.no_grad()
def _network(model: nn.Module, images: Sequence[Tensor], batch_size: int) -> Results:
    results: Results = []
    for start in range(0, len(images), batch_size):
        found = model(list(images[start : start + batch_size]))
        results += [{name: value.cpu() for name, value in one.items()} for one in found]
    return results


@torch.no_grad()
def _plain_loop(
    model: nn.Module, files: Sequence[Path], batch_size: int, device: torch.device
) -> Results:
    results: Results = []
    for start in range(0, len(files), batch_size):
        images = [_read(path).to(device) for path in files[start : start + batch_size]]
        results += [{name: value.cpu() for name, value in one.items()} for one in model(images)]
    return results


def _read(path: Path) -> Tensor:  # [3, H, W], float32 in [0, 1]
    with Image.open(path) as picture:
        pixels = F.pil_to_tensor(picture.convert("RGB"))
    return F.to_dtype(pixels, torch.float32, scale=True)


def _format(report: dict[str, Any], rows: list[PipelineRow]) -> str:
    described = report["environment"]
    versions = described["versions"]
    head = ["threads", "contender", "batch", "pictures/s", "vs torchvision", "of our network"]
    body = []
    for row in rows:
        for name in row.timings:
            cells = [str(row.threads), name, str(row.batch_sizes[name]), f"{row.rate(name):.2f}"]
            cells.append(f"{row.rate(name) / row.rate(TORCHVISION):.2f}x")
            body.append([*cells, f"{row.rate(name) / row.rate(NETWORK):.1%}"])
    lines = [
        f"{rows[0].work}, on {described['device_name']}, "
        + ", ".join(f"{name} {versions[name]}" for name in ("rcnn_ext", "torch", "torchvision")),
        "",
        format_table(head, body, left=2),
        "",
        f"{NETWORK}: our network on tensors in memory. Targets: {RATIO_TARGET:g}x torchvision and "
        f"{NETWORK_TARGET:.0%} of the network alone.",
    ]
    if report["failures"]:
        lines += ["", "FAILED:", *(f"  {failure}" for failure in report["failures"])]
    return "\n".join(lines) + "\n"
