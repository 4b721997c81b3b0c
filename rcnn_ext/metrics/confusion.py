"""What is taken for what, and which images fare best and worst, at one confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rcnn_ext.metrics.results import ImageResult, box_ious

IOU_THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class ImageQuality:
    """How well the detections of an image fit.

    Attributes:
        right: Detections of the right class on an object.
        wrong: Other detections.
        missed: Objects without such a detection.
        overlap: Mean IoU of the right detections with their objects; 0 without any.
    """

    right: int
    wrong: int
    missed: int
    overlap: float

    @property
    def f1(self) -> float:
        """2 right / (2 right + wrong + missed); 1 where there was nothing and nothing was found."""
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else 1.0

    @property
    def rank(self) -> tuple[float, int, float]:
        """Higher for better images; of equally good ones, the one with more objects."""
        errors = self.wrong + self.missed
        return self.f1, self.right - errors, self.overlap


def match(result: ImageResult, least_score: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs detections with objects of any class.

    The pair with the largest IoU comes first, and each detection and object is in one pair at most.
    Pairs of the same class go before all others, or a slightly better box of another class would
    hide a right answer.

    Args:
        result: An image.
        least_score: Detections below it do not count.

    Returns:
        Indices of detections [P] and of their objects [P], and their IoU [P]. Pairs with objects
        that need not be found are among them.
    """
    ious = box_ious(result.found_boxes, result.boxes)  # [D, N]
    ious[result.scores < least_score] = 0
    same = result.found_labels[:, None] == result.labels[None]  # [D, N]
    detections, objects = np.nonzero(ious >= IOU_THRESHOLD)
    order = np.lexsort((-ious[detections, objects], ~same[detections, objects]))
    pairs: list[tuple[int, int]] = []
    free_detections, free_objects = np.ones(len(ious), bool), np.ones(len(result.labels), bool)
    for detection, found in zip(detections[order], objects[order], strict=True):
        if free_detections[detection] and free_objects[found]:
            free_detections[detection] = free_objects[found] = False
            pairs.append((detection, found))
    taken = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return taken[:, 0], taken[:, 1], ious[taken[:, 0], taken[:, 1]]


def _counted(
    result: ImageResult, least_score: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs that count, their IoUs, and the detections and objects that are in none."""
    detections, objects, ious = match(result, least_score)
    alone = result.scores >= least_score
    alone[detections] = False
    # A crowd excuses every detection within it, not only one.
    if result.ignored.any():
        overlaps = box_ious(result.found_boxes, result.boxes[result.ignored])
        inside = _inside(result.found_boxes, result.boxes[result.crowd])
        alone &= ~((overlaps >= IOU_THRESHOLD).any(axis=1) | inside)
    counts = ~result.ignored[objects]
    missed = ~result.ignored
    missed[objects] = False
    return detections[counts], objects[counts], ious[counts], alone, missed


def _inside(boxes: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """Bool [D]: boxes of which at least half lies in one of the crowds."""
    low = np.maximum(boxes[:, None, :2], crowds[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], crowds[None, :, 2:])
    common = (high - low).clip(0).prod(axis=2)  # [D, C]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return (common >= 0.5 * areas[:, None]).any(axis=1) if common.shape[1] else areas < 0


def confusion_matrix(
    results: Sequence[ImageResult], num_labels: int, least_score: float
) -> np.ndarray:
    """Counts which class is taken for which.

    Args:
        results: Images with their detections.
        num_labels: Number of classes K, without background.
        least_score: Detections below it do not count.

    Returns:
        int64 [K + 1, K + 1]: rows are the true class, columns the one that was found; 0 is the
        background. Row 0 has detections of nothing, column 0 objects that were missed.
    """
    matrix = np.zeros((num_labels + 1, num_labels + 1), dtype=np.int64)
    for result in results:
        detections, objects, _, alone, missed = _counted(result, least_score)
        np.add.at(matrix, (result.labels[objects], result.found_labels[detections]), 1)
        np.add.at(matrix[0], result.found_labels[alone], 1)
        np.add.at(matrix[:, 0], result.labels[missed], 1)
    return matrix


def image_quality(result: ImageResult, least_score: float) -> ImageQuality:
    """How well the detections of an image fit, at one confidence."""
    detections, objects, ious, alone, missed = _counted(result, least_score)
    right = result.found_labels[detections] == result.labels[objects]
    mistaken = int((~right).sum())
    return ImageQuality(
        right=int(right.sum()),
        wrong=mistaken + int(alone.sum()),
        missed=mistaken + int(missed.sum()),
        overlap=float(ious[right].mean()) if right.any() else 0.0,
    )
