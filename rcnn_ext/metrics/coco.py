"""COCO's detection metrics, computed by pycocotools, and the result of any evaluation.

pycocotools is used directly: it is the definition of the twelve metrics, and its arrays hold the
values per class and the precision-recall curves too.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rcnn_ext.data.annotations import ClassList
from rcnn_ext.metrics.results import ImageResult
from rcnn_ext.metrics.voc import VOC_SUMMARY, voc_curves

# In the order of pycocotools' `stats`.
COCO_SUMMARY = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "AP_small": "objects below 32x32 pixels",
    "AP_medium": "32x32 to 96x96 pixels",
    "AP_large": "above 96x96 pixels",
    "AR1": "recall with 1 detection per image",
    "AR10": "recall with 10",
    "AR100": "recall with 100",
    "AR_small": "recall with 100, below 32x32 pixels",
    "AR_medium": "recall with 100, 32x32 to 96x96",
    "AR_large": "recall with 100, above 96x96 pixels",
}
SUMMARY = {**COCO_SUMMARY, **VOC_SUMMARY}

# Position of each metric in pycocotools' arrays: index of the IoU (None for all), of the object
# size (all, small, medium, large), and of the maximum number of detections (1, 10, 100).
_POSITIONS: dict[str, tuple[int | None, int, int]] = {
    "AP": (None, 0, 2),
    "AP50": (0, 0, 2),
    "AP75": (5, 0, 2),
    "AP_small": (None, 1, 2),
    "AP_medium": (None, 2, 2),
    "AP_large": (None, 3, 2),
    "AR1": (None, 0, 0),
    "AR10": (None, 0, 1),
    "AR100": (None, 0, 2),
    "AR_small": (None, 1, 2),
    "AR_medium": (None, 2, 2),
    "AR_large": (None, 3, 2),
}

Row = dict[str, "float | int | None"]


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of a model on a data set.

    Attributes:
        summary: Metrics by name, such as those of ``SUMMARY``; None where no object counts for one.
        meanings: Explanations of the metrics, by name.
        monitor: The metric that decides which checkpoint is best, unless the recipe names another.
        headline: Names of the metrics that fit into a line.
        per_class: For each class name the metrics that it has, and its number of ``objects``.
        images: Number of images.
        objects: Number of objects, without crowds.
        detections: Number of detections.
        precision: float64 [101, K], precision at IoU 0.5 and recall 0, 0.01, ..., 1 of each class;
            -1 for classes without objects. None where the metrics have no curve.
    """

    summary: dict[str, float | None]
    meanings: dict[str, str]
    monitor: str
    headline: tuple[str, ...]
    per_class: dict[str, Row]
    images: int
    objects: int
    detections: int
    precision: np.ndarray | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return all but the curves, ready for JSON."""
        counts = {"images": self.images, "objects": self.objects, "detections": self.detections}
        return {**self.summary, **counts, "per_class": self.per_class}

    def line(self) -> str:
        """Return the headline metrics in a line."""
        return ", ".join(f"{name} {_shown(self.summary[name])}" for name in self.headline)

    def table(self) -> str:
        """Return all metrics as text."""
        lines = [
            f"{name:<10} {_shown(self.summary[name]):>6}  {meaning}"
            for name, meaning in self.meanings.items()
        ]
        return "\n".join(lines)

    def class_table(self) -> str:
        """Return the headline metrics of each class that has objects, as text."""
        width = max([5, *(len(name) for name in self.per_class)])
        lines = [f"{'class':<{width}} objects" + "".join(f" {n:>8}" for n in self.headline)]
        for name, row in self.per_class.items():
            if row["objects"]:
                values = "".join(f" {_shown(row[column]):>8}" for column in self.headline)
                lines.append(f"{name:<{width}} {row['objects']:>7}{values}")
        return "\n".join(lines)


def detection_metrics(results: Sequence[ImageResult], classes: ClassList) -> EvaluationResult:
    """Compute the metrics of COCO and of VOC.

    COCO's metrics count difficult objects like any other and ignore crowds; VOC's ignore both.

    Args:
        results: Images with their detections.
        classes: The classes of the detector.
    """
    from pycocotools.cocoeval import COCOeval

    truth, found = _annotations(results)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does.
        run = COCOeval(
            _as_coco(truth, len(results), classes), _as_coco(found, len(results), classes), "bbox"
        )
        run.evaluate()
        run.accumulate()
    curves = voc_curves(results, len(classes))
    rows: list[Row] = []
    for index, curve in enumerate(curves):
        row: Row = dict(_coco_numbers(run.eval, slice(index, index + 1)))
        row |= {"VOC_AP": curve.area(), "VOC_AP11": curve.eleven_points()}
        rows.append(row)
    summary = _coco_numbers(run.eval, slice(None))
    for name in VOC_SUMMARY:
        summary[name] = mean_of(row[name] for row in rows)
    labels = [label for result in results for label in result.labels[~result.crowd]]
    counts = np.bincount(np.array(labels, dtype=np.int64), minlength=len(classes) + 1)[1:]
    for row, count in zip(rows, counts, strict=True):
        row["objects"] = int(count)
    return EvaluationResult(
        summary=summary,
        meanings=SUMMARY,
        monitor="AP",
        headline=("AP", "AP50", "AP75", "AR100"),
        per_class=dict(zip(classes.names, rows, strict=True)),
        images=len(results),
        objects=int(counts.sum()),
        detections=len(found),
        precision=run.eval["precision"][0, :, :, 0, 2],
    )


def mean_of(values: Any) -> float | None:
    """Return the mean of the values that are not None, or None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _coco_numbers(arrays: dict[str, Any], classes: slice) -> dict[str, float | None]:
    """Return the twelve metrics over some classes."""
    numbers: dict[str, float | None] = {}
    for name, (iou, size, max_detections) in _POSITIONS.items():
        if name.startswith("AP"):
            values = arrays["precision"][:, :, classes, size, max_detections]  # [10, 101, k]
        else:
            values = arrays["recall"][:, classes, size, max_detections]  # [10, k]
        values = values if iou is None else values[iou]
        defined = values[values > -1]  # -1 marks undefined values.
        numbers[name] = float(defined.mean()) if defined.size else None
    return numbers


def _annotations(
    results: Sequence[ImageResult],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return ground truth and detections as COCO annotations."""
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image, result in enumerate(results, start=1):
        for entry, area, crowd in zip(
            _entries(image, result.boxes, result.labels),
            result.areas.tolist(),
            result.crowd.tolist(),
            strict=True,
        ):
            # An id of zero would mean "unmatched" to pycocotools.
            entry |= {"iscrowd": int(crowd), "area": area, "id": len(truth) + 1}
            truth.append(entry)
        for entry, score in zip(
            _entries(image, result.found_boxes, result.found_labels),
            result.scores.tolist(),
            strict=True,
        ):
            area = entry["bbox"][2] * entry["bbox"][3]
            entry |= {"iscrowd": 0, "area": area, "id": len(found) + 1, "score": score}
            found.append(entry)
    return truth, found


def _entries(image: int, boxes: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    rows = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    return [
        {"image_id": image, "category_id": label, "bbox": row}
        for label, row in zip(labels.tolist(), rows, strict=True)
    ]


def _as_coco(annotations: list[dict[str, Any]], images: int, classes: ClassList) -> Any:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i + 1} for i in range(images)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(classes.names)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _shown(value: float | int | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
