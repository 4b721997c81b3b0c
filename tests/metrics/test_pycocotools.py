"""COCO's metrics against pycocotools, which defines them, and the limit of detections per image."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval comes with the extra train")

from rcnn_ext.data import ClassList
from rcnn_ext.metrics.coco import COCO_SUMMARY, SUMMARY, crowded_images, detection_metrics
from rcnn_ext.metrics.results import ImageResult
from tests.helpers.real_data import REAL, needs_real_data


def classes(count):
    return ClassList(tuple(f"class {i}" for i in range(count)), tuple(range(7, 7 + count)))


def scene(generator, boxes, labels, crowd, found, ties=False):
    """Return an image with noisy detections of its objects, some of them of another class."""
    count = int(labels.max(initial=1))
    source = generator.integers(0, max(len(boxes), 1), found if len(boxes) else 0)
    sides = boxes[source][:, [2, 3, 2, 3]] - boxes[source][:, [0, 1, 0, 1]]
    noise = generator.choice([0.0, 0.02, 0.1, 0.4], (len(source), 1))
    near = boxes[source] + generator.normal(0, 1, (len(source), 4)) * sides * noise
    near = np.concatenate([np.minimum(near[:, :2], near[:, 2:]), near[:, 2:]], axis=1)
    other = generator.integers(1, count + 1, len(source))
    scores = generator.random(len(source)).astype(np.float32).astype(np.float64)
    return ImageResult(
        boxes=boxes,
        labels=labels,
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * generator.uniform(0.4, 1, len(boxes)),
        crowd=crowd,
        difficult=np.zeros(len(boxes), bool),
        found_boxes=near,
        found_labels=np.where(generator.random(len(source)) < 0.8, labels[source], other),
        scores=np.round(scores, 1) if ties else scores,
    )


def scenes(images, per_image, found, *, labels=4, crowd=0.1, ties=False, points=False, seed=0):
    generator = np.random.default_rng(seed)
    result = []
    for _ in range(images):
        count = int(generator.poisson(per_image))
        corner = generator.random((count, 2)) * 300
        size = np.exp(generator.normal(3.7, 1, (count, 2)))
        if points:
            size[generator.random(count) < 0.3] = 0
        result.append(
            scene(
                generator,
                np.concatenate([corner, corner + size], axis=1),
                generator.integers(1, labels + 1, count),
                generator.random(count) < crowd,
                found,
                ties,
            )
        )
    return result


def by_pycocotools(images, count, limits):
    """Return pycocotools' precision and recall, from files' usual entries."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools comes with the extra test")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth, found = [], []
    for index, one in enumerate(images):
        for row, label, area, crowd in zip(
            one.boxes, one.labels, one.areas, one.crowd, strict=True
        ):
            truth.append(entry(index, row, label, len(truth), area=area, iscrowd=int(crowd)))
        for row, label, score in zip(one.found_boxes, one.found_labels, one.scores, strict=True):
            area = (row[2] - row[0]) * (row[3] - row[1])
            found.append(entry(index, row, label, len(found), area=area, score=score))
    with contextlib.redirect_stdout(io.StringIO()):
        both = []
        for annotations in (truth, found):
            one = coco.COCO()
            one.dataset = {
                "images": [{"id": index + 1} for index in range(len(images))],
                "categories": [{"id": label} for label in range(1, count + 1)],
                "annotations": annotations,
            }
            one.createIndex()
            both.append(one)
        run = cocoeval.COCOeval(*both, "bbox")
        run.params.maxDets = limits
        run.evaluate()
        run.accumulate()
    return run


def entry(image, row, label, index, **others):
    box = [row[0], row[1], row[2] - row[0], row[3] - row[1]]
    return {
        "image_id": image + 1,
        "category_id": int(label),
        "bbox": [float(value) for value in box],
        "iscrowd": 0,
        "id": index + 1,
        **others,
    }


def check(images, count):
    result = detection_metrics(images, classes(count))
    run = by_pycocotools(images, count, [1, 10, 100])
    with contextlib.redirect_stdout(io.StringIO()):
        run.summarize()
    for name, expected in zip(COCO_SUMMARY, run.stats.tolist(), strict=True):
        ours = result.summary[name]
        assert (-1 if ours is None else ours) == pytest.approx(expected, rel=0, abs=1e-12), name
    of_class = run.eval["precision"][..., 0, 2]  # [10, 101, K]
    np.testing.assert_allclose(result.precision, of_class[0], rtol=0, atol=1e-12)
    for index, row in enumerate(result.per_class.values()):
        ours = -1 if row["AP"] is None else row["AP"]
        assert ours == pytest.approx(of_class[..., index].mean(), rel=0, abs=1e-12)
    return result


