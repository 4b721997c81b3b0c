from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.config.data import YoloConfig
from rcnn_ext.data import DataConfig, open_split
from rcnn_ext.data.formats.yolo import read_yolo
from rcnn_ext.data.formats.yolo_layout import find_yolo_split
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError

pytest.importorskip("yaml", reason="PyYAML comes with the extra train")


@pytest.fixture
def make(tmp_path):
    """Writes images of 40x20 and their label files."""

    def make(labels, images="images/train", texts="labels/train", names="[cat, dog]"):
        for folder in (images, texts):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in labels.items():
            Image.new("RGB", (40, 20)).save(tmp_path / images / f"{name}.png")
            if text is not None:
                (tmp_path / texts / f"{name}.txt").write_text(text)
        if names:
            (tmp_path / "data.yaml").write_text(f"names: {names}\n")
        return tmp_path

    return make


def test_boxes_outlines_and_empty_images(make):
    root = make({"a": "1 .5 .5 .5 .6\n\n0 0 0 .25 .1 .5 1\n", "b": "", "c": None})
    found = read_yolo(root)
    assert found.classes.names == ("cat", "dog")
    assert found.classes.category_ids == (0, 1)
    np.testing.assert_allclose(found.images[0].boxes, [[10, 4, 30, 16], [0, 0, 20, 20]], atol=1e-5)
    assert found.images[0].labels.tolist() == [2, 1]
    assert [len(r.boxes) for r in found.images[1:]] == [0, 0]


@pytest.mark.parametrize(
    ("images", "texts", "names"),
    [
        ("images/train", "labels/train", "[cat, dog]"),
        ("train/images", "train/labels", "{0: cat, 1: dog}"),
        ("images", "labels", "[cat, dog]\ntrain: images"),
        ("pictures/images", "pictures/labels", "[cat, dog]\ntrain: [../pictures/images]\npath: /x"),
    ],
)
def test_usual_layouts(make, images, texts, names):
    root = make({"a": "1 .5 .5 .5 .5"}, images, texts, names)
    found = read_yolo(root)
    assert [r.labels.tolist() for r in found.images] == [[2]]
    assert found.classes.names == ("cat", "dog")


def test_lists_of_images_and_names_in_text_files(make):
    root = make({"a": "1 .5 .5 .5 .5", "b": "0 .5 .5 .5 .5"}, names=None)
    assert read_yolo(root).classes.names == ("0", "1")
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "val.txt").write_text("images/train/b.png\n")
    assert find_yolo_split(root, "val") == [root / "val.txt"]
    found = read_yolo(root, "val")
    assert [r.labels.tolist() for r in found.images] == [[1]]
    assert found.classes.names == ("cat", "dog")
    with pytest.raises(UserError, match="no images for test"):
        read_yolo(root, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 .5 .5 .5", "4 values; a line is"),
        ("0 .5 .5 .5 .5 .5", "6 values"),
        ("0 .5 x .5 .5", "not numbers"),
        ("2 .5 .5 .5 .5", "no class has the number 2; there are 2, from 0"),
        ("-1 .5 .5 .5 .5", "no class has the number -1"),
        ("0 20 10 5 5", "20 is not a part of the image's side"),
        ("0 .5 .5 .4 .4\n0 .5 .5 .4 .4", "repeats line 2"),
    ],
)
def test_broken_lines_are_named_and_their_images_left_out(make, text, message):
    root = make({"a": f"1 .5 .5 .5 .5\n{text}\n", "b": "1 .5 .5 .5 .5"})
    report = Report()
    assert [r.path.name for r in read_yolo(root, report=report).images] == ["b.png"]
    (problem,) = report.errors()
    assert problem.line == 2 + text.count("\n")
    assert problem.file == root / "labels" / "train" / "a.txt"
    with pytest.raises(UserError, match=message):
        read_yolo(root)


