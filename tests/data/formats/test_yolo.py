from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.data.formats.yolo import find_yolo_split, read_yolo
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
