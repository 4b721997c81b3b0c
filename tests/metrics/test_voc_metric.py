"""VOC's average precision: by hand, and against the devkit's procedure detection by detection."""

from __future__ import annotations

import numpy as np
import pytest

from rcnn_ext.metrics.results import ImageResult, box_ious
from rcnn_ext.metrics.voc import voc_curves

A, B, FAR = [0, 0, 10, 10], [20, 20, 40, 40], [60, 60, 70, 70]


def image(truth=(), found=(), difficult=(), crowd=()):
    """Truth as (box, label), detections as (box, label, score)."""
    flags = [np.isin(np.arange(len(truth)), list(which)) for which in (crowd, difficult)]
    boxes = np.array([box for box, _ in truth], float).reshape(-1, 4)
    return ImageResult(
        boxes=boxes,
        labels=np.array([label for _, label in truth], np.int64),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        crowd=flags[0],
        difficult=flags[1],
        found_boxes=np.array([box for box, _, _ in found], float).reshape(-1, 4),
        found_labels=np.array([label for _, label, _ in found], np.int64),
        scores=np.array([score for _, _, score in found], float),
    )


def numbers(*images, labels=1):
    return [(curve.area(), curve.eleven_points()) for curve in voc_curves(images, labels)]


def test_right_wrong_right():
    """Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    found = [(A, 1, 0.9), (FAR, 1, 0.8), (B, 1, 0.7)]
    ((area, eleven),) = numbers(image([(A, 1), (B, 1)], found))
    assert area == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # Recalls 0 to 0.5 are six points, 0.6 to 1 are five.
    assert eleven == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_half_of_the_objects_at_full_precision():
    ((area, eleven),) = numbers(image([(A, 1), (B, 1)], [(A, 1, 0.9)]))
    assert (area, eleven) == (pytest.approx(0.5), pytest.approx(6 / 11))


def test_a_recall_of_three_tenths_counts_at_three_tenths():
    boxes = [[100 * i, 0, 100 * i + 10, 10] for i in range(10)]
    found = [(box, 1, 0.9) for box in boxes[:3]]
    ((_, eleven),) = numbers(image([(box, 1) for box in boxes], found))
    assert eleven == pytest.approx(4 / 11)


def test_a_second_detection_of_an_object_is_a_mistake():
    """Right, wrong, right: the duplicate comes between."""
    found = [(A, 1, 0.9), ([0, 0, 10, 9], 1, 0.8), (B, 1, 0.7)]
    ((area, _),) = numbers(image([(A, 1), (B, 1)], found))
    assert area == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_detection_is_compared_with_the_object_it_overlaps_most_even_if_that_is_taken():
    """The second would fit the other object as well, at an IoU of 0.6, but does not get it."""
    near = [0, 0, 10, 6]  # IoU 0.6 with A
    found = [(A, 1, 0.9), (A, 1, 0.8)]
    ((area, _),) = numbers(image([(A, 1), (near, 1)], found))
    assert area == pytest.approx(0.5)


@pytest.mark.parametrize("flag", ["difficult", "crowd"])
def test_objects_that_need_not_be_found_count_for_nothing(flag):
    truth = [(A, 1), (B, 1)]
    found = [(B, 1, 0.9), (B, 1, 0.8), (A, 1, 0.7)]
    ((area, eleven),) = numbers(image(truth, found, **{flag: [1]}))
    assert (area, eleven) == (1.0, 1.0)
    ((area, _),) = numbers(image(truth, found[:2], **{flag: [1]}))
    assert area == 0.0


def test_an_iou_of_exactly_one_half_is_enough():
    ((area, _),) = numbers(image([(A, 1)], [([0, 0, 10, 5], 1, 0.9)]))
    assert area == 1.0
    ((area, _),) = numbers(image([(A, 1)], [([0, 0, 10, 4.9], 1, 0.9)]))
    assert area == 0.0


def test_classes_and_images_are_told_apart():
    first = image([(A, 1)], [(A, 2, 0.9)])
    second = image([(A, 2)], [(A, 1, 0.8), (A, 2, 0.7)])
    one, two, three = numbers(first, second, labels=3)
    assert one == (0.0, 0.0)
    assert two == (pytest.approx(0.5), pytest.approx(0.5))
    assert three == (None, None)


def test_equal_scores_keep_their_order():
    ((first, _),) = numbers(image([(A, 1)], [(A, 1, 0.5), (FAR, 1, 0.5)]))
    ((last, _),) = numbers(image([(A, 1)], [(FAR, 1, 0.5), (A, 1, 0.5)]))
    assert (first, last) == (1.0, 0.5)


def devkit(images, label, eleven):
    """The devkit's procedure: one detection after another, and marks on the objects."""
    detections = [
        (score, number, box)
        for number, one in enumerate(images)
        for box, found, score in zip(one.found_boxes, one.found_labels, one.scores, strict=True)
        if found == label
    ]
    detections.sort(key=lambda entry: -entry[0])
    taken = [np.zeros(len(one.labels), bool) for one in images]
    right, wrong = [], []
    for _, number, box in detections:
        one = images[number]
        best, place = -1.0, -1
        for index in np.flatnonzero(one.labels == label):
            overlap = float(box_ious(box[None], one.boxes[index][None])[0, 0])
            if overlap > best:
                best, place = overlap, index
        hit = best >= 0.5
        if hit and one.difficult[place]:
            right.append(0)
            wrong.append(0)
        elif hit and not taken[number][place]:
            taken[number][place] = True
            right.append(1)
            wrong.append(0)
        else:
            right.append(0)
            wrong.append(1)
    count = sum(int(((one.labels == label) & ~one.difficult).sum()) for one in images)
    tp, fp = np.cumsum(right), np.cumsum(wrong)
    recall, precision = tp / count, tp / np.maximum(tp + fp, 1)
    if eleven:
        points = [
            max([p for r, p in zip(recall, precision, strict=True) if r >= t - 1e-9], default=0.0)
            for t in np.linspace(0, 1, 11)
        ]
        return sum(points) / 11
    recall = np.concatenate([[0], recall, [1]])
    precision = np.concatenate([[0], precision, [0]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[steps + 1] - recall[steps]) * precision[steps + 1]).sum())


def test_agrees_with_the_procedure_of_the_devkit_on_random_scenes():
    random = np.random.default_rng(0)

    def boxes(count):
        corner = random.uniform(0, 60, (count, 2))
        return np.concatenate([corner, corner + random.uniform(10, 40, (count, 2))], axis=1)

    images = []
    for _ in range(40):
        truth = boxes(random.integers(0, 6))
        near = truth.repeat(3, axis=0) + random.normal(0, 2.5, (3 * len(truth), 4))
        found = np.concatenate([near, boxes(3)])
        labels = random.integers(1, 3, len(truth))
        guess = np.where(random.random(3 * len(truth)) < 0.8, labels.repeat(3), 1)
        found_labels = np.concatenate([guess, random.integers(1, 3, 3)])
        scores = random.random(len(found)).round(2)  # With ties.
        one = image(
            list(zip(truth, labels, strict=True)),
            list(zip(found, found_labels, scores, strict=True)),
            difficult=np.flatnonzero(random.random(len(truth)) < 0.2),
        )
        images.append(one)
    for label, (area, eleven) in enumerate(numbers(*images, labels=2), start=1):
        assert area == pytest.approx(devkit(images, label, eleven=False), abs=1e-12)
        assert eleven == pytest.approx(devkit(images, label, eleven=True), abs=1e-12)
        assert 0.2 < area < 0.95
