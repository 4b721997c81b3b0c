"""Augmentation: pixels, boxes and proposals must move alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from rcnn_ext.data import (
    AnnotationSet,
    AugmentConfig,
    ClassList,
    DetectionDataset,
    ImageRecord,
    TrainingStream,
    build_augmentation,
)
from rcnn_ext.errors import UserError


def scene(folder, index=0, size=(80, 60), box=(30, 20, 60, 40), boxes=None, **flags):
    """A picture with a white rectangle on black; its box, and perhaps more."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    path = folder / f"{index}.png"
    Image.fromarray(pixels).save(path)
    rows = np.array([box] if boxes is None else boxes, dtype=np.float32)
    return ImageRecord(
        index,
        path,
        *size,
        rows,
        np.arange(1, len(rows) + 1),
        np.ones(len(rows), np.float32),
        np.zeros(len(rows), bool),
        **flags,
    )


def annotated(folder, *records):
    return AnnotationSet(folder, ClassList(("a", "b", "c"), (1, 2, 3)), records)


def bright_box(image):
    bright = (image.min(dim=0).values > 0.7).nonzero()  # [P, 2] (row, column)
    return torch.cat([bright.min(0).values.flip(0), bright.max(0).values.flip(0) + 1]).float()


class SameAsBoxes:
    """Proposals that lie where the objects are, so that they must arrive where the boxes do."""

    def __init__(self, records):
        self.known = {record.path: record.boxes for record in records}

    def boxes(self, image):
        return self.known[image].copy()


@pytest.mark.parametrize(
    ("config", "tolerance"),
    [
        (AugmentConfig(horizontal_flip=1, vertical_flip=1), 0),
        (AugmentConfig(scale_jitter=(0.4, 1.3)), 2),
        (AugmentConfig(zoom=(0.7, 1.2), shift=0.1), 2),
        (AugmentConfig(scale_jitter=(0.6, 0.6), zoom=(0.9, 1.1), blur=1.0), 5),
        (AugmentConfig(mosaic=1.0), 2),
    ],
)
def test_boxes_and_proposals_stay_on_their_object(tmp_path, config, tolerance):
    records = [scene(tmp_path)]
    if config.mosaic:
        # Only the first image has anything in it.
        nothing = np.zeros((0, 4), np.float32)
        records += [
            scene(tmp_path, index, box=(0, 0, 0, 0), boxes=nothing) for index in range(1, 9)
        ]
    stream = TrainingStream(
        annotated(tmp_path, *records),
        build_augmentation(config),
        seed=0,
        mosaic=config.mosaic,
        proposals=SameAsBoxes(records),
    )
    places, seen = set(), 0
    for position in range(24):
        image, target = stream[position]
        assert image.shape == (3, 60, 80)
        assert type(target["proposals"]) is torch.Tensor
        torch.testing.assert_close(target["proposals"], target["boxes"])
        assert len(target["boxes"]) == len(target["labels"]) == len(target["difficult"])
        if len(target["boxes"]) != 1:
            continue
        seen += 1
        assert (bright_box(image) - target["boxes"][0]).abs().max() <= tolerance, position
        places.add(tuple(target["boxes"][0].tolist()))
    assert seen >= (2 if config.mosaic else 20)
    if tolerance:
        assert len(places) == seen


def test_rotated_boxes_contain_their_object(tmp_path):
    stream = TrainingStream(
        annotated(tmp_path, scene(tmp_path)),
        build_augmentation(AugmentConfig(rotate=30, shear=10)),
        seed=0,
    )
    for position in range(12):
        image, target = stream[position]
        seen, (box,) = bright_box(image), target["boxes"]
        assert (box[:2] <= seen[:2] + 2).all()
        assert (box[2:] >= seen[2:] - 2).all()
        assert (box[2:] - box[:2]).prod() > 590


def test_color_and_blur_move_nothing(tmp_path):
    one = annotated(tmp_path, scene(tmp_path))
    config = AugmentConfig(horizontal_flip=0, color=0.5, hue=0.2, blur=1.0)
    image, target = TrainingStream(one, build_augmentation(config), seed=0)[0]
    plain, expected = DetectionDataset(one)[0]
    assert torch.equal(target["boxes"], expected["boxes"])
    assert not torch.equal(image, plain)


