"""Metrics of models that find one object an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rcnn_ext.data.annotations import ClassList
from rcnn_ext.metrics.coco import EvaluationResult, Row, mean_of
from rcnn_ext.metrics.results import ImageResult, box_ious

LOCALIZATION_SUMMARY = {
    "score": "mean of accuracy and IoU",
    "accuracy": "part of the objects with the right class",
    "IoU": "mean IoU of the box and the object, whatever the class",
    "IoU50": "part of the objects with an IoU of at least 0.50",
}


def localization_metrics(results: Sequence[ImageResult], classes: ClassList) -> EvaluationResult:
    """Accuracy and IoU of the first detection of each image that has one object.

    Args:
        results: Images with their detections. Images without an object, or with several, do not
            count: there is no one right answer.
        classes: The classes of the model.
    """
    labels, right, ious = [], [], []
    for result in results:
        if len(result.labels) != 1:
            continue
        labels.append(int(result.labels[0]))
        found = len(result.found_labels) > 0
        best = int(result.scores.argmax()) if found else 0
        right.append(found and result.found_labels[best] == result.labels[0])
        overlap = box_ious(result.found_boxes[best : best + 1], result.boxes)
        ious.append(float(overlap[0, 0]) if found else 0.0)
    of_label, is_right, overlaps = np.array(labels), np.array(right, float), np.array(ious)
    per_class: dict[str, Row] = {
        name: {**_numbers(is_right[of], overlaps[of]), "objects": int(of.sum())}
        for label, name in enumerate(classes.names, start=1)
        for of in [of_label == label]
    }
    return EvaluationResult(
        summary=_numbers(is_right, overlaps),
        meanings=LOCALIZATION_SUMMARY,
        monitor="score",
        headline=("score", "accuracy", "IoU", "IoU50"),
        per_class=per_class,
        images=len(results),
        objects=len(labels),
        detections=sum(len(result.found_labels) for result in results),
    )


def _numbers(right: np.ndarray, ious: np.ndarray) -> dict[str, float | None]:
    accuracy, iou = mean_of(right.tolist()), mean_of(ious.tolist())
    return {
        "score": mean_of([accuracy, iou]),
        "accuracy": accuracy,
        "IoU": iou,
        "IoU50": mean_of((ious >= 0.5).tolist()),
    }
