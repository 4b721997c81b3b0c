"""A new user's data: whatever a tool wrote is read, or refused by name, by every command alike."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="lightning comes with the extra train")
pytest.importorskip("lxml", reason="lxml comes with the extra train")

from rcnn_ext.cli import main
from rcnn_ext.config import load_recipe
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.train.training_data import open_source
from tests.helpers import layouts

RECIPE = "faster_rcnn_coco_small"


@pytest.mark.parametrize("name", ["custom YAML", "LabelImg VOC", "FiftyOne COCO", "Roboflow CSV"])
def test_training_reads_what_check_detects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    make, kind, counts = layouts.LAYOUTS[name]
    make(tmp_path)
    assert main(["check", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path}: format {kind}\n" in printed
    for split, count in counts.items():
        assert f"{split}: {count} images, {count} objects of 2 classes" in printed
    for recipe in (RECIPE, "faster_rcnn_roipool"):
        source = open_source(load_recipe(recipe, []), tmp_path)
        assert isinstance(source, AnnotationSet)
        assert len(source) == counts["train"]
        assert source.classes.names == layouts.CLASSES


def _unknown_columns(root: Path) -> None:
    layouts.pictures(root / "images")
    header = "image_id,width,height,place,source"
    layouts.table(root / "train.csv", header, lambda n: (f"p{n}", 40, 20, "[1, 2, 3, 4]", "x"))


def _via(root: Path) -> None:
    layouts.pictures(root)
    header = "filename,file_size,region_count,region_shape_attributes"
    rect = '{"name":"rect","x":1,"y":2,"width":3,"height":4}'
    layouts.table(root / "via_export.csv", header, lambda n: (f"p{n}.png", 9, 1, rect))


def _yolo_without_labels(root: Path) -> None:
    layouts.pictures(root / "images" / "train")
    (root / "animals.yaml").write_text("train: images/train\nnames: [cat, dog]\n")


def _validation_without_labels(root: Path) -> None:
    layouts.custom_yaml(root)
    for path in (root / "labels" / "held_out").iterdir():
        path.unlink()


def _two_descriptions(root: Path) -> None:
    layouts.custom_yaml(root)
    (root / "data.yaml").write_text("train: images/fit\nnames: [dog, cat]\n")


def _empty_labels(root: Path) -> None:
    layouts.labelimg_yolo(root)
    for number in range(layouts.COUNT):
        (root / f"p{number}.txt").write_text("")


def _pictures_alone(root: Path) -> None:
    layouts.pictures(root / "images")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_unknown_columns, "no columns for a box among image_id, width, height, place, source"),
        (_via, "region_shape_attributes cannot be read as one"),
        (_yolo_without_labels, "6 images, but no annotations: looked for "),
        (_validation_without_labels, "2 images, but no annotations: looked for "),
        (_two_descriptions, "several YAML files that name splits or classes: animals.yaml, data"),
        (_empty_labels, "no objects in any of 6 images to train on"),
        (
            _pictures_alone,
            "no annotations, only files such as images/p0.png (by suffix: 6 .png)",
        ),
    ],
)
def test_annotations_that_are_not_found_are_an_error_that_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make, message: str
) -> None:
    make(tmp_path)
    assert main(["check", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err


def test_a_lone_test_file_is_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layouts.roboflow_csv(tmp_path)
    (tmp_path / "train").rename(tmp_path / "images")
    (tmp_path / "images" / "_annotations.csv").rename(tmp_path / "test.csv")
    assert main(["check", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "test: 6 images" in printed
    assert "train: " not in printed
    out = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["train", RECIPE, *out, "--max-steps", "1"]) == 2
    assert "no CSV file for train" in capsys.readouterr().err


def test_pictures_of_two_splits_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layouts.custom_yaml(tmp_path)
    (tmp_path / "animals.yaml").write_text(
        "train: [images/fit, images/held_out]\nval: images/held_out\nnames: [cat, dog]\n"
    )
    assert main(["check", str(tmp_path)]) == 0
    assert "2 of the 2 images for val are also for train, the first is " in capsys.readouterr().out
    assert main(["check", str(tmp_path), "--strict"]) == 2
