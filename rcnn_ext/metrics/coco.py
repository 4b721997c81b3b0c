"""COCO's detection metrics, computed by faster-coco-eval, and the result of any evaluation.

faster-coco-eval computes the arrays of pycocotools, which defines the twelve metrics, in a fraction
of its time. They hold the values per class and the precision-recall curves too.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rcnn_ext.data.annotations import ClassList
from rcnn_ext.metrics.results import ImageResult
from rcnn_ext.metrics.voc import VOC_SUMMARY, voc_curves

# COCO counts the best detections of a class in an image, up to these numbers.
COCO_LIMITS = (1, 10, 100)
DEFAULT_MAX_DETECTIONS = COCO_LIMITS[-1]

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

# Index of each metric in the arrays: of the IoU (None for all) and of the object size (all, small,
# medium, large). The recalls AR1, AR10, ... are at numbers of detections, all others at the limit.
_POSITIONS: dict[str, tuple[int | None, int]] = {
    "AP": (None, 0),
    "AP50": (0, 0),
    "AP75": (5, 0),
    "AP_small": (None, 1),
    "AP_medium": (None, 2),
    "AP_large": (None, 3),
    "AR_small": (None, 1),
    "AR_medium": (None, 2),
    "AR_large": (None, 3),
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
        width = max([5, *(_columns(name) for name in self.per_class)])
        lines = [f"{'class':<{width}} objects" + "".join(f" {n:>8}" for n in self.headline)]
        for name, row in self.per_class.items():
            if row["objects"]:
                values = "".join(f" {_shown(row[column]):>8}" for column in self.headline)
                padding = " " * (width - _columns(name))
                lines.append(f"{name}{padding} {row['objects']:>7}{values}")
        return "\n".join(lines)


def detection_metrics(
    results: Sequence[ImageResult],
    classes: ClassList,
    max_detections: int = DEFAULT_MAX_DETECTIONS,
) -> EvaluationResult:
    """Compute the metrics of COCO and of VOC.

    COCO's metrics count difficult objects like any other and ignore crowds; VOC's ignore both.

    Args:
        results: Images with their detections.
        classes: The classes of the detector.
        max_detections: Maximum number of detections of a class in an image that COCO's metrics
            count, those with the best scores. With another number than 1, 10 and 100 the summary
            also has the recall at it, such as ``AR400``. VOC's metrics count all detections.
    """
    limits = sorted({*COCO_LIMITS, max_detections})
    truth, found = _annotations(results)
    arrays = _coco_arrays(truth, found, len(results), classes, limits)
    curves = voc_curves(results, len(classes))
    rows: list[Row] = []
    for index, curve in enumerate(curves):
        row: Row = dict(_coco_numbers(arrays, slice(index, index + 1), limits, max_detections))
        row |= {"VOC_AP": curve.area(), "VOC_AP11": curve.eleven_points()}
        rows.append(row)
    summary = _coco_numbers(arrays, slice(None), limits, max_detections)
    for name in VOC_SUMMARY:
        summary[name] = mean_of(row[name] for row in rows)
    labels = [label for result in results for label in result.labels[~result.crowd]]
    counts = np.bincount(np.array(labels, dtype=np.int64), minlength=len(classes) + 1)[1:]
    for row, count in zip(rows, counts, strict=True):
        row["objects"] = int(count)
    return EvaluationResult(
        summary=summary,
        meanings=_meanings(max_detections),
        monitor="AP",
        headline=("AP", "AP50", "AP75", f"AR{max(max_detections, DEFAULT_MAX_DETECTIONS)}"),
        per_class=dict(zip(classes.names, rows, strict=True)),
        images=len(results),
        objects=int(counts.sum()),
        detections=len(found),
        precision=arrays["precision"][0, :, :, 0, limits.index(max_detections)],
    )


def crowded_images(results: Sequence[ImageResult], max_detections: int) -> int:
    """Return how many images have more objects of a class than COCO's metrics count detections."""
    return sum(
        int(np.bincount(result.labels[~result.crowd], minlength=1).max()) > max_detections
        for result in results
    )


def mean_of(values: Any) -> float | None:
    """Return the mean of the values that are not None, or None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _meanings(max_detections: int) -> dict[str, str]:
    """Return the explanations of the metrics, in their order."""
    meanings: dict[str, str] = {}
    for name, meaning in SUMMARY.items():
        if name.startswith("AR_"):
            meaning = meaning.replace(f"{DEFAULT_MAX_DETECTIONS}", f"{max_detections}", 1)
        meanings[name] = meaning
        if name == f"AR{DEFAULT_MAX_DETECTIONS}" and max_detections not in COCO_LIMITS:
            meanings[f"AR{max_detections}"] = f"recall with {max_detections}"
    return meanings


def _coco_numbers(
    arrays: dict[str, Any], classes: slice, limits: list[int], max_detections: int
) -> dict[str, float | None]:
    """Return COCO's metrics over some classes, in the order of their explanations."""
    numbers: dict[str, float | None] = {}
    for name in _meanings(max_detections):
        if name in VOC_SUMMARY:
            continue
        iou, size = _POSITIONS.get(name, (None, 0))
        limit = max_detections if name in _POSITIONS else int(name.removeprefix("AR"))
        if name.startswith("AP"):
            values = arrays["precision"][:, :, classes, size, limits.index(limit)]  # [10, 101, k]
        else:
            values = arrays["recall"][:, classes, size, limits.index(limit)]  # [10, k]
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
            # An id of zero would mean "unmatched" to COCO's matching.
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


def _coco_arrays(
    truth: list[dict[str, Any]],
    found: list[dict[str, Any]],
    images: int,
    classes: ClassList,
    limits: list[int],
) -> dict[str, np.ndarray]:
    """Compute COCO's arrays.

    Returns:
        ``precision`` [10, 101, K, 4, L] at ten IoUs and 101 recalls, and ``recall`` [10, K, 4, L];
        for K classes, four object sizes and L maximum numbers of detections.
    """
    from faster_coco_eval.core.coco import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    # Indices stand for images and labels for classes, so ids of a data set may be anything.
    common = {
        "info": {},
        "images": [{"id": index + 1} for index in range(images)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(classes.names)],
    }
    run = COCOeval_faster(
        *(COCO({**common, "annotations": annotations}) for annotations in (truth, found)),
        iouType="bbox",
        print_function=_print_nothing,
    )
    run.params.maxDets = limits
    run.evaluate()
    run.accumulate()
    return run.eval


def _print_nothing(*_: object) -> None:
    """Take the messages of faster-coco-eval, which say what it does."""


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: two per letter of East Asian scripts."""
    widths = {"W": 2, "F": 2}
    return sum(
        0 if unicodedata.combining(one) else widths.get(unicodedata.east_asian_width(one), 1)
        for one in text
    )


def _shown(value: float | int | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
