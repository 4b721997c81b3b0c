"""Confusion, the best and worst images, the metrics of localizers, and the pictures of all that."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.cli import main
from rcnn_ext.data import ClassList
from rcnn_ext.data.annotations import ImageReader
from rcnn_ext.metrics.confusion import confusion_matrix, image_quality
from rcnn_ext.metrics.localization import localization_metrics
from rcnn_ext.metrics.report import extremes, write_evaluation
from tests.metrics.test_voc_metric import FAR, A, B, image

NEAR_A = [0, 0, 10, 8]  # IoU 0.8 with A
NEARER_A = [0, 0, 10, 9]


def matrix(*images):
    return confusion_matrix(images, 2, 0.5).tolist()


def test_each_cell():
    #            found: background, 1, 2
    assert matrix(image([(A, 1)], [(A, 1, 0.9)])) == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert matrix(image([(A, 1)], [(A, 2, 0.9)])) == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert matrix(image([(A, 1)], [])) == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert matrix(image([], [(A, 2, 0.9)])) == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert matrix(image([(A, 1)], [(FAR, 1, 0.9)])) == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert matrix(image([(A, 1)], [(A, 1, 0.4)])) == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_an_object_is_found_once_and_by_its_own_class_first():
    found = [(NEARER_A, 2, 0.9), (NEAR_A, 1, 0.8)]
    assert matrix(image([(A, 1)], found)) == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    twice = [(A, 1, 0.9), (NEAR_A, 1, 0.8)]
    assert matrix(image([(A, 1)], twice)) == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_the_closest_pair_goes_first():
    """The worse box would leave the better one without an object."""
    other = [0, 0, 10, 7]
    found = [(other, 1, 0.9), (A, 1, 0.8)]
    assert matrix(image([(A, 1)], found)) == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert image_quality(image([(A, 1)], found), 0.5).mean_iou == 1.0


def test_what_need_not_be_found_is_neither_missed_nor_mistaken():
    for flag in ("difficult", "crowd"):
        one = image([(A, 1), (B, 2)], [(A, 1, 0.9), (B, 1, 0.9), (B, 2, 0.8)], **{flag: [1]})
        assert matrix(one) == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
        assert matrix(image([(A, 1)], [], **{flag: [0]})) == [[0] * 3] * 3
    inside = [(21, 21, 25, 25), (30, 30, 36, 36)]
    one = image([(B, 1)], [(box, 1, 0.9) for box in inside], crowd=[0])
    assert matrix(one) == [[0] * 3] * 3
    assert matrix(image([(B, 1)], [(inside[0], 1, 0.9)], difficult=[0]))[0] == [0, 1, 0]


def test_quality_of_an_image():
    good = image_quality(image([(A, 1), (B, 2)], [(A, 1, 0.9), (B, 2, 0.9)]), 0.5)
    counts = (good.true_positives, good.false_positives, good.false_negatives)
    assert (*counts, good.mean_iou, good.f1) == (2, 0, 0, 1.0, 1.0)
    mixed = image_quality(image([(A, 1), (B, 2)], [(NEAR_A, 1, 0.9), (B, 1, 0.9)]), 0.5)
    assert (mixed.true_positives, mixed.false_positives, mixed.false_negatives) == (1, 1, 1)
    assert mixed.mean_iou == pytest.approx(0.8)
    assert mixed.f1 == pytest.approx(0.5)
    assert image_quality(image(), 0.5).f1 == 1.0


def test_extremes_are_ranked_and_disjoint():
    images = [
        image([(A, 1)], []),  # all missed
        image(),  # nothing to see
        image([(A, 1)], [(A, 1, 0.9)]),
        image([(A, 1), (B, 2)], [(A, 1, 0.9), (B, 2, 0.9)]),
        image([(A, 1), (B, 2)], [(A, 1, 0.9)]),
    ]
    best, worst = extremes(images, 0.5)
    assert (best, worst) == ([3, 2], [0, 4])
    assert extremes(images, 0.5, max_images=1) == ([3], [0])
    assert extremes(images[:2], 0.5) == ([0], [])


def test_localizers_are_measured_by_their_best_answer():
    images = [
        image([(A, 1)], [(FAR, 2, 0.4), (NEAR_A, 1, 0.6)]),
        image([(A, 2)], [(A, 1, 0.9)]),
        image([(A, 2)], []),
        image([(A, 1), (B, 1)], [(A, 1, 0.9)]),  # no one right answer
        image([], [(A, 1, 0.9)]),
    ]
    result = localization_metrics(images, ClassList(("a", "b", "c"), (1, 2, 3)))
    assert result.summary["accuracy"] == pytest.approx(1 / 3)
    assert result.summary["IoU"] == pytest.approx(1.8 / 3)
    assert result.summary["IoU50"] == pytest.approx(2 / 3)
    assert result.summary["score"] == pytest.approx((1 / 3 + 0.6) / 2)
    assert result.per_class["a"]["objects"] == 1
    assert result.per_class["b"]["accuracy"] == 0
    assert result.per_class["c"] == {
        **dict.fromkeys(("score", "accuracy", "IoU", "IoU50")),
        "objects": 0,
    }
    assert "accuracy" in result.table()
    assert set(result.summary) == set(result.meanings)


def test_eval_writes_numbers_detections_curves_and_pictures(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["eval", str(tiny_run.out), "--data", str(tiny_run.data), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    names = {"metrics.json", "detections.json", "precision_recall.png", "confusion.png"}
    assert names <= {path.name for path in out.iterdir()}
    for path in out.iterdir():
        assert f"wrote {path}" in printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["confusion"]["names"] == ["background", "circle", "square", "triangle"]
    counts = np.array(metrics["confusion"]["rows_true_columns_found"])
    assert counts[1:].sum() == metrics["objects"]
    assert {"AP", "AR_large", "VOC_AP", "VOC_AP11", "objects"} <= set(
        metrics["per_class"]["circle"]
    )
    found = json.loads((out / "detections.json").read_text())
    assert len(found) == metrics["detections"]
    with Image.open(out / "confusion.png") as picture:
        assert picture.width > 300
    with Image.open(out / "worst.jpg") as picture:
        assert picture.width > 2 * 320


@pytest.mark.parametrize("found", [[], [(A, 1, 0.123456), (NEAR_A, 2, 0.9)]])
def test_detections_are_written_best_first_under_the_ids_of_the_data(found, tmp_path):
    from rcnn_ext.metrics.coco import detection_metrics

    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval comes with the extra train")
    classes = ClassList(("a", "b"), (7, 9))
    images = [image([(A, 1)], found)]
    record = SimpleNamespace(path=tmp_path / "gone.jpg", file_id="text/1", width=50, height=50)
    annotations = SimpleNamespace(images=[record], source="made", reader=ImageReader())
    result = detection_metrics(images, classes)
    write_evaluation(
        tmp_path, annotations, images, result, classes, checkpoint=tmp_path, step=1, seconds=1
    )
    entries = json.loads((tmp_path / "detections.json").read_text())
    assert [entry["image_id"] for entry in entries] == ["text/1"] * len(found)
    assert [entry["category_id"] for entry in entries] == [9, 7][: len(found)]
    assert [entry["score"] for entry in entries] == [0.9, 0.12346][: len(found)]
    assert [entry["bbox"] for entry in entries] == [[0, 0, 10, 8], [0, 0, 10, 10]][: len(found)]