def test_pictures_that_are_none_are_named(make):
    root = make({"a": "1 .5 .5 .5 .5", "b": "1 .5 .5 .5 .5"})
    (root / "images/train/a.png").write_text("not a picture")
    report = Report()
    assert len(read_yolo(root, report=report)) == 1
    assert report.errors()[0].file.name == "a.png"


@pytest.mark.parametrize(
    ("names", "message"),
    [("{1: cat, 2: dog}", "numbered 0, 1, 2"), ("[a, a]", "named twice"), ("[", "cannot be read")],
)
def test_descriptions_that_are_wrong(make, names, message):
    with pytest.raises(UserError, match=message):
        read_yolo(make({"a": None}, names=names))


def test_splits_in_folders_are_never_merged(make):
    root = make({"a": "0 .5 .5 .5 .5"}, "images/val", "labels/val", names=None)
    make({"b": "0 .5 .5 .5 .5"}, "images/others", "labels/others", names=None)
    assert find_yolo_split(root, "train") == []
    with pytest.raises(UserError, match=r"no images for train .*splits images/val are not merged"):
        read_yolo(root)
    # A list, or a YAML file, says as much as a folder does.
    (root / "images" / "val").rename(root / "images" / "more")
    assert find_yolo_split(root, "train") == [root / "images"]
    (root / "val.txt").write_text("images/more/a.png\n")
    assert find_yolo_split(root, "train") == []
    (root / "val.txt").unlink()
    (root / "mine.yaml").write_text("val: images/more\n")
    assert find_yolo_split(root, "train") == []
    (root / "mine.yaml").write_text("train: images\nval: images/more\n")
    with pytest.raises(UserError, match="the training images .*images contain those for val"):
        read_yolo(root)
    assert len(read_yolo(root, "val")) == 1


def test_yaml_files_of_any_name_are_read_unless_they_differ(make):
    root = make({"a": "1 .5 .5 .5 .5"}, names=None)
    (root / "recipe.yml").write_text("data:\n  train: 3\nmodel: {names: x}\n")
    (root / ".hidden.yaml").write_text("names: [x]\n")
    (root / "animals.YML").write_text("train: images/train\nnames: [cat, dog]\n")
    assert read_yolo(root).classes.names == ("cat", "dog")
    (root / "copy.yaml").write_text("# a copy\nnames: [cat, dog]\ntrain: images/train\n")
    assert read_yolo(root).classes.names == ("cat", "dog")
    (root / "copy.yaml").write_text("names: [dog, cat]\ntrain: images/train\n")
    message = r"several YAML files .*animals\.YML, copy\.yaml; choose .*data\.yolo\.description"
    with pytest.raises(UserError, match=message):
        read_yolo(root)
    chosen = YoloConfig(description="copy.yaml")
    assert read_yolo(root, config=chosen).classes.names == ("dog", "cat")
    with pytest.raises(UserError, match=r"other\.yaml \(data\.yolo\.description\) does not exist"):
        read_yolo(root, config=YoloConfig(description="other.yaml"))


def test_pictures_without_text_files_are_an_error_where_some_are_needed(make):
    root = make({"a": None, "b": None})
    found = read_yolo(root)
    assert not found.annotated
    config = DataConfig(format="yolo")
    message = r"2 images, but no annotations: looked for .*labels/train/a\.txt or .*train/a\.txt"
    with pytest.raises(UserError, match=message):
        open_split(config, root, "train")
    report = Report()
    with pytest.raises(UserError, match="no annotations"):
        open_split(config, root, "train", report=report)
    assert len(report.errors()) == 1
    # A test split may be without, but not with files that fit no picture.
    make({"c": None}, "images/test", "labels/test")
    assert not open_split(config, root, "test", ["cat", "dog"]).annotated
    (root / "labels" / "test" / "image_c.txt").write_text("0 .5 .5 .5 .5\n")
    with pytest.raises(UserError, match=r"no annotations: looked for .*labels/test/c\.txt"):
        open_split(config, root, "test", ["cat", "dog"])
