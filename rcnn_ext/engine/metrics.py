"""The detection metrics of COCO, computed by pycocotools.

pycocotools is used directly: it is the definition of the twelve numbers, and its precision array
gives the values of single classes and the precision-recall curves in the same pass.
"""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.annotations import ClassList

# In the order of pycocotools' `stats`; what each means stands in `SUMMARY`.
SUMMARY = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "AP_small": "objects below 32x32 pixels",
    "AP_medium": "32x32 to 96x96 pixels",
    "AP_large": "above 96x96 pixels",
    "AR1": "recall with 1 detection an image",
    "AR10": "recall with 10",
    "AR100": "recall with 100",
    "AR_small": "recall with 100, below 32x32 pixels",
    "AR_medium": "recall with 100, 32x32 to 96x96",
    "AR_large": "recall with 100, above 96x96 pixels",
}


@dataclass(frozen=True)
class EvaluationResult:
    """What detections are worth on a data set.

    Attributes:
        summary: The twelve numbers of COCO by the names in ``SUMMARY``; None where no object counts
            for one.
        per_class: For each class name its ``AP``, ``AP50`` and number of ``objects``.
        precision: float64 [101, K], precision at IoU 0.5 and recall 0, 0.01, ..., 1 of each class;
            -1 for classes without objects.
        images: Number of images.
        objects: Number of objects, without crowds.
        detections: Number of detections.
    """

    summary: dict[str, float | None]
    per_class: dict[str, dict[str, float | int | None]]
    precision: np.ndarray
    images: int
    objects: int
    detections: int

    def as_dict(self) -> dict[str, Any]:
        """All but the curves, ready for JSON."""
        counts = {"images": self.images, "objects": self.objects, "detections": self.detections}
        return {**self.summary, **counts, "per_class": self.per_class}

    def table(self) -> str:
        """The twelve numbers as text."""
        lines = [
            f"{name:<10} {_shown(self.summary[name]):>6}  {meaning}"
            for name, meaning in SUMMARY.items()
        ]
        return "\n".join(lines)

    def class_table(self) -> str:
        """The classes that have objects, as text."""
        width = max([5, *(len(name) for name in self.per_class)])
        lines = [f"{'class':<{width}} objects     AP   AP50"]
        lines += [
            f"{name:<{width}} {row['objects']:>7} {_shown(row['AP']):>6} {_shown(row['AP50']):>6}"
            for name, row in self.per_class.items()
            if row["objects"]
        ]
        return "\n".join(lines)


class CocoMetrics:
    """Collects detections and ground truth batch by batch and computes the metrics.

    Args:
        classes: The classes of the detector.
    """

    def __init__(self, classes: ClassList) -> None:
        self.classes = classes
        self._images = 0
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def update(
        self,
        detections: list[dict[str, torch.Tensor]],
        targets: list[dict[str, torch.Tensor]],
    ) -> None:
        """Adds a batch.

        Args:
            detections: For each image ``boxes`` [D, 4] (x1, y1, x2, y2), ``labels`` [D] from 1 and
                ``scores`` [D].
            targets: For each image ``boxes`` [N, 4], ``labels`` [N], ``areas`` [N] and ``crowd``
                [N], in the same pixels.

        Raises:
            ValueError: The two lists differ in length.
        """
        for found, truth in zip(detections, targets, strict=True):
            self._images += 1
            crowd = truth["crowd"].tolist()
            for i, entry in enumerate(self._entries(truth)):
                entry["iscrowd"] = entry["ignore"] = int(crowd[i])
                entry["area"] = float(truth["areas"][i])
                # Zero would mean "unmatched" to pycocotools.
                entry["id"] = len(self._truth) + 1
                self._truth.append(entry)
            scores = found["scores"].tolist()
            for score, entry in zip(scores, self._entries(found), strict=True):
                entry["score"] = score
                entry["area"] = entry["bbox"][2] * entry["bbox"][3]
                entry["iscrowd"] = 0
                entry["id"] = len(self._found) + 1
                self._found.append(entry)

    def compute(self) -> EvaluationResult:
        """The metrics of all that was added."""
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does.
            run = COCOeval(self._as_coco(self._truth), self._as_coco(self._found), "bbox")
            run.evaluate()
            run.accumulate()
            run.summarize()
        # [IoU, recall, class, area, detections]: 10, 101, K, (all, small, ...), (1, 10, 100)
        precision = run.eval["precision"][:, :, :, 0, 2]
        per_class: dict[str, dict[str, float | int | None]] = {}
        counts = np.zeros(len(self.classes), dtype=np.int64)
        for entry in self._truth:
            counts[entry["category_id"] - 1] += not entry["iscrowd"]
        for index, name in enumerate(self.classes.names):
            per_class[name] = {
                "AP": _mean(precision[:, :, index]),
                "AP50": _mean(precision[0, :, index]),
                "objects": int(counts[index]),
            }
        values = [None if value < 0 else float(value) for value in run.stats]
        return EvaluationResult(
            summary=dict(zip(SUMMARY, values, strict=True)),
            per_class=per_class,
            precision=precision[0],
            images=self._images,
            objects=int(counts.sum()),
            detections=len(self._found),
        )

    def _entries(self, boxes_and_labels: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        boxes = boxes_and_labels["boxes"].double().cpu()  # [N, 4]
        sides = boxes[:, 2:] - boxes[:, :2]  # [N, 2]
        rows = torch.cat([boxes[:, :2], sides], dim=1).tolist()
        labels = boxes_and_labels["labels"].tolist()
        return [
            {"image_id": self._images, "category_id": label, "bbox": row}
            for label, row in zip(labels, rows, strict=True)
        ]

    def _as_coco(self, annotations: list[dict[str, Any]]) -> Any:
        from pycocotools.coco import COCO

        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(self._images)],
            "categories": [{"id": i + 1, "name": n} for i, n in enumerate(self.classes.names)],
            "annotations": annotations,
        }
        coco.createIndex()
        return coco


def _mean(precision: np.ndarray) -> float | None:
    """Mean over what is defined; -1 marks what is not."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None


def _shown(value: float | int | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
