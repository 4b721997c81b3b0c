"""Errors of a detector by kind, as TIDE defines them, and what each kind costs.

A detection that matches no object, as COCO matches at an IoU of 0.5, is an error of one kind, tried
in this order; IoUs are those with the object of the class in question that overlaps most:

1. localization: IoU from 0.1 to below 0.5 with an object of its class;
2. classification: IoU of at least 0.5 with an object of another class;
3. duplicate: IoU of at least 0.5 with an object of its class that a better detection has matched;
4. background: IoU of at most 0.1 with every object;
5. both: all others, which are placed badly and of the wrong class.

An object without a match is missed, unless a localization or classification error is on it. The
cost of a kind is the AP at IoU 0.5 that is gained by correcting its errors: the best detection on
each object that had no match becomes a true positive, all others are dropped, and missed objects do
not count.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rcnn_ext.data.annotations import ClassList
from rcnn_ext.metrics.coco import DEFAULT_MAX_DETECTIONS
from rcnn_ext.metrics.results import ImageResult, box_ious, overlap_of_first

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1

CATEGORIES = {
    "classification": "placed well, but of another class",
    "localization": "of the right class, but placed badly",
    "both": "placed badly and of another class",
    "duplicate": "on an object that a better detection has found",
    "background": "where no object is",
    "missed": "objects that no detection is on",
}
_NAMES = tuple(CATEGORIES)
_CORRECTED = (_NAMES.index("classification"), _NAMES.index("localization"))
_MISSED = _NAMES.index("missed")
_CORRECT, _IGNORED = -1, -2  # Categories of detections that are no errors.


@dataclass(frozen=True)
class DetectionError:
    """One error.

    Attributes:
        category: One of ``CATEGORIES``.
        image: Index of the image.
        detection: Index of the detection in its image; None for a missed object.
        object: Index of the object in its image that overlaps most, among those that make it an
            error of its category; None for background.
        iou: IoU of both; 0 where one is None.
        weight: How bad it is among those of its category: the score of the detection, or the area
            of the object that is missed.
    """

    category: str
    image: int
    detection: int | None
    object: int | None
    iou: float
    weight: float


@dataclass(frozen=True)
class ErrorReport:
    """Errors of a detector by category.

    Attributes:
        counts: Number of errors, of detections with any score.
        confident_counts: Number of errors of the detections with a score of at least ``min_score``
            alone; objects that only others are on are missed.
        min_score: The score of confident detections.
        costs: AP at IoU 0.5 that is gained by correcting the errors of a category alone; None
            where there are no objects.
        worst: The worst confident errors of each category, worst first.
    """

    counts: dict[str, int]
    confident_counts: dict[str, int]
    min_score: float
    costs: dict[str, float | None]
    worst: dict[str, list[DetectionError]]

    def as_dict(self) -> dict[str, Any]:
        """Return all but the examples, ready for JSON."""
        return {
            "iou_thresholds": {"foreground": FOREGROUND_IOU, "background": BACKGROUND_IOU},
            "counts": self.counts,
            "confident": {"min_score": self.min_score, "counts": self.confident_counts},
            "dAP50": self.costs,
        }

    def table(self) -> str:
        """Return counts and costs as text."""
        scored = f"score>={self.min_score:g}"
        lines = [f"{'error':<14} {'all':>8} {scored:>10} {'dAP50':>6}"]
        for name, meaning in CATEGORIES.items():
            cost = self.costs[name]
            shown = "-" if cost is None else f"{cost:.3f}"
            counts = f"{self.counts[name]:>8} {self.confident_counts[name]:>10}"
            lines.append(f"{name:<14} {counts} {shown:>6}  {meaning}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class _Judged:
    """The detections and objects of an image that count.

    Attributes:
        kept: int64 [D], indices of the detections, best first.
        categories: int64 [D], an index of ``CATEGORIES``, ``_CORRECT`` or ``_IGNORED``.
        objects: int64 [D], the object of each detection; -1 for none.
        ious: float64 [D], IoU with it.
        matched: bool [N], objects with a match.
        missed: bool [N].
    """

    kept: np.ndarray
    categories: np.ndarray
    objects: np.ndarray
    ious: np.ndarray
    matched: np.ndarray
    missed: np.ndarray


def detection_errors(
    results: Sequence[ImageResult],
    classes: ClassList,
    *,
    min_score: float = 0.5,
    max_detections: int = DEFAULT_MAX_DETECTIONS,
    max_examples: int = 8,
) -> ErrorReport:
    """Sort the errors of a detector into TIDE's categories.

    As in COCO's metrics, crowds are ignored and difficult objects count.

    Args:
        results: Images with their detections.
        classes: The classes of the detector.
        min_score: Minimum score of confident detections, which examples are taken from.
        max_detections: Maximum number of detections of a class in an image that count.
        max_examples: Maximum number of examples of a category.
    """
    judged = [_judge(result, 0.0, max_detections) for result in results]
    confident = [_judge(result, min_score, max_detections) for result in results]
    return ErrorReport(
        counts=_count(judged),
        confident_counts=_count(confident),
        min_score=min_score,
        costs=_costs(results, judged, len(classes)),
        worst={
            name: _worst(results, confident, index, max_examples)
            for index, name in enumerate(_NAMES)
        },
    )


def _judge(result: ImageResult, min_score: float, max_detections: int) -> _Judged:
    kept = _best_of_each_class(result, min_score, max_detections)
    labels, boxes = result.found_labels[kept], result.found_boxes[kept]
    ious = box_ious(boxes, result.boxes)  # [D, N]
    ious[:, result.crowd] = 0
    same = labels[:, None] == result.labels[None]
    own, other = np.where(same, ious, 0), np.where(same, 0, ious)
    categories = np.full(len(kept), _NAMES.index("both"))
    objects, overlaps = np.full(len(kept), -1), np.zeros(len(kept))

    matched = np.zeros(len(result.labels), bool)
    # The best detection first, and of its objects the one that it overlaps most.
    rows, columns = np.nonzero(own >= FOREGROUND_IOU)
    order = np.lexsort((-own[rows, columns], rows))
    taken_by: dict[int, int] = {}
    of_detection: dict[int, int] = {}
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in of_detection and column not in taken_by:
            of_detection[row], taken_by[column] = column, row
    if of_detection:
        found, best = list(of_detection), list(of_detection.values())
        matched[best] = True
        categories[found], objects[found], overlaps[found] = _CORRECT, best, own[found, best]
    is_open = categories != _CORRECT
    if result.crowd.any():
        in_crowd = overlap_of_first(boxes, result.boxes[result.crowd]) >= FOREGROUND_IOU
        in_crowd &= same[:, result.crowd]
        ignored = is_open & in_crowd.any(axis=1)
        categories[ignored] = _IGNORED
        is_open &= ~ignored

    def assign(name: str, values: np.ndarray, holds: Any) -> None:
        """Put detections into a category where their highest value holds."""
        nonlocal is_open
        best = values.argmax(axis=1) if values.shape[1] else np.full(len(values), -1)
        highest = values.max(axis=1, initial=0)
        chosen = is_open & holds(highest)
        categories[chosen] = _NAMES.index(name)
        overlapping = chosen & (highest > 0)
        objects[overlapping], overlaps[overlapping] = best[overlapping], highest[overlapping]
        is_open = is_open & ~chosen

    assign("localization", own, lambda iou: (iou >= BACKGROUND_IOU) & (iou < FOREGROUND_IOU))
    assign("classification", other, lambda iou: iou >= FOREGROUND_IOU)
    assign("duplicate", own * matched, lambda iou: iou >= FOREGROUND_IOU)
    assign("background", ious, lambda iou: iou <= BACKGROUND_IOU)
    assign("both", ious, lambda iou: iou > BACKGROUND_IOU)

    missed = ~matched & ~result.crowd
    missed[objects[np.isin(categories, _CORRECTED)]] = False
    return _Judged(kept, categories, objects, overlaps, matched, missed)


def _best_of_each_class(result: ImageResult, min_score: float, max_detections: int) -> np.ndarray:
    """Return indices of the detections that count, best first."""
    order = np.argsort(-result.scores, kind="stable")
    order = order[result.scores[order] >= min_score]
    if len(order) <= max_detections:
        return order
    labels = result.found_labels[order]
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.empty(len(order), np.int64)
    rank[by_class] = np.arange(len(order)) - starts
    return order[rank < max_detections]


def _count(judged: Sequence[_Judged]) -> dict[str, int]:
    categories = np.concatenate([np.zeros(0, np.int64), *(one.categories for one in judged)])
    counts = np.bincount(categories[categories >= 0], minlength=len(_NAMES))
    counts[_MISSED] = sum(int(one.missed.sum()) for one in judged)
    return dict(zip(_NAMES, counts.tolist(), strict=True))


def _worst(
    results: Sequence[ImageResult], judged: Sequence[_Judged], category: int, max_examples: int
) -> list[DetectionError]:
    images, items, weights = [], [], []
    for image, (result, one) in enumerate(zip(results, judged, strict=True)):
        if category == _MISSED:
            of = np.flatnonzero(one.missed)
            weights.append(result.areas[of])
        else:
            of = np.flatnonzero(one.categories == category)
            weights.append(result.scores[one.kept[of]])
        images.append(np.full(len(of), image))
        items.append(of)
    if not images:
        return []
    weight = np.concatenate(weights)
    worst = np.argsort(-weight, kind="stable")[:max_examples]
    chosen = zip(
        np.concatenate(images)[worst].tolist(),
        np.concatenate(items)[worst].tolist(),
        weight[worst].tolist(),
        strict=True,
    )
    return [
        DetectionError(_NAMES[category], image, None, index, 0.0, weight)
        if category == _MISSED
        else _error(_NAMES[category], image, judged[image], index, weight)
        for image, index, weight in chosen
    ]


def _error(name: str, image: int, judged: _Judged, index: int, score: float) -> DetectionError:
    item = int(judged.objects[index])
    return DetectionError(
        name,
        image,
        int(judged.kept[index]),
        None if item < 0 else item,
        float(judged.ious[index]),
        score,
    )


def _costs(
    results: Sequence[ImageResult], judged: Sequence[_Judged], num_labels: int
) -> dict[str, float | None]:
    """Return the AP at IoU 0.5 that correcting the errors of each category gains."""
    none = np.zeros(0, np.int64)
    pairs = list(zip(results, judged, strict=True))
    labels = np.concatenate([none, *(r.found_labels[one.kept] for r, one in pairs)])
    scores = np.concatenate([np.zeros(0), *(r.scores[one.kept] for r, one in pairs)])
    categories = np.concatenate([none, *(one.categories for one in judged)])
    offsets = np.cumsum([0, *(len(r.labels) for r in results)])
    objects = np.concatenate(
        [
            none,
            *(
                np.where(one.objects >= 0, one.objects + offset, -1)
                for one, offset in zip(judged, offsets[:-1], strict=True)
            ),
        ]
    )
    object_labels = np.concatenate([none, *(r.labels for r in results)])
    counted = np.concatenate([none, *(r.labels[~r.crowd] for r in results)])
    missed = np.concatenate([none, *(r.labels[one.missed] for r, one in pairs)])
    matched = np.concatenate([np.zeros(0, bool), *(one.matched for one in judged)])
    positives = np.bincount(counted, minlength=num_labels + 1)

    # Of the detections that would be right after correction, the best on each object.
    correctable = np.flatnonzero(np.isin(categories, _CORRECTED))
    correctable = correctable[~matched[objects[correctable]]]
    order = correctable[np.argsort(-scores[correctable], kind="stable")]
    is_best = np.zeros(len(labels), bool)
    is_best[order[np.unique(objects[order], return_index=True)[1]]] = True

    is_correct, is_kept = categories == _CORRECT, categories != _IGNORED
    before = _mean_ap(labels[is_kept], scores[is_kept], is_correct[is_kept], positives)
    costs: dict[str, float | None] = {}
    for index, name in enumerate(_NAMES):
        of = categories == index
        fixed = of & is_best
        kept = is_kept & (~of | fixed)
        new_labels = np.where(fixed, object_labels[objects], labels) if fixed.any() else labels
        remaining = positives
        if index == _MISSED:
            remaining = positives - np.bincount(missed, minlength=num_labels + 1)
        after = _mean_ap(new_labels[kept], scores[kept], (is_correct | fixed)[kept], remaining)
        costs[name] = None if before is None else (after or 0.0) - before
        if after is None and before is not None:
            costs[name] = 1 - before  # Nothing is wrong any more.
    return costs


def _mean_ap(
    labels: np.ndarray, scores: np.ndarray, is_correct: np.ndarray, positives: np.ndarray
) -> float | None:
    """Return COCO's AP at one IoU, the mean over the classes with objects.

    Args:
        labels: int64 [D], from 1.
        scores: float64 [D].
        is_correct: bool [D].
        positives: int64 [K + 1], number of objects of each label.
    """
    recalls = np.linspace(0, 1, 101)
    values = []
    for label in np.flatnonzero(positives):
        of = np.flatnonzero(labels == label)
        hits = is_correct[of[np.argsort(-scores[of], kind="stable")]].cumsum()
        precision = hits / np.arange(1, len(hits) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(hits / positives[label], recalls, side="left")
        values.append(precision[at[at < len(hits)]].sum() / len(recalls))
    return math.fsum(values) / len(values) if values else None
