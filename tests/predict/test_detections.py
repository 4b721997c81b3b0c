"""``Detections`` are counted, chosen, drawn, and turned into what other libraries read."""

from __future__ import annotations

import base64
import csv
import json
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rcnn_ext.data import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.predict.detections import Detection, Detections
from rcnn_ext.predict.predictor import Predictor
from tests.helpers.corner_model import CLASSES, Corner

GRAY = (90, 90, 90)


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (400, 300), GRAY).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def found(photo):
    return Predictor(Corner(), CLASSES).predict(photo)


@pytest.fixture
def masked(photo):
    return Predictor(Corner(masks=True), CLASSES).predict(photo)


def test_one_by_one_or_some_of_them(found):
    assert len(found) == 2
    assert found[0] == Detection((200, 150, 400, 300), 2, "dog", pytest.approx(0.9))
    assert found[-1].name == "cat"
    assert [one.label for one in found] == [2, 1]
    with pytest.raises(IndexError):
        found[2]
    for chosen in (slice(1, None), [1], np.array([False, True]), torch.tensor([1])):
        part = found[chosen]
        assert isinstance(part, Detections)
        assert (part.names, part.path, part.image_size) == (["cat"], found.path, (300, 400))
    assert len(found[[]]) == 0
    assert found[[1, 0]].labels.tolist() == [1, 2]


def test_filter_takes_scores_names_and_labels(found):
    assert found.filter(0.5).names == ["dog"]
    assert found.filter(classes="cat").names == ["cat"]
    assert found.filter(classes=[2]).names == ["dog"]
    assert found.filter(0.5, classes=["cat"]).names == []
    assert found.filter(classes=[]).names == []
    for wrong in ("cow", 0, 3):
        with pytest.raises(UserError, match=f"no class {wrong!r}; it has cat, dog"):
            found.filter(classes=wrong)


def test_drawing_shows_what_is_above_the_score(found):
    drawn = found.draw()
    assert drawn.getpixel((300, 150)) != GRAY
    assert drawn.getpixel((50, 75)) == GRAY
    assert found.draw(0.3).getpixel((50, 75)) != GRAY
    assert found.draw(1.0).getcolors() == [(400 * 300, GRAY)]


def test_masks_are_drawn_and_chosen(masked):
    assert masked.masks.shape == (2, 300, 400)
    assert masked.masks.dtype == torch.bool
    assert masked[0].mask.sum() == 200 * 150
    assert masked[1:].masks.shape == (1, 300, 400)
    drawn = masked.draw()
    assert drawn.getpixel((300, 225)) != GRAY
    assert drawn.getpixel((100, 225)) == GRAY
    assert "with masks" in repr(masked)


def test_a_file_that_is_gone_is_told(found, photo):
    photo.unlink()
    with pytest.raises(UserError, match="photo.png does not exist"):
        found.draw()
    assert "<img" not in found._repr_html_()
    assert found._repr_png_() is None


def test_coco_results(found):
    assert found.to_coco(139) == [
        {
            "image_id": 139,
            "file_name": "photo.png",
            "category_id": 18,
            "category_name": "dog",
            "bbox": [200, 150, 200, 150],
            "score": 0.9,
        },
        {
            "image_id": 139,
            "file_name": "photo.png",
            "category_id": 17,
            "category_name": "cat",
            "bbox": [0, 0, 100, 75],
            "score": 0.4,
        },
    ]


def test_coco_results_with_masks_are_read_by_pycocotools(masked):
    mask = pytest.importorskip("pycocotools.mask")
    entries = json.loads(json.dumps(masked.to_coco()))
    for entry, expected in zip(entries, masked.masks, strict=True):
        decoded = mask.decode(entry["segmentation"])
        assert np.array_equal(decoded.astype(bool), expected.numpy())


def test_pandas(found):
    pytest.importorskip("pandas", reason="pandas comes with the extra results")
    table = found.to_pandas()
    assert list(table.columns) == ["file_name", "x1", "y1", "x2", "y2", "score", "label", "name"]
    assert table.loc[0, ["x1", "y1", "x2", "y2"]].tolist() == [200, 150, 400, 300]
    assert table["name"].tolist() == ["dog", "cat"]
    assert len(found[[]].to_pandas()) == 0


def test_supervision(found, masked):
    supervision = pytest.importorskip("supervision", reason="comes with the extra results")
    theirs = masked.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    np.testing.assert_array_equal(theirs.xyxy, found.boxes.numpy())
    np.testing.assert_array_equal(theirs.mask, masked.masks.numpy())
    assert [CLASSES.names[index] for index in theirs.class_id] == ["dog", "cat"]
    assert theirs.data["class_name"].tolist() == ["dog", "cat"]
    assert len(found.to_supervision()[theirs.confidence > 0.5]) == 1
    assert len(found[[]].to_supervision()) == 0


@pytest.mark.parametrize(
    ("name", "method"), [("pandas", "to_pandas"), ("supervision", "to_supervision")]
)
def test_what_is_not_installed_is_named(found, monkeypatch, name, method):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"{method}\(\) needs {name}.*rcnn-ext\[results\]"):
        getattr(found, method)()


def test_saving_goes_by_the_suffix(found, tmp_path):
    with Image.open(found.save(tmp_path / "out" / "drawn.JPG")) as drawn:
        assert drawn.size == (400, 300)
    found.save(str(tmp_path / "found.json"), min_score=0.5)
    (entry,) = json.loads((tmp_path / "found.json").read_text())
    assert entry["category_name"] == "dog"
    rows = list(csv.DictReader(found.save(tmp_path / "found.csv").open()))
    assert [(row["name"], row["x1"], row["score"]) for row in rows] == [
        ("dog", "200.0", "0.9"),
        ("cat", "0.0", "0.4"),
    ]
    with pytest.raises(UserError, match="found.xyz must end in .json, .csv or a picture's suffix"):
        found.save(tmp_path / "found.xyz")
    assert not (tmp_path / "found.xyz").exists()


def test_a_notebook_shows_picture_and_table(photo):
    class_list = ClassList(("<b>cat</b>", "dog"), (1, 2))
    found = Predictor(Corner(), class_list).predict(photo)
    assert repr(found) == "Detections(photo.png, 400x300: 1 dog, 1 <b>cat</b>)"
    html = found._repr_html_()
    assert "<td>&lt;b&gt;cat&lt;/b&gt;</td>" in html
    assert "<b>" not in html
    data = re.search(r"data:image/jpeg;base64,([^\"]+)", html)[1]
    assert base64.b64decode(data) == found._repr_jpeg_()
    assert found._repr_png_().startswith(b"\x89PNG")
    assert repr(found[[]]) == "Detections(photo.png, 400x300: none)"


def test_they_can_be_sent_to_another_process(masked):
    again = pickle.loads(pickle.dumps(masked))
    assert torch.equal(again.masks, masked.masks)
    assert again.to_coco() == masked.to_coco()
    assert again.draw().tobytes() == masked.draw().tobytes()
