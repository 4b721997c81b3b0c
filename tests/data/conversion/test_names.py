"""Names of pictures and classes, and ids, in converted data."""

from __future__ import annotations

import json
import os

import pytest

from rcnn_ext.data import convert
from rcnn_ext.errors import UserError
from tests.helpers import layouts
from tests.helpers.small_coco import boxes_by_color, coco, read

pytest.importorskip("lxml", reason="lxml comes with the extra train")
pytest.importorskip("yaml", reason="PyYAML comes with the extra train")

TARGETS = ("coco", "voc", "yolo", "csv")


@pytest.mark.parametrize("target", TARGETS)
def test_pictures_of_one_name_in_several_folders_are_all_there(tmp_path, target):
    images = [(1, "x/1.png"), (2, "y/1.png"), (3, "y/x_1.png"), (4, "1.jpg"), (5, "1.PNG")]
    images += [
        (6, "a b.png"),
        (7, "c%20d.png"),
        (8, "f://g.png"),
        (9, "no suffix"),
        (10, "é,;.png"),
    ]
    objects = [(i, 0, [i, 1, 2, i]) for i, _ in images]
    coco(tmp_path / "in", images, objects)
    result = convert(tmp_path / "in", tmp_path / "out", target)
    old, new = read(tmp_path / "in"), read(tmp_path / "out")
    assert boxes_by_color(new) == boxes_by_color(old)
    assert len(new) == len({record.path for record in new.images}) == len(images)
    kept = {record.path.name for record in new.images}
    assert {"1.png", "a b.png", "c%20d.png", "é,;.png"} <= kept
    assert any(sentence.startswith("names of pictures: ") for sentence in result.not_kept)


@pytest.mark.parametrize("target", TARGETS)
def test_a_picture_in_two_entries_keeps_the_objects_of_both(tmp_path, target):
    coco(tmp_path / "in", [(1, "1.png")], [])
    document = json.loads((tmp_path / "in" / "train.json").read_text())
    document["images"].append({**document["images"][0], "id": 2})
    document["annotations"] = [
        {"id": i, "image_id": i, "category_id": 0, "bbox": [i, 1, 5, 5]} for i in (1, 2)
    ]
    for split in ("train", "val"):
        (tmp_path / "in" / f"{split}.json").write_text(json.dumps(document))
    document["annotations"].pop()
    convert(tmp_path / "in", tmp_path / "out", target)
    for split in ("train", "val"):
        found = read(tmp_path / "out", split)
        assert sorted(record.boxes.tolist() for record in found.images) == [
            [[1, 1, 6, 6]],
            [[2, 1, 7, 6]],
        ]


@pytest.mark.parametrize("target", TARGETS)
def test_an_object_twice_is_written_once_where_it_would_be_an_error(tmp_path, target):
    objects = [(1, 0, [1, 1, 5, 5])] * 3 + [(1, 1, [1, 1, 5, 5])]
    coco(tmp_path / "in", [(1, "1.png")], objects, names=("a", "b"))
    result = convert(tmp_path / "in", tmp_path / "out", target)
    once = target in ("yolo", "csv")
    assert len(read(tmp_path / "out").images.boxes) == result.objects["train"] == 4 - 2 * once
    assert any(s.startswith("repeated objects: 2") for s in result.not_kept) == once


@pytest.mark.parametrize("target", TARGETS)
def test_names_of_classes_that_a_format_cannot_hold_are_changed_and_said(tmp_path, target):
    names = (" a", "a", "", "b\x01", "c\r\nd", "e\n,,,,,,", "\ud800", "1", "2", "0", "x.png", "nan")
    objects = [(1, n, [n, 1, 5, 5]) for n in range(len(names))]
    coco(tmp_path / "in", [(1, "1.png")], objects, names)
    result = convert(tmp_path / "in", tmp_path / "out", target)
    found = read(tmp_path / "out")
    assert set(found.classes.names) == set(result.classes.names)
    (record,) = found.images
    assert len(set(result.classes.names)) == len(names)
    for box, label in zip(record.boxes, record.labels, strict=True):
        assert found.classes.name(int(label)) == result.classes.names[int(box[0])]
    same = [old == new for old, new in zip(names, result.classes.names, strict=True)]
    said = [s for s in result.not_kept if s.startswith("names of classes: ")]
    changed = {"coco": 0, "yolo": 1, "voc": 4, "csv": 5}[target]
    assert same.count(False) == changed
    assert [s.partition(" (")[0] for s in said] == [f"names of classes: {changed}"] * bool(changed)
    assert same[1]
    assert all(same[7:])