def test_what_a_crop_leaves_nothing_of_is_dropped(tmp_path):
    corner = scene(
        tmp_path, boxes=[[0, 0, 3, 3], [30, 20, 60, 40]], difficult=np.array([True, False])
    )
    config = AugmentConfig(horizontal_flip=0, scale_jitter=(3.0, 3.0))
    stream = TrainingStream(
        annotated(tmp_path, corner),
        build_augmentation(config),
        seed=0,
        keep_difficult=True,
        proposals=SameAsBoxes([corner]),
    )
    counts = set()
    for position in range(20):
        target = stream[position][1]
        counts.add(len(target["boxes"]))
        boxes = target["boxes"]
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([80, 60, 80, 60])).all()
        assert len(boxes) == len(target["proposals"]) == len(target["areas"])
        assert target["difficult"].tolist() == (target["labels"] == 1).tolist()
    assert {0, 1} <= counts


def test_mosaics_show_four_images_and_depend_on_their_position_alone(tmp_path):
    records = [scene(tmp_path, index, (80, 60), (0, 0, 80, 60)) for index in range(5)]
    for index, record in enumerate(records):
        Image.new("RGB", (80, 60), (40 * index + 40,) * 3).save(record.path)
    stream = TrainingStream(
        annotated(tmp_path, *records),
        build_augmentation(AugmentConfig(horizontal_flip=0)),
        seed=0,
        mosaic=1.0,
    )
    image, target = stream[3]
    again = stream[3]
    assert torch.equal(image, again[0])
    assert len(target["boxes"]) == 4
    # Each whole-image object fills its corner, so the four boxes tile the canvas.
    sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
    assert sides.prod(dim=1).sum() == 80 * 60
    for x1, y1, x2, y2 in target["boxes"].int().tolist():
        assert image[0, y1:y2, x1:x2].unique().numel() == 1


def test_difficult_objects_are_trained_on_by_option_only(tmp_path):
    first = scene(
        tmp_path, 0, boxes=[[1, 1, 9, 9], [5, 5, 30, 30]], difficult=np.array([True, False])
    )
    second = scene(tmp_path, 1, boxes=[[1, 1, 9, 9]], difficult=np.array([True]))
    found = annotated(tmp_path, first, second)
    plain = build_augmentation(AugmentConfig(horizontal_flip=0))
    without = TrainingStream(found, plain, seed=0)
    assert without.images_per_epoch == 1
    assert without[0][1]["boxes"].tolist() == [[5, 5, 30, 30]]
    assert TrainingStream(found, plain, seed=0, keep_difficult=True).images_per_epoch == 2
    assert DetectionDataset(found)[0][1]["difficult"].tolist() == [True, False]


def test_damaged_pictures_stop_or_are_replaced(tmp_path):
    records = [scene(tmp_path, index) for index in range(4)]
    broken = records[2].path
    broken.write_bytes(broken.read_bytes()[:70])
    found = annotated(tmp_path, *records)
    plain = build_augmentation(AugmentConfig())
    strict = TrainingStream(found, plain, seed=0)
    with pytest.raises(UserError, match=r"2\.png is damaged"):
        [strict[i] for i in range(4)]
    lenient = TrainingStream(found, plain, seed=0, on_error="skip")
    with pytest.warns(RuntimeWarning, match=r"skipped: .*2\.png is damaged"):
        ids = [int(lenient[i][1]["image_id"]) for i in range(12)]
    assert len(ids) == 12
    assert set(ids) == {0, 1, 3}
    for record in records:
        record.path.write_bytes(b"")
    with pytest.warns(RuntimeWarning), pytest.raises(UserError, match="50 images in a row"):
        lenient[0]


def test_proposals_are_checked(tmp_path):
    one = scene(tmp_path)

    class Fake:
        def __init__(self, rows):
            self.rows = rows

        def boxes(self, image):
            assert image == one.path
            return self.rows

    rows = torch.tensor([[-5.0, 2, 20, 70], [90, 90, 99, 99], [3, 3, 8, 9]])
    _, target = DetectionDataset(annotated(tmp_path, one), Fake(rows))[0]
    assert target["proposals"].tolist() == [[0, 2, 20, 60], [3, 3, 8, 9]]
    with pytest.raises(UserError, match=r"have the shape \(3,\), not \[P, 4\]"):
        DetectionDataset(annotated(tmp_path, one), Fake(np.zeros(3)))[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zoom": (0.0, 1.0)}, "zoom must be two numbers above 0"),
        ({"scale_jitter": (2.0, 1.0)}, "scale_jitter must be"),
        ({"mosaic": 1.5}, "mosaic must be from 0 to 1"),
        ({"hue": 0.6}, "hue must be"),
        ({"color": -1}, "color must be"),
        ({"rotate": 181}, "rotate must be"),
        ({"shear": 90}, "shear must be"),
    ],
)
def test_configurations_that_are_wrong(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**values)
