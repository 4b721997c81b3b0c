"""COCO metrics against hand-computed cases, and against torchmetrics on random ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval comes with the extra train")

from rcnn_ext.data import ClassList
from rcnn_ext.distributed import Processes
from rcnn_ext.errors import UserError
from rcnn_ext.metrics.coco import COCO_SUMMARY, SUMMARY, detection_metrics
from rcnn_ext.metrics.results import Results, require_finite

TWO = ClassList(("cat", "dog"), (17, 18))


def truth(boxes, labels, crowd=(), areas=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    flags = torch.zeros(len(boxes), dtype=torch.bool)
    flags[list(crowd)] = True
    sides = boxes[:, 2:] - boxes[:, :2]
    return {
        "boxes": boxes,
        "labels": torch.as_tensor(labels, dtype=torch.int64),
        "areas": sides.prod(1) if areas is None else torch.tensor(areas),
        "crowd": flags,
    }


def found(boxes, labels, scores):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


def compute(detections, targets, classes=TWO):
    results = Results()
    for image, (one, target) in enumerate(zip(detections, targets, strict=True)):
        results.add(image, one, target)
    return detection_metrics(results.all_gather(Processes(), torch.device("cpu")), classes)


BOX = [10, 10, 50, 50]  # 40x40: medium


def test_perfect_detections():
    result = compute([found([BOX], [1], [0.9])], [truth([BOX], [1])])
    for name in ("AP", "AP50", "AP75", "AP_medium", "AR1", "AR10", "AR100", "AR_medium"):
        assert result.summary[name] == pytest.approx(1.0), name
    for name in ("AP_small", "AP_large", "AR_small", "AR_large"):
        assert result.summary[name] is None, name
    assert list(result.summary) == list(SUMMARY)
    assert result.per_class["cat"] == {**result.summary, "objects": 1}
    assert result.per_class["dog"] == {**dict.fromkeys(SUMMARY), "objects": 0}
    assert (result.images, result.objects, result.detections) == (1, 1, 1)


def test_iou_of_three_quarters_counts_below_it_only():
    """Shifted by a seventh, two equal squares overlap by 6/7 / (8/7) = 0.75."""
    shifted = [10 + 40 / 7, 10, 50 + 40 / 7, 50]
    result = compute([found([shifted], [1], [0.9])], [truth([BOX], [1])])
    assert result.summary["AP50"] == pytest.approx(1.0)
    # 0.50, 0.55, ..., 0.75 are reached; rounding decides about the last one.
    assert result.summary["AP"] in (pytest.approx(0.6), pytest.approx(0.5))
    lower = compute([found([[16, 10, 56, 50]], [1], [0.9])], [truth([BOX], [1])])  # 34/46 = 0.739
    assert lower.summary["AP"] == pytest.approx(0.5)
    assert lower.summary["AP75"] == pytest.approx(0.0)


def test_a_confident_mistake_halves_precision_and_a_timid_one_does_not_matter():
    elsewhere = [100, 100, 140, 140]
    first = compute([found([elsewhere, BOX], [1, 1], [0.9, 0.8])], [truth([BOX], [1])])
    assert first.summary["AP50"] == pytest.approx(0.5)
    last = compute([found([elsewhere, BOX], [1, 1], [0.7, 0.8])], [truth([BOX], [1])])
    assert last.summary["AP50"] == pytest.approx(1.0)


def test_one_of_two_found():
    """Recall 0 to 0.5 at precision 1: 51 of the 101 recall points."""
    result = compute([found([BOX], [1], [0.9])], [truth([BOX, [100, 100, 140, 140]], [1, 1])])
    assert result.summary["AP50"] == pytest.approx(51 / 101)
    assert result.summary["AR100"] == pytest.approx(0.5)
    assert result.precision[:, 0].tolist() == pytest.approx([1.0] * 51 + [0.0] * 50)
    assert (result.precision[:, 1] == -1).all()


def test_the_class_must_be_right_and_the_mean_is_over_classes():
    other = [100, 100, 140, 140]
    result = compute([found([BOX, other], [1, 1], [0.9, 0.8])], [truth([BOX, other], [1, 2])])
    assert result.per_class["cat"]["AP50"] == pytest.approx(1.0)
    assert result.per_class["dog"]["AP50"] == pytest.approx(0.0)
    assert result.summary["AP50"] == pytest.approx(0.5)


def test_crowds_are_neither_missed_nor_wrong():
    crowd = [60, 60, 160, 160]
    inside = [[70, 70, 90, 90], [100, 100, 130, 130]]
    result = compute(
        [found([*inside, BOX], [1, 1, 1], [0.95, 0.9, 0.8])],
        [truth([BOX, crowd], [1, 1], crowd=[1])],
    )
    assert result.summary["AP"] == pytest.approx(1.0)
    assert result.objects == 1


def test_sizes_follow_the_area_of_the_object_and_not_of_its_box():
    """A 40x40 box around an object of 500 pixels is small."""
    result = compute([found([BOX], [1], [0.9])], [truth([BOX], [1], areas=[500.0])])
    assert result.summary["AP_small"] == pytest.approx(1.0)
    assert result.summary["AP_medium"] is None


def test_false_alarms_on_empty_images_count():
    targets = [truth([BOX], [1]), truth([], [])]
    quiet = compute([found([BOX], [1], [0.5]), found([], [], [])], targets)
    loud = compute([found([BOX], [1], [0.5]), found([BOX], [1], [0.9])], targets)
    assert quiet.summary["AP50"] == pytest.approx(1.0)
    assert loud.summary["AP50"] == pytest.approx(0.5)


def test_only_the_hundred_best_detections_of_an_image_count():
    many = [[200 + i, 200, 230 + i, 230] for i in range(100)]
    result = compute([found([*many, BOX], [1] * 101, [0.9] * 100 + [0.8])], [truth([BOX], [1])])
    assert result.summary["AR100"] == pytest.approx(0.0)


@pytest.mark.parametrize("targets", [[truth([], [])], [truth([BOX], [1])]])
def test_nothing_found_or_nothing_there(targets):
    result = compute([found([], [], [])], targets)
    expected = pytest.approx(0.0) if len(targets[0]["labels"]) else None
    assert result.summary["AP"] == expected
    assert "AP50" in result.table()
    assert result.class_table().startswith("class")


def test_columns_of_the_class_table_are_straight_with_wide_letters():
    classes = ClassList(("猫猫猫", "cat", "e\u0301"), (1, 2, 3))
    result = compute(
        [found([BOX] * 3, [1, 2, 3], [0.9] * 3)], [truth([BOX] * 3, [1, 2, 3])], classes
    )
    _, wide, narrow, combined = result.class_table().splitlines()
    assert wide.index("1") == narrow.index("1") - 3
    assert combined.index("1") == narrow.index("1") + 1


def test_images_count_in_the_order_of_the_data_set():
    one = (found([BOX], [1], [0.9]), truth([BOX], [1]))
    two = (found([[0, 0, 9, 9]], [2], [0.4]), truth([[0, 0, 10, 9]], [2]))
    results = Results()
    for image, (detections, target) in ((1, two), (0, one)):
        results.add(image, detections, target)
    gathered = results.all_gather(Processes(), torch.device("cpu"))
    assert [image.labels.tolist() for image in gathered] == [[1], [2]]
    together = compute([one[0], two[0]], [one[1], two[1]])
    assert detection_metrics(gathered, TWO).summary == together.summary


def test_agrees_with_torchmetrics_on_random_scenes():
    pytest.importorskip("pycocotools", reason="pycocotools comes with the extra test")
    detection = pytest.importorskip("torchmetrics.detection")
    generator = torch.Generator().manual_seed(0)

    def boxes(count):
        corner = torch.rand(count, 2, generator=generator) * 150
        return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 120], 1)

    detections, targets = [], []
    for _ in range(12):
        count = int(torch.randint(0, 9, (), generator=generator))
        target = truth(boxes(count).tolist(), torch.randint(1, 4, (count,), generator=generator))
        target["crowd"] = torch.rand(count, generator=generator) < 0.15
        noise = torch.randn(count, 4, generator=generator) * 4
        near = torch.cat([target["boxes"] + noise, boxes(4)])
        labels = torch.cat([target["labels"], torch.randint(1, 4, (4,), generator=generator)])
        detections.append(
            {
                "boxes": near,
                "labels": labels,
                "scores": torch.rand(len(near), generator=generator),
            }
        )
        targets.append(target)
    ours = compute(detections, targets, ClassList(("a", "b", "c"), (1, 2, 3))).summary
    theirs = detection.MeanAveragePrecision(backend="pycocotools")
    theirs.update(
        detections,
        [
            {
                "boxes": t["boxes"],
                "labels": t["labels"],
                "area": t["areas"],
                "iscrowd": t["crowd"].long(),
            }
            for t in targets
        ],
    )
    expected = theirs.compute()
    names = {"AP": "map", "AP50": "map_50", "AP75": "map_75", "AR1": "mar_1", "AR10": "mar_10"}
    names |= {"AR100": "mar_100", "AP_small": "map_small", "AP_medium": "map_medium"}
    names |= {"AP_large": "map_large", "AR_small": "mar_small", "AR_medium": "mar_medium"}
    names |= {"AR_large": "mar_large"}
    assert names.keys() == COCO_SUMMARY.keys()
    for name, theirs_name in names.items():
        assert ours[name] == pytest.approx(float(expected[theirs_name]), abs=1e-6), name
    assert 0.2 < ours["AP"] < 0.9


@pytest.mark.parametrize("name", ["boxes", "scores"])
def test_detections_that_are_not_finite_are_refused_by_name(name):
    detections = found([[1, 2, 3, 4]], [1], [0.5])
    for broken in (False, True):
        if broken:
            detections[name] = detections[name] * float("nan")
        results = Results()
        results.add(0, detections, truth([[1, 2, 3, 4]], [1]))
        images = results.all_gather(Processes(0, 1), torch.device("cpu"))
        if broken:
            message = r"a\.jpg: the model gives numbers that are not finite"
            with pytest.raises(UserError, match=message):
                require_finite([Path("a.jpg")], images)
        else:
            require_finite([Path("a.jpg")], images)
