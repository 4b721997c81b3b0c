"""COCO metrics of a trained detector."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from ..data.annotations import AnnotationSet, ClassList
from ..data.dataset import DetectionDataset, evaluation_loader
from ..files import write_json
from ..progress import tracked
from .checkpoint import SavedDetector
from .metrics import CocoMetrics, EvaluationResult

METRICS = "metrics.json"


def evaluate(
    model: nn.Module,
    classes: ClassList,
    annotations: AnnotationSet,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
) -> EvaluationResult:
    """Runs a detector on annotated images.

    Args:
        model: The detector, in evaluation mode and on ``device``.
        classes: What its labels mean.
        annotations: Images and ground truth with the same labels.
        device: Where to run.
        batch_size: Images in a batch.
        workers: Processes that read images.

    Raises:
        UserError: A picture is missing or damaged.
    """
    metrics = CocoMetrics(classes)
    loader = evaluation_loader(
        DetectionDataset(annotations), batch_size, workers, device.type == "cuda"
    )
    with torch.inference_mode():
        for images, targets in tracked(loader, "Evaluating", len(loader), "batch"):
            metrics.update(model([image.to(device) for image in images]), targets)
    return metrics.compute()


def write_evaluation(
    saved: SavedDetector,
    annotations: AnnotationSet,
    result: EvaluationResult,
    seconds: float,
    out: Path,
) -> list[Path]:
    """Writes ``metrics.json`` and, where matplotlib is installed, ``precision_recall.png``.

    Args:
        saved: The detector.
        annotations: What it was evaluated on.
        result: The metrics.
        seconds: How long it took.
        out: The folder to write to.

    Returns:
        The files.
    """
    facts = {
        "checkpoint": str(saved.path),
        "step": saved.step,
        "annotations": str(annotations.source),
        "seconds": round(seconds, 2),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(out / METRICS, {**result.as_dict(), **facts})
    written = [out / METRICS]
    try:
        from ..viz import plot_precision_recall

        plot = out / "precision_recall.png"
        plot_precision_recall(result.precision, saved.classes.names, plot)
        written.append(plot)
    except ModuleNotFoundError:
        pass  # matplotlib
    return written