@pytest.mark.parametrize("target", TARGETS)
def test_splits_with_other_classes_share_one_list(tmp_path, target):
    root = tmp_path / "in"
    layouts.voc_xml(root / "train", [0, 2])
    layouts.pictures(root / "train", [0, 2])
    layouts.voc_xml(root / "valid", [1, 3])
    layouts.pictures(root / "valid", [1, 3])
    result = convert(root, tmp_path / "out", target)
    assert result.classes.names == layouts.CLASSES
    assert result.not_kept == ()
    for split, name in (("train", "cat"), ("val", "dog")):
        found = read(tmp_path / "out", split)
        assert {found.classes.name(int(label)) for label in found.images.labels} == {name}
        if target != "voc":
            assert found.classes.names == layouts.CLASSES


def test_ids_of_classes_are_kept_by_csv_and_told_of_by_others(tmp_path):
    coco(tmp_path / "in", [(1, "1.png")], [(1, 2, [1, 1, 5, 5])], names=("c", "a", "b"))
    result = convert(tmp_path / "in", tmp_path / "csv", "csv")
    assert result.not_kept == ()
    assert read(tmp_path / "csv").classes == read(tmp_path / "in").classes
    result = convert(tmp_path / "in", tmp_path / "voc", "voc")
    assert [s.partition(" (")[0] for s in result.not_kept] == [
        "category ids: 3",
        "classes without objects: 2",
    ]


@pytest.mark.skipif(os.name != "posix", reason="names of files are Unicode elsewhere")
@pytest.mark.parametrize("target", TARGETS)
def test_names_that_are_no_unicode(tmp_path, target):
    root = tmp_path / "in"
    coco(root, [(1, "1.png"), (2, "2.png")], [(2, 0, [1, 1, 5, 5])])
    try:
        os.rename(root / "2.png", root / "b\udcff.png")
    except OSError:
        pytest.skip("this file system has Unicode names only")
    document = (root / "train.json").read_text().replace("2.png", r"b\udcff.png")
    (root / "train.json").write_text(document)
    convert(root, tmp_path / "out", target)
    assert boxes_by_color(read(tmp_path / "out")) == {0: [], 1: [[1, 1, 6, 6]]}
    assert {record.path.name for record in read(tmp_path / "out").images} == {"1.png", "b_.png"}
    if target == "csv":
        with pytest.raises(UserError, match="cannot be named in a table as it is"):
            convert(root, tmp_path / "none", target, images="none")


def test_splits_that_disagree_about_ids_get_one_list(tmp_path):
    coco(tmp_path / "in", [(1, "1.png")], [(1, 1, [1, 1, 5, 5])], names=("c", "a"))
    coco(tmp_path / "in", [(1, "1.png")], [(1, 0, [2, 1, 5, 5])], names=("b", "c"), split="val")
    result = convert(tmp_path / "in", tmp_path / "out", "coco")
    assert result.not_kept == (
        "category ids: 2 (splits gave a class several, or several classes one)",
    )
    for split, name in (("train", "a"), ("val", "b")):
        found = read(tmp_path / "out", split)
        assert dict(zip(found.classes.names, found.classes.category_ids, strict=True)) == {
            "c": 0,
            "a": 1,
            "b": 2,
        }
        assert [found.classes.name(int(label)) for label in found.images.labels] == [name]


def test_a_list_of_pictures_whose_names_end_like_flags(tmp_path):
    root = tmp_path / "in"
    coco(root, [(1, "1.png")], [(1, 0, [1, 1, 5, 5])])
    coco(root, [(1, "t 1.png"), (2, "t -1.png"), (3, "t x.png")], [], split="test")
    document = json.loads((root / "test.json").read_text())
    del document["annotations"]
    (root / "annotations").mkdir()
    (root / "test.json").unlink()
    (root / "annotations" / "image_info_test.json").write_text(json.dumps(document))
    result = convert(root, tmp_path / "out", "voc")
    names = {record.path.name for record in read(tmp_path / "out", "test").images}
    assert names == {"t 1_.png", "t -1_.png", "t x.png"}
    assert any(s.startswith("names of pictures: 2 (its end") for s in result.not_kept)
