"""Metrics of models that find one object per image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rcnn_ext.data.annotations import ClassList
from rcnn_ext.metrics.coco import EvaluationResult, Row, mean_of
from rcnn_ext.metrics.results import ImageResult, box_ious

LOCALIZATION_SUMMARY = {
    "score": "mean of accuracy and IoU",
    "accuracy": "fraction of the objects with the correct class",
    "IoU": "mean IoU of the box and the object, whatever the class",
    "IoU50": "fraction of the objects with an IoU of at least 0.50",
}


def localization_metrics(results: Sequence[ImageResult], classes: ClassList) -> EvaluationResult:
    """Compute accuracy and IoU of the best detection of each image that has one object.

    Args:
        results: Images with their detections. Images without an object, or with several, do not
            count: they have no single correct answer.
        classes: The classes of the model.
    """
    labels, correct, ious = [], [], []
    for result in results:
        if len(result.labels) != 1:
            continue
        labels.append(int(result.labels[0]))
        found = len(result.found_labels) > 0
        best = int(result.scores.argmax()) if found else 0
        correct.append(found and result.found_labels[best] == result.labels[0])
        overlap = box_ious(result.found_boxes[best : best + 1], result.boxes)
        ious.append(float(overlap[0, 0]) if found else 0.0)
    of_label, is_correct, overlaps = np.array(labels), np.array(correct, float), np.array(ious)
    per_class: dict[str, Row] = {
        name: {**_numbers(is_correct[of], overlaps[of]), "objects": int(of.sum())}
        for label, name in enumerate(classes.names, start=1)
        for of in [of_label == label]
    }
    return EvaluationResult(
        summary=_numbers(is_correct, overlaps),
        meanings=LOCALIZATION_SUMMARY,
        monitor="score",
        headline=("score", "accuracy", "IoU", "IoU50"),
        per_class=per_class,
        images=len(results),
        objects=len(labels),
        detections=sum(len(result.found_labels) for result in results),
    )


def _numbers(correct: np.ndarray, ious: np.ndarray) -> dict[str, float | None]:
    accuracy, iou = mean_of(correct.tolist()), mean_of(ious.tolist())
    return {
        "score": mean_of([accuracy, iou]),
        "accuracy": accuracy,
        "IoU": iou,
        "IoU50": mean_of((ious >= 0.5).tolist()),
    }
