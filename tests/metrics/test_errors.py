"""The kinds of errors on images made for each of them, and their pictures."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.cli import main
from rcnn_ext.data import ClassList
from rcnn_ext.data.images import ImageReader
from rcnn_ext.metrics.error_pictures import write_error_pictures
from rcnn_ext.metrics.errors import CATEGORIES, detection_errors
from rcnn_ext.metrics.results import ImageResult
from tests.metrics.test_voc_metric import FAR, A, B, image

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval comes with the extra train")

from rcnn_ext.metrics.coco import detection_metrics

CLASSES = ClassList(("cat", "dog"), (1, 2))
GOOD = [0, 0, 10, 8]  # IoU 0.8 with A
BAD = [0, 0, 10, 3]  # 0.3
SLIGHT = [0, 0, 10, 0.5]  # 0.05


def counts(*images, **options):
    report = detection_errors(images, CLASSES, **options)
    assert set(report.counts) == set(report.confident_counts) == set(CATEGORIES)
    return {name: count for name, count in report.counts.items() if count}


def costs(*images):
    return detection_errors(images, CLASSES).costs


@pytest.mark.parametrize(
    ("detection", "expected"),
    [
        ((A, 1, 0.9), {}),
        ((GOOD, 1, 0.9), {}),
        ((GOOD, 2, 0.9), {"classification": 1}),
        ((BAD, 1, 0.9), {"localization": 1}),
        ((BAD, 2, 0.9), {"both": 1, "missed": 1}),
        ((SLIGHT, 1, 0.9), {"background": 1, "missed": 1}),
        ((SLIGHT, 2, 0.9), {"background": 1, "missed": 1}),
        ((FAR, 1, 0.9), {"background": 1, "missed": 1}),
    ],
)
def test_one_detection_of_one_object(detection, expected):
    assert counts(image([(A, 1)], [detection])) == expected


def test_thresholds_are_those_of_the_definition():
    half, tenth = [0, 0, 10, 5], [0, 0, 10, 1]
    assert counts(image([(A, 1)], [(half, 1, 0.9)])) == {}
    assert counts(image([(A, 1)], [(half, 2, 0.9)])) == {"classification": 1}
    assert counts(image([(A, 1)], [(tenth, 1, 0.9)])) == {"localization": 1}
    assert counts(image([(A, 1)], [(tenth, 2, 0.9)])) == {"background": 1, "missed": 1}


def test_the_second_detection_of_an_object_is_a_duplicate_and_a_worse_placed_one_is_not():
    one = image([(A, 1)], [(A, 1, 0.9), (GOOD, 1, 0.8), (BAD, 1, 0.7)])
    assert counts(one) == {"duplicate": 1, "localization": 1}
    # The better score matches, whatever the IoU.
    assert counts(image([(A, 1)], [(GOOD, 1, 0.9), (A, 1, 0.8)])) == {"duplicate": 1}


def test_the_class_error_on_an_object_that_is_found_too():
    one = image([(A, 1)], [(A, 1, 0.9), (GOOD, 2, 0.95)])
    assert counts(one) == {"classification": 1}


def test_a_place_error_goes_before_a_class_error_and_that_before_a_duplicate():
    near = [0, 0, 10, 9]
    beside = [0, 6, 10, 16]  # IoU 0.4 / 1.6 = 0.25 with A
    two = image([(beside, 1), (A, 2)], [(near, 1, 0.9)])
    assert counts(two) == {"localization": 1, "missed": 1}
    both = image([(A, 1), (GOOD, 2)], [(A, 1, 0.9), (A, 1, 0.8), (GOOD, 2, 0.95)])
    assert counts(both) == {"classification": 1}


def test_objects_and_detections_alone():
    assert counts(image([(A, 1), (B, 2)], [])) == {"missed": 2}
    assert counts(image([], [(A, 1, 0.9), (B, 1, 0.1)])) == {"background": 2}
    assert counts(image()) == {}
    assert counts() == {}
    assert costs(image()) == dict.fromkeys(CATEGORIES)


def test_crowds_excuse_detections_of_their_class_and_are_not_missed():
    inside = [(21, 21, 25, 25), (30, 30, 36, 36)]
    found = [(box, 1, 0.9) for box in inside]
    assert counts(image([(B, 1)], found, crowd=[0])) == {}
    assert counts(image([(B, 2)], found, crowd=[0])) == {"background": 2}
    assert counts(image([(B, 1)], [], crowd=[0])) == {}
    assert counts(image([(B, 1)], [], difficult=[0])) == {"missed": 1}


def test_confident_errors_are_counted_as_if_there_were_no_others():
    one = image([(A, 1)], [(A, 1, 0.3), (GOOD, 2, 0.9), (FAR, 1, 0.1)])
    report = detection_errors([one], CLASSES, min_score=0.5)
    assert report.counts["classification"] == report.confident_counts["classification"] == 1
    assert (report.counts["background"], report.confident_counts["background"]) == (1, 0)
    alone = image([(A, 1)], [(A, 1, 0.3)])
    report = detection_errors([alone], CLASSES, min_score=0.5)
    assert (report.counts["missed"], report.confident_counts["missed"]) == (0, 1)
    assert "score>=0.5" in report.table()


def test_the_best_detections_of_a_class_count():
    found = [(FAR, 1, 0.9), (FAR, 1, 0.8), (FAR, 2, 0.1), (FAR, 1, 0.7)]
    assert counts(image([], found), max_detections=2) == {"background": 3}


def test_costs_are_the_gain_of_the_corrections():
    """Half of the objects are found: 51 of the 101 recalls have a precision of one."""
    for wrong in ((GOOD, 2, 0.9), (BAD, 1, 0.9)):
        (name,) = counts(image([(A, 1)], [wrong]))
        only = image([(A, 1), (B, 1)], [wrong, (B, 1, 0.8)])
        # Before: for class 1 at most one of two detections is right.
        before = detection_metrics([only], CLASSES).summary["AP50"]
        assert costs(only)[name] == pytest.approx(1 - before), name
    twice = image([(A, 1)], [(FAR, 1, 0.9), (A, 1, 0.8), (GOOD, 1, 0.7)])
    assert costs(twice)["background"] == pytest.approx(0.5)
    assert costs(twice)["duplicate"] == pytest.approx(0.0)
    first = image([(A, 1), (B, 1)], [(A, 1, 0.9), (GOOD, 1, 0.8), (B, 1, 0.7)])
    # Recalls above one half have a precision of 2/3 with the duplicate between.
    assert costs(first)["duplicate"] == pytest.approx(50 / 101 / 3)
    missed = image([(A, 1), (B, 1)], [(A, 1, 0.9)])
    assert costs(missed)["missed"] == pytest.approx(50 / 101)
    assert costs(image([(A, 1)], []))["missed"] == pytest.approx(1.0)


def test_of_several_corrections_on_an_object_the_best_counts():
    """Correcting makes one true positive of both: two would be more than the objects."""
    one = image([(A, 1)], [(BAD, 1, 0.9), ([0, 0, 10, 4], 1, 0.8)])
    assert counts(one) == {"localization": 2}
    assert costs(one)["localization"] == pytest.approx(1.0)
    found = image([(A, 1)], [(A, 1, 0.5), (BAD, 1, 0.9)])
    assert costs(found)["localization"] == pytest.approx(0.5)


def random_images(seed, crowd=0.1):
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(30):
        count = int(generator.integers(0, 7))
        corner = generator.random((count, 2)) * 60
        boxes = np.concatenate([corner, corner + 8 + generator.random((count, 2)) * 30], axis=1)
        source = generator.integers(0, count, 12) if count else np.zeros(0, np.int64)
        labels = generator.integers(1, 3, count)
        noise = generator.normal(0, 1, (len(source), 4)) * generator.choice([0.5, 3, 9])
        images.append(
            ImageResult(
                boxes=boxes,
                labels=labels,
                areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
                crowd=generator.random(count) < crowd,
                difficult=np.zeros(count, bool),
                found_boxes=boxes[source] + noise,
                found_labels=np.where(generator.random(len(source)) < 0.7, labels[source], 1),
                scores=generator.random(len(source)),
            )
        )
    return images


@pytest.mark.parametrize("seed", range(4))
def test_every_detection_is_right_or_one_error_and_the_rest_follows_coco(seed):
    """With all false positives and missed objects corrected, nothing is left to gain."""
    images = random_images(seed, crowd=0)
    report = detection_errors(images, CLASSES)
    matched = round(
        sum(
            row["objects"] * _recall_at_half(images, label)
            for label, row in enumerate(detection_metrics(images, CLASSES).per_class.values(), 1)
        )
    )
    false_positives = sum(report.counts.values()) - report.counts["missed"]
    assert matched + false_positives == sum(len(one.scores) for one in images)
    assert all(0 <= cost < 1 for cost in report.costs.values())


def _recall_at_half(images, label):
    """Recall of a class by COCO, which counts as many matches as there are."""
    from rcnn_ext.metrics.coco import _annotations, _coco_arrays

    arrays = _coco_arrays(*_annotations(images), len(images), CLASSES, [1, 10, 100])
    return float(arrays["recall"][0, label - 1, 0, 2])


def test_the_worst_come_first_and_are_drawn(tmp_path):
    picture = Image.new("RGB", (300, 200), (90, 90, 90))
    picture.save(tmp_path / "名前 1.png")
    big, small = (100, 50, 200, 150), (10, 10, 20, 20)
    one = image(
        [(big, 1), (small, 2), ((250, 20, 290, 60), 1)],
        [((100, 50, 200, 145), 2, 0.9), ((20, 120, 60, 160), 1, 0.6), ((20, 120, 60, 180), 2, 0.8)],
    )
    report = detection_errors([one], CLASSES, max_examples=2)
    assert [error.weight for error in report.worst["background"]] == [0.8, 0.6]
    assert [error.object for error in report.worst["missed"]] == [2, 1]
    assert report.worst["classification"][0].iou == pytest.approx(0.95)
    record = SimpleNamespace(path=tmp_path / "名前 1.png", width=300, height=200)
    annotations = SimpleNamespace(images=[record], reader=ImageReader())
    stale = tmp_path / "errors" / "both" / "01_old.jpg"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    kept = tmp_path / "errors" / "missed" / "notes.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    folders = write_error_pictures(tmp_path, annotations, [one], report, CLASSES)
    assert {path.name for path in folders} == {"classification", "background", "missed"}
    assert not stale.exists()
    assert kept.exists()
    names = sorted(path.name for path in (tmp_path / "errors" / "background").iterdir())
    assert names == ["01_名前 1.jpg", "02_名前 1.jpg"]
    for path in (tmp_path / "errors").rglob("*.jpg"):
        with Image.open(path) as drawn:
            assert drawn.width > 2 * 480
            assert np.asarray(drawn).std() > 10


def test_eval_prints_and_writes_errors(tiny_run, tmp_path, capsys):
    arguments = ["eval", str(tiny_run.out), "--data", str(tiny_run.data), "--out", str(tmp_path)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "dAP50" in printed
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["errors"]["counts"]) == list(CATEGORIES)
    for name, count in metrics["errors"]["confident"]["counts"].items():
        folder = tmp_path / "errors" / name
        drawn = len(list(folder.glob("*.jpg"))) if folder.is_dir() else 0
        assert drawn == min(8, count), name
    assert any(metrics["errors"]["counts"].values())
