"""Average precision of PASCAL VOC, as its development kit computes it.

Each detection of a class, the most confident first, is compared with the object of its class in its
image that it overlaps most. At an IoU of at least 0.5 it is a true positive if it is the first on
that object, else a false positive; detections of difficult objects are ignored.

Source: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010, section 4.2,
and ``VOCevaldet.m`` of the kits of 2007 (eleven points) and 2010 (area).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rcnn_ext.metrics.results import ImageResult, box_ious

# At the recalls 0, 0.1, ..., 1 (VOC 2007), and under the whole curve (since VOC 2010).
VOC_SUMMARY = {
    "VOC_AP": "at IoU 0.50, area under the curve",
    "VOC_AP11": "at IoU 0.50, mean at eleven recalls",
}


@dataclass(frozen=True, eq=False)
class VocCurve:
    """Precision and recall of a class over its detections, the most confident first.

    Attributes:
        recall: float64 [D], without detections of difficult objects.
        precision: float64 [D].
        objects: Number of objects that are not difficult.
    """

    recall: np.ndarray
    precision: np.ndarray
    objects: int

    def area(self) -> float | None:
        """Return the area under the curve, with precision made monotonic from the right."""
        if not self.objects:
            return None
        highest = np.maximum.accumulate(self.precision[::-1])[::-1]
        gained = np.diff(self.recall, prepend=0.0)
        return float((gained * highest).sum())

    def eleven_points(self) -> float | None:
        """Return the mean of the best precision at a recall of at least 0, 0.1, ..., 1."""
        if not self.objects:
            return None
        # A recall of 3/10 must count at 0.3, whatever the rounding of either.
        best = [
            self.precision[self.recall >= tenth / 10 - 1e-9].max(initial=0.0) for tenth in range(11)
        ]
        return float(np.mean(best))


def voc_curves(
    results: Sequence[ImageResult], num_labels: int, iou_threshold: float = 0.5
) -> list[VocCurve]:
    """Compute the precision-recall curve of each class.

    Args:
        results: Images with their detections.
        num_labels: Number of classes K, without background.
        iou_threshold: Minimum IoU of a detection and its object.

    Returns:
        K curves, for the labels 1 to K.
    """
    columns = [_outcomes(result, iou_threshold) for result in results]
    offsets = np.cumsum([0, *(len(result.labels) for result in results)])
    labels = np.concatenate([np.zeros(0, np.int64), *(r.found_labels for r in results)])
    scores = np.concatenate([np.zeros(0), *(r.scores for r in results)])
    # The object that each detection is compared with, counted through all images; -1 for none.
    objects = np.concatenate(
        [
            np.zeros(0, np.int64),
            *(
                np.where(i >= 0, i + offset, -1)
                for (i, _), offset in zip(columns, offsets[:-1], strict=True)
            ),
        ]
    )
    ignored = np.concatenate([np.zeros(0, bool), *(skip for _, skip in columns)])
    truth = np.concatenate([np.zeros(0, np.int64), *(r.labels[~r.ignored] for r in results)])
    return [
        _curve(scores[of], objects[of], ignored[of], int((truth == label).sum()))
        for label in range(1, num_labels + 1)
        for of in [labels == label]
    ]


def _outcomes(result: ImageResult, iou_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the object of each detection or -1, and whether that object is ignored."""
    if not len(result.labels) or not len(result.found_labels):
        none = np.full(len(result.found_labels), -1)
        return none, np.zeros(len(none), bool)
    ious = box_ious(result.found_boxes, result.boxes)  # [D, N]
    ious[result.found_labels[:, None] != result.labels[None]] = -1
    best = ious.argmax(axis=1)  # [D]
    reached = ious[np.arange(len(ious)), best] >= iou_threshold
    return np.where(reached, best, -1), reached & result.ignored[best]


def _curve(scores: np.ndarray, objects: np.ndarray, ignored: np.ndarray, count: int) -> VocCurve:
    order = np.argsort(-scores, kind="stable")
    objects = objects[order][~ignored[order]]
    true_positive = np.zeros(len(objects), bool)
    # The first detection of each object: np.unique returns first indices.
    found, first = np.unique(objects, return_index=True)
    true_positive[first[found >= 0]] = True
    hits = true_positive.cumsum()
    recall = hits / count if count else np.zeros(len(hits))
    return VocCurve(recall, hits / np.arange(1, len(hits) + 1), count)
