from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.data import (
    AnnotationSet,
    ClassList,
    DataConfig,
    ImageRecord,
    SyntheticConfig,
    detect_format,
    has_split,
    make_synthetic,
    open_split,
    partition,
)
from rcnn_ext.errors import UserError
from tests.helpers.real_data import REAL, needs_real_data


@pytest.fixture
def table(tmp_path):
    """A folder with a CSV file of so many images of the classes a (three quarters) and b."""

    def table(count=20, extra="", name="train.csv"):
        (tmp_path / "images").mkdir(exist_ok=True)
        rows = ["filename,xmin,ymin,xmax,ymax,class"]
        for index in range(count):
            Image.new("RGB", (20, 20)).save(tmp_path / "images" / f"{index}.png")
            rows.append(f"{index}.png,1,1,9,9,{'b' if index % 4 == 0 else 'a'}")
        (tmp_path / name).write_text("\n".join(rows) + "\n" + extra)
        return tmp_path

    return table


def ids(annotations):
    return [record.image_id for record in annotations.images]


def test_splits_are_cut_from_training_and_keep_the_shares_of_classes(table):
    root = table(40)
    config = DataConfig(format="csv", val_fraction=0.2, test_fraction=0.1)
    parts = {split: open_split(config, root, split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 28, "val": 8, "test": 4}
    together = sum((ids(part) for part in parts.values()), [])
    assert (
        sorted(together)
        == sorted(set(together))
        == sorted(ids(open_split(DataConfig(format="csv"), root, "train")))
    )
    for part in parts.values():
        share = np.mean([record.labels[0] == 2 for record in part.images])
        assert share == pytest.approx(0.25, abs=0.05)
    again = open_split(config, root, "val")
    assert ids(again) == ids(parts["val"])
    other = DataConfig(format="csv", val_fraction=0.2, test_fraction=0.1, split_seed=1)
    assert ids(open_split(other, root, "val")) != ids(parts["val"])


def test_splits_of_the_data_go_before_fractions(table):
    root = table(8)
    table(4, name="val.csv")
    config = DataConfig(format="csv", val_fraction=0.5)
    assert len(open_split(config, root, "train")) == 8
    assert len(open_split(config, root, "val")) == 4
    assert not has_split(config, root, "test")
    with pytest.raises(UserError, match=r"no test split; .*data\.test_annotations.*test_fraction"):
        open_split(config, root, "test")
    named = DataConfig(format="csv", test_annotations="val.csv")
    assert len(open_split(named, root, "test")) == 4


def test_unstratified_splits_have_the_right_size_too(table):
    config = DataConfig(format="csv", val_fraction=0.25, stratify=False)
    assert len(open_split(config, table(20), "val")) == 5


@pytest.mark.parametrize("stratify", [True, False])
def test_rare_classes_decide_where_an_image_belongs(tmp_path, stratify):
    """Every image has class 1; four also have class 2, of which a quarter must go to val."""
    records = []
    for index in range(16):
        labels = np.array([1, 2] if index < 4 else [1])
        boxes = np.tile(np.array([[0, 0, 5, 5]], dtype=np.float32), (len(labels), 1))
        areas, crowd = np.ones(len(labels), np.float32), np.zeros(len(labels), bool)
        records.append(ImageRecord(index, tmp_path, 9, 9, boxes, labels, areas, crowd))
    found = AnnotationSet(tmp_path, ClassList(("a", "b"), (1, 2)), tuple(records))
    rare = []
    for seed in range(12):
        parts = partition(found, {"val": 0.25}, seed=seed, stratify=stratify)
        rare.append(sum(record.image_id < 4 for record in parts["val"].images))
        assert len(parts["val"]) == 4
    assert (set(rare) == {1}) == stratify


def test_broken_data_stop_or_are_left_out(table):
    root = table(8, "7.png,1,1,x,9,a\n3.png,2,2,5,5,b\n")
    with pytest.raises(UserError, match=r"line 10: x2 is 'x'.*data\.on_error=skip"):
        open_split(DataConfig(format="csv"), root, "train")
    found = open_split(DataConfig(format="csv", on_error="skip"), root, "train")
    assert (len(found), found.skipped) == (7, 1)
    assert len(found.problems) == 1


def test_one_object_each(table):
    root = table(4, "3.png,2,2,15,15,b\n")
    with pytest.raises(UserError, match=r"line 5: 3\.png has 2 objects instead of one"):
        open_split(DataConfig(format="csv", objects="one"), root, "train")
    left = open_split(DataConfig(format="csv", objects="one", on_error="skip"), root, "train")
    assert (len(left), left.skipped) == (3, 1)
    largest = open_split(DataConfig(format="csv", objects="largest"), root, "train")
    assert largest.images[3].boxes.tolist() == [[2, 2, 15, 15]]
    assert [len(r.labels) for r in largest.images] == [1, 1, 1, 1]


def test_other_classes_can_be_a_problem(table):
    root = table(8)
    config = DataConfig(format="csv", classes=["a"])
    found = open_split(config, root, "train")
    assert (len(found), found.other) == (8, 2)
    strict = DataConfig(format="csv", classes=["a"], other_classes="error")
    with pytest.raises(UserError, match="unknown class 'b': 2 objects"):
        open_split(strict, root, "train")
    strict.on_error = "skip"
    found = open_split(strict, root, "train")
    assert (len(found), found.skipped, found.other) == (6, 2, 0)


def test_validation_has_the_labels_of_training(table):
    root = table(8)
    (root / "val.csv").write_text("filename,xmin,ymin,xmax,ymax,class\n1.png,1,1,9,9,b\n")
    train = open_split(DataConfig(format="csv"), root, "train")
    val = open_split(DataConfig(format="csv"), root, "val", train.classes.names)
    assert val.images[0].labels.tolist() == [2]


def test_formats_are_recognised(table, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        detect_format(tmp_path / "nowhere")
    with pytest.raises(UserError, match="looks like none of"):
        detect_format(tmp_path)
    assert detect_format(table(1)) == "csv"
    made = make_synthetic(tmp_path / "made", SyntheticConfig(train=1, val=1, size=32))
    assert detect_format(made) == "coco"
    with pytest.raises(UserError, match="the data folder .* does not exist"):
        open_split(DataConfig(), tmp_path / "nowhere", "train")


@needs_real_data
@pytest.mark.parametrize(
    ("folder", "name", "counts"),
    [
        ("coco", "coco", {"train": 96, "val": 32, "test": 0}),
        ("VOCdevkit", "voc", {"train": 30, "val": 0, "test": 10}),
        ("PennFudanPed", "pennfudan", {"train": 24, "val": 0, "test": 0}),
        ("csv", "csv", {"train": 90, "val": 0, "test": 23}),
    ],
)
def test_real_folders(folder, name, counts):
    assert detect_format(REAL / folder) == name
    config = DataConfig(format=name)
    for split, count in counts.items():
        assert has_split(config, REAL / folder, split) == (count > 0)
        if count:
            assert len(open_split(config, REAL / folder, split)) == count
