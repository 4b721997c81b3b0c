"""The names of pictures as other systems and tools write them, by one rule for all formats."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from rcnn_ext.data import DataConfig, open_split
from rcnn_ext.data.formats.file_names import file_parts, name_key
from rcnn_ext.errors import UserError

# As annotations have it, and as the file is called.
NAMES = {
    "Windows": ("C:\\data\\pictures\\a.jpg", "a.jpg"),
    "Windows, a folder": ("sub\\a.jpg", "sub/a.jpg"),
    "another machine": ("/home/me/pictures/a.jpg", "a.jpg"),
    "a bucket": ("s3://bucket/pictures/a%20b.jpg", "a b.jpg"),
    "an address": ("https://host/pictures/a.jpg?key=1", "a.jpg"),
    "upper case": ("A.JPG", "a.jpg"),
    "composed accents": ("caf\u00e9.jpg", "cafe\u0301.jpg"),
    "separate accents": ("cafe\u0301.jpg", "caf\u00e9.jpg"),
}


def coco(path, name):
    document = {
        "images": [{"id": 1, "file_name": name, "width": 40, "height": 20}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 12]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (path / "train.json").write_text(json.dumps(document))


def csv(path, name):
    (path / "train.csv").write_text(f"filename,xmin,ymin,xmax,ymax,class\n{name},1,2,11,14,cat\n")


def createml(path, name):
    box = {"x": 6, "y": 8, "width": 10, "height": 12}
    entry = {"image": name, "annotations": [{"label": "cat", "coordinates": box}]}
    (path / "a.json").write_text(json.dumps([entry]))


@pytest.mark.parametrize("make", [coco, csv, createml])
@pytest.mark.parametrize(("written", "file"), NAMES.values(), ids=NAMES)
def test_names_of_other_systems_are_found_in_every_format(tmp_path, make, written, file):
    path = tmp_path / "images" / file
    path.parent.mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(path)
    make(tmp_path, written)
    (record,) = open_split(DataConfig(), tmp_path, "train").images
    assert record.path == path
    assert record.boxes.tolist() == [[1, 2, 11, 14]]


@pytest.mark.parametrize("make", [coco, csv])
def test_names_without_a_suffix_are_found_if_one_picture_fits(tmp_path, make):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "a.png")
    make(tmp_path, "a")
    (record,) = open_split(DataConfig(), tmp_path, "train").images
    assert record.path == tmp_path / "images" / "a.png"
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "a.bmp")
    with pytest.raises(UserError, match=r"a\.bmp(,| or) \S*a\.png"):
        open_split(DataConfig(), tmp_path, "train")


def test_parts_and_keys():
    assert file_parts("/data/local-files/?d=sub/a%20b.jpg") == ("sub", "a b.jpg")
    assert file_parts("./a.jpg") == ("a.jpg",)
    assert name_key("Caf\u00e9.JPG") == name_key("cafe\u0301.jpg")
