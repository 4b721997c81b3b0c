"""COCO files as tools and other machines write them."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.data import DataConfig, json_lists, open_split, read_coco
from rcnn_ext.data.check import list_splits
from rcnn_ext.data.formats.registry import resolve_format
from rcnn_ext.data.json_lists import JsonListPlaces
from rcnn_ext.data.json_stream import JsonStream
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from tests.helpers.large_coco import write_large_coco

SQUARE = [[10, 5, 30, 5, 30, 25, 10, 25]]


def coco(*objects, ids=(1,), names=None, categories=None):
    """A file of pictures of 60x40 with some objects."""
    names = names or [f"{index}.png" for index in range(len(ids))]
    return {
        "images": [
            {"id": own, "file_name": name, "width": 60, "height": 40}
            for own, name in zip(ids, names, strict=True)
        ],
        "categories": categories or [{"id": 1, "name": "leaf"}],
        "annotations": [
            {"id": index, "image_id": ids[0], "category_id": 1, "bbox": [1, 2, 3, 4]} | change
            for index, change in enumerate(objects)
        ],
    }


def write(root, document, **how):
    for index in range(len(document["images"])):
        Image.new("RGB", (60, 40)).save(root / f"{index}.png")
    path = root / "train.json"
    path.write_bytes(json.dumps(document, ensure_ascii=False, **how).encode())
    return path


@pytest.mark.parametrize("objects", [[1, 2], [0, 1], []])
def test_categories_that_only_group_others_are_no_classes(tmp_path, objects):
    categories = [
        {"id": 0, "name": "fishes", "supercategory": "none"},
        {"id": 1, "name": "trout", "supercategory": "fishes"},
        {"id": 2, "name": "pike", "supercategory": "fishes"},
        {"id": 3, "name": "person", "supercategory": "person"},  # Of itself alone.
    ]
    document = coco(*({"category_id": own} for own in objects), categories=categories)
    report = Report()
    found = read_coco(write(tmp_path, document), report=report)
    own = ("fishes",) if 0 in objects else ()
    assert found.classes.names == (*own, "trout", "pike", "person")
    assert len(found.images.boxes) == len(objects)
    notes = [problem.message for problem in report.problems]
    assert notes == ([] if own else ["no class: 'fishes', the supercategory of others that no "
                                     "object is of"])  # fmt: skip
    asked = read_coco(tmp_path / "train.json", classes=["fishes"], missing_classes_ok=True)
    assert asked.classes.names == ("fishes",)


@pytest.mark.parametrize(
    ("change", "box"),
    [
        ({"bbox": None, "segmentation": SQUARE}, [10, 5, 30, 25]),
        ({"bbox": [], "segmentation": SQUARE}, [10, 5, 30, 25]),
        ({"bbox": [], "segmentation": SQUARE[0]}, [10, 5, 30, 25]),
        ({"bbox": [], "segmentation": {"counts": [405, 10, 1985], "size": [40, 60]}},
         [10, 5, 11, 15]),
        ({"bbox": [2, 2, 3, 3], "segmentation": SQUARE}, [2, 2, 5, 5]),
    ],
)  # fmt: skip
def test_boxes_come_from_outlines_where_there_are_none(tmp_path, change, box):
    path = write(tmp_path, coco(change))
    np.testing.assert_array_equal(read_coco(path).images[0].boxes, [box])
    assert read_coco(path).images[0].segmentations is None
    (outline,) = read_coco(path, masks=True).images[0].segmentations
    assert outline.mask(60, 40).sum() == outline.area()
    kept = open_split(DataConfig(masks=True), tmp_path, "train").images[0]
    assert kept.segmentations[0].box() == outline.box()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": []}, "has neither a 'bbox' nor a 'segmentation'"),
        ({"bbox": None, "segmentation": [[1, 2, 3]]}, "its 'segmentation' has a polygon of 3"),
        ({"bbox": [1, 2, 3, 10**400]}, "with a number beyond all bounds"),
        ({"area": 10**400}, "'area' is 1000.* beyond all bounds"),
        ({"bbox": "1,2,3,4"}, "not four numbers"),
        ({"image_id": None}, "no image has the id None"),
        ({"category_id": True}, "no category has the id None"),
    ],
)
def test_objects_that_cannot_be_used_are_named(tmp_path, change, message):
    path = write(tmp_path, coco({}, change, {}))
    with pytest.raises(UserError, match=rf"annotations\[1\] \(id 1\): .*{message}"):
        read_coco(path)


@pytest.mark.parametrize(
    "ids",
    [("0001_b", "0001_c"), ("324158", "324159"), (1.5, 2.5), (2**70, 3), ("a", 1), (-1, 0)],
)
def test_ids_of_any_type_lead_to_their_objects_and_back(tmp_path, ids):
    document = coco({}, {"bbox": [5, 6, 7, 8], "image_id": ids[1]}, ids=ids)
    found = read_coco(write(tmp_path, document))
    assert [record.file_id for record in found.images] == list(ids)
    assert len({record.image_id for record in found.images}) == 2
    assert [record.boxes.tolist() for record in found.images] == [[[1, 2, 4, 6]], [[5, 6, 12, 14]]]


def test_numbers_and_their_texts_are_the_same_id(tmp_path):
    document = coco({"image_id": "7"}, {"image_id": 8, "category_id": "1"}, ids=(7.0, "8"))
    found = read_coco(write(tmp_path, document))
    assert [len(record.boxes) for record in found.images] == [1, 1]
    texts = [{"id": "b", "name": "leaf"}, {"id": "a", "name": "stem"}]
    found = read_coco(write(tmp_path, coco({"category_id": "b"}, categories=texts)))
    assert (found.classes.names, found.classes.category_ids) == (("stem", "leaf"), ("a", "b"))
    assert found.images[0].labels.tolist() == [2]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_every_encoding_of_unicode_is_read(tmp_path, encoding):
    document = coco({}, categories=[{"id": 1, "name": "Blatt-é"}])
    path = write(tmp_path, document)
    path.write_bytes(json.dumps(document, ensure_ascii=False).encode(encoding))
    report = Report()
    config = DataConfig(format="coco", train_annotations="train.json")
    assert open_split(config, tmp_path, "train", None, report).classes.names == ("Blatt-é",)
    assert report.problems == []


def test_other_encodings_are_named_with_the_byte(tmp_path):
    path = write(tmp_path, coco({}, categories=[{"id": 1, "name": "é"}]))
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xe9"))
    with pytest.raises(UserError, match=r"train\.json:1: byte 0xe9 at offset \d+ is not UTF-8"):
        read_coco(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deep\\0.png", False),
        ("./deep/0.png", False),
        ("/home/else/data/deep/0.png", True),
        ("C:\\Users\\else\\0.png", True),
        ("0.PNG", True),
        ("other/0.png", True),
    ],
)
def test_pictures_are_found_by_names_of_other_systems(tmp_path, name, said):
    document = coco({}, names=[name])
    path = write(tmp_path, document)
    (tmp_path / "images/deep").mkdir(parents=True)
    (tmp_path / "0.png").rename(tmp_path / "images/deep/0.png")
    report = Report()
    found = read_coco(path, tmp_path / "images", report=report)
    assert found.images[0].path.resolve() == (tmp_path / "images/deep/0.png").resolve()
    assert [problem.severity for problem in report.problems] == ["note"] * said
    (tmp_path / "images/more").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "images/more/0.png")
    if name in ("C:\\Users\\else\\0.png", "other/0.png"):
        with pytest.raises(UserError, match="none of the 1 images"):
            read_coco(path, tmp_path / "images")


def test_missing_first_pictures_do_not_hide_where_the_others_are(tmp_path):
    path = write(tmp_path, coco({}, ids=tuple(range(60))))
    for index in range(30):
        (tmp_path / f"{index}.png").unlink()
    report = Report()
    assert len(read_coco(path, report=report)) == 30
    assert len(report.errors()) == 30


def test_pictures_outside_of_the_folder_are_said(tmp_path):
    (tmp_path / "set").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "out.png")
    path = tmp_path / "set" / "train.json"
    path.write_text(json.dumps(coco({}, names=["../out.png"])))
    report = Report()
    assert len(read_coco(path, report=report)) == 1
    assert "1 of the images are outside of the data folder" in report.problems[0].message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [{"id": 1},\n {"id" 2}]}', "line 2, column 8"),
        ('{"images": [1, 2', "line 1"),
        ('{"images": [1, 2,]}', "trailing comma at line 1, column 17"),
        ('{"images": []} x', "Extra data at line 1, column 16"),
        ('{"images": [' + "[" * 100_000, "nested too deeply"),
        ('{"images": [' + "1" * 5000 + "]}", "too many digits"),
        ("{images: []}", "property name"),
    ],
)
def test_broken_json_is_named_with_its_place(tmp_path, text, message):
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_coco(path)


@pytest.mark.parametrize("indent", [None, 1])
def test_pieces_of_a_file_are_the_file(tmp_path, monkeypatch, indent):
    """Pieces end anywhere: in numbers, texts, escapes and characters of several bytes."""
    document = {
        "info": {"a": "}, {", "n": 12345},
        "images": [
            {"id": i, "t": "ä}, {\\" + "x" * (i % 50), "o": {"p": [1.5, {}]}} for i in range(300)
        ],
        "empty": [],
        "annotations": [{"id": i, "bbox": [i, 2.25, 3, 4]} for i in range(300)],
        "version": 3,
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document, ensure_ascii=False, indent=indent), encoding="utf-8")
    for size in (1, 7, 1000, 1 << 20):
        monkeypatch.setattr("rcnn_ext.data.json_stream._PIECE", size)
        found: dict[str, list] = {}
        for name, entries in JsonStream(path).sections():
            found.setdefault(name, []).extend(entries or [])
        assert found == {
            name: value if isinstance(value, list) else [] for name, value in document.items()
        }
    places, lines = JsonListPlaces(path), path.read_text(encoding="utf-8").splitlines()
    for index in (0, 7, 299):
        line = places.line("annotations", index)
        assert line == 1 if indent is None else f'"id": {index}' in lines[line]
    assert places.line("images", 3) == (1 if indent is None else lines.index('   "id": 3,'))


def test_a_file_of_one_line_is_searched_for_line_ends_once(tmp_path, monkeypatch):
    path = tmp_path / "train.json"
    path.write_text('{"images": [{}, {}], "annotations": [{}]}')
    searched = []
    is_one_line = json_lists._is_one_line
    monkeypatch.setattr(
        json_lists, "_is_one_line", lambda path: searched.append(path) or is_one_line(path)
    )
    places = JsonListPlaces(path)
    assert [places.line("images", 0), places.line("images", 1)] == [1, 1]
    assert places.line("annotations", 0) == 1
    assert searched == [path]


def test_ten_thousand_images_open_in_a_second_of_processor_time(tmp_path):
    write_large_coco(tmp_path / "train.json", 10_000, 70_000)
    start = time.process_time()
    found = read_coco(tmp_path / "train.json")
    # About 0.3 s; the limit is far off that of reading object by object.
    assert time.process_time() - start < 2
    assert (len(found), len(found.images.boxes)) == (10_000, 70_000)


def test_a_hundred_thousand_categories_are_no_square(tmp_path):
    categories = [{"id": index, "name": f"c{index}"} for index in range(100_000)]
    path = write(tmp_path, coco({}, categories=categories))
    start = time.process_time()
    assert len(read_coco(path).classes) == 100_000
    assert time.process_time() - start < 5


def test_one_file_whose_images_name_their_splits(tmp_path):
    document = coco({}, {"image_id": 2}, {"image_id": 2}, ids=(1, 2, 3, 4))
    for entry, split in zip(document["images"], ("train", "val", "test", None), strict=True):
        entry |= {"split": split} if split else {}
    write(tmp_path, document).rename(tmp_path / "all.json")
    config = DataConfig()
    assert list_splits(resolve_format(config, tmp_path), tmp_path) == ["train", "val", "test"]
    expected = {"train": ([1, 4], 1), "val": ([2], 2), "test": ([3], 0)}
    for split, (ids, objects) in expected.items():
        found = open_split(config, tmp_path, split)
        assert [record.image_id for record in found.images] == ids
        assert (len(found.images.boxes), found.skipped) == (objects, 0)
    assert len(read_coco(tmp_path / "all.json")) == 4