CASES = {
    "many classes": {"images": 60, "per_image": 7, "found": 60, "labels": 30},
    "crowds": {"images": 40, "per_image": 6, "found": 40, "crowd": 0.5},
    "crowds only": {"images": 20, "per_image": 3, "found": 20, "crowd": 1.0},
    "equal scores": {"images": 40, "per_image": 6, "found": 40, "ties": True},
    "more than a hundred": {"images": 6, "per_image": 150, "found": 400, "labels": 1},
    "equal scores at the limit": {
        "images": 6,
        "per_image": 150,
        "found": 400,
        "labels": 1,
        "ties": True,
    },
    "mostly empty images": {"images": 60, "per_image": 0.3, "found": 9},
    "objects without an area": {"images": 40, "per_image": 5, "found": 30, "points": True},
    "nothing found": {"images": 20, "per_image": 5, "found": 0},
    "nothing there": {"images": 5, "per_image": 0, "found": 0},
}


@pytest.mark.parametrize("case", CASES)
def test_the_twelve_numbers_are_those_of_pycocotools(case):
    result = check(scenes(**CASES[case]), CASES[case].get("labels", 4))
    if case not in ("crowds only", "nothing found", "nothing there"):
        assert 0.02 < result.summary["AP"] < 0.98


def test_detections_in_images_without_objects_count_alike():
    images = scenes(20, 4, 20, seed=3)
    none = np.zeros(0)
    for index in range(0, 20, 3):
        one = images[index]
        images[index] = ImageResult(
            boxes=np.zeros((0, 4)),
            labels=none.astype(np.int64),
            areas=none,
            crowd=none.astype(bool),
            difficult=none.astype(bool),
            found_boxes=one.found_boxes,
            found_labels=one.found_labels,
            scores=one.scores,
        )
    check(images, 4)


@needs_real_data
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_twelve_numbers_on_real_objects(split):
    content = json.loads((REAL / "coco" / f"instances_{split}.json").read_text())
    labels = {category["id"]: i + 1 for i, category in enumerate(content["categories"])}
    generator = np.random.default_rng(5)
    images = []
    for image in content["images"]:
        rows = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        images.append(
            scene(
                generator,
                boxes,
                np.array([labels[row["category_id"]] for row in rows], dtype=np.int64),
                np.array([bool(row.get("iscrowd")) for row in rows], dtype=bool),
                30,
            )
        )
    check(images, len(labels))


def perfect(count):
    """Return an image whose objects, 20x20 pixels each, are all found exactly."""
    index = np.arange(count)
    corner = np.stack([index % 20, index // 20], axis=1) * 30.0
    boxes, labels = np.concatenate([corner, corner + 20], axis=1), np.ones(count, np.int64)
    scores, no = np.linspace(0.99, 0.5, count), np.zeros(count, bool)
    return ImageResult(boxes, labels, np.full(count, 400.0), no, no, boxes, labels, scores)


@pytest.mark.parametrize("count", [90, 150, 400])
def test_a_perfect_model_gets_one_with_a_limit_above_the_objects(count):
    images = [perfect(count)]
    assert detection_metrics(images, classes(1), 400).summary["AP"] == pytest.approx(1.0)
    assert detection_metrics(images, classes(1), 400).summary["AR400"] == pytest.approx(1.0)
    by_default = detection_metrics(images, classes(1)).summary
    assert by_default["AR100"] == pytest.approx(min(1, 100 / count))
    assert (by_default["AP"] > 0.99) == (count <= 100)
    assert crowded_images(images, 100) == (count > 100)
    assert crowded_images(images, 400) == 0


@pytest.mark.parametrize("limit", [5, 10, 100, 250])
def test_metrics_at_a_limit_are_those_of_pycocotools(limit):
    images = scenes(6, 150, 400, labels=2)
    result = detection_metrics(images, classes(2), limit)
    limits = sorted({1, 10, 100, limit})
    run = by_pycocotools(images, 2, limits)
    at = limits.index(limit)
    expected = {
        "AP": run.eval["precision"][:, :, :, 0, at],
        "AP_small": run.eval["precision"][:, :, :, 1, at],
        "AR1": run.eval["recall"][:, :, 0, 0],
        "AR100": run.eval["recall"][:, :, 0, limits.index(100)],
        "AR_small": run.eval["recall"][:, :, 1, at],
    }
    if limit not in (10, 100):
        expected[f"AR{limit}"] = run.eval["recall"][:, :, 0, at]
    for name, values in expected.items():
        mean = values[values > -1].mean()
        assert result.summary[name] == pytest.approx(mean, rel=0, abs=1e-12), name
    assert set(result.summary) == set(result.meanings) == {*SUMMARY, *expected}
    assert f"recall with {limit}, below" in result.table()
    assert all(name in result.summary for name in result.headline)
    assert set(result.per_class["class 0"]) == {*result.summary, "objects"}


def test_nothing_is_printed_or_logged(capfd, caplog):
    with caplog.at_level("INFO"):
        detection_metrics([perfect(3)], classes(1))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
