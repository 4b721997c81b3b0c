"""Confusion matrix, and true and false positives of each image, at one score threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rcnn_ext.metrics.results import ImageResult, box_ious, overlap_of_first

IOU_THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class ImageQuality:
    """Count the detections of an image that match objects.

    Attributes:
        true_positives: Detections that match an object of their class.
        false_positives: Other detections.
        false_negatives: Objects without a detection of their class.
        mean_iou: Mean IoU of the true positives with their objects; 0 without any.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    mean_iou: float

    @property
    def f1(self) -> float:
        """F1 score; 1 for an image without objects and detections."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / total if total else 1.0

    @property
    def rank(self) -> tuple[float, int, float]:
        """Sort key, higher for better images; of images with equal F1, more objects are better."""
        errors = self.false_positives + self.false_negatives
        return self.f1, self.true_positives - errors, self.mean_iou


def match(result: ImageResult, min_score: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match detections one to one with objects of any class, greedily by IoU.

    Pairs of equal class are matched before all others: otherwise a slightly better box of another
    class would take the object of a true positive.

    Args:
        result: Ground truth and detections of an image.
        min_score: Detections below it do not count.

    Returns:
        Indices of detections [P] and of their objects [P], and their IoU [P]. Pairs with ignored
        objects are among them.
    """
    ious = box_ious(result.found_boxes, result.boxes)  # [D, N]
    ious[result.scores < min_score] = 0
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


def _match_without_ignored(
    result: ImageResult, min_score: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Match detections, and drop what ignored objects excuse.

    Returns:
        Detections [P], objects [P] and IoU [P] of the pairs with objects that count; which
        detections are in no pair [D]; which objects are in no pair [N].
    """
    detections, objects, ious = match(result, min_score)
    unmatched = result.scores >= min_score
    unmatched[detections] = False
    # A crowd excuses every detection within it, not only the one that matches it.
    if result.ignored.any():
        overlaps = box_ious(result.found_boxes, result.boxes[result.ignored])
        inside = overlap_of_first(result.found_boxes, result.boxes[result.crowd]) >= 0.5
        unmatched &= ~((overlaps >= IOU_THRESHOLD).any(axis=1) | inside.any(axis=1))
    counts = ~result.ignored[objects]
    missed = ~result.ignored
    missed[objects] = False
    return detections[counts], objects[counts], ious[counts], unmatched, missed


def confusion_matrix(
    results: Sequence[ImageResult], num_labels: int, min_score: float
) -> np.ndarray:
    """Return the confusion matrix of the classes and the background.

    Args:
        results: Images with their detections.
        num_labels: Number of classes K, without background.
        min_score: Detections below it do not count.

    Returns:
        int64 [K + 1, K + 1]: rows are true classes and columns detected ones; 0 is the
        background. Row 0 has false positives without an object, column 0 objects without any
        detection.
    """
    matrix = np.zeros((num_labels + 1, num_labels + 1), dtype=np.int64)
    for result in results:
        detections, objects, _, unmatched, missed = _match_without_ignored(result, min_score)
        np.add.at(matrix, (result.labels[objects], result.found_labels[detections]), 1)
        np.add.at(matrix[0], result.found_labels[unmatched], 1)
        np.add.at(matrix[:, 0], result.labels[missed], 1)
    return matrix


def image_quality(result: ImageResult, min_score: float) -> ImageQuality:
    """Count true and false positives of an image at one score threshold."""
    detections, objects, ious, unmatched, missed = _match_without_ignored(result, min_score)
    correct = result.found_labels[detections] == result.labels[objects]
    mislabeled = int((~correct).sum())
    return ImageQuality(
        true_positives=int(correct.sum()),
        false_positives=mislabeled + int(unmatched.sum()),
        false_negatives=mislabeled + int(missed.sum()),
        mean_iou=float(ious[correct].mean()) if correct.any() else 0.0,
    )
