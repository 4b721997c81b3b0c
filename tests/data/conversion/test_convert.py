"""Conversion beyond the annotations: files, names, options, errors and the command."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.cli import main
from rcnn_ext.data import DataConfig, convert, open_split
from rcnn_ext.data.conversion import numbers
from rcnn_ext.errors import UserError
from tests.helpers import layouts

pytest.importorskip("lxml", reason="lxml comes with the extra train")
pytest.importorskip("yaml", reason="PyYAML comes with the extra train")

TARGETS = ("coco", "voc", "yolo", "csv")


def coco(root, images, objects, names=("a",), split="train"):
    """Write COCO data: pictures by name as (id, file name), objects as (image, category, box)."""
    root.mkdir(parents=True, exist_ok=True)
    for number, (_, name) in enumerate(images):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (number, 0, 0)).save(root / name, format="PNG")
    document = {
        "images": [{"id": i, "file_name": n, "width": 40, "height": 20} for i, n in images],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": box}
            for n, (i, c, box) in enumerate(objects)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
    }
    (root / f"{split}.json").write_text(json.dumps(document))


def read(root, split="train"):
    return open_split(DataConfig(), root, split)


def boxes_by_color(found):
    """The boxes of each picture, which is told by its color."""
    return {
        Image.open(record.path).getpixel((0, 0))[0]: record.boxes.tolist()
        for record in found.images
    }


def test_numbers_read_back_as_the_same_values():
    rng = np.random.default_rng(0)
    for scale in (1, 40, 5000, 60000):
        corners = np.sort(rng.uniform(0, scale, (400, 2, 2)), axis=1).reshape(-1, 4)
        for box in [*corners.astype(np.float32), *corners.round(1).astype(np.float32)]:
            x, y, w, h = map(float, numbers.corner_and_side_texts(box))
            assert np.float32([x, y, x + w, y + h]).tolist() == box.tolist()
            x1, y1, x2, y2 = map(float, numbers.one_based_texts(box))
            assert np.float32([x1 - 1, y1 - 1, x2, y2]).tolist() == box.tolist()
            cx, cy, w, h = map(float, numbers.center_and_side_texts(box, (scale, scale)))
            ends = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * scale
            assert ends.clip(0, scale).astype(np.float32).tolist() == box.tolist()
    box = np.float32([10.3, 4, 30, 16.25])
    assert numbers.corner_and_side_texts(box) == ["10.3", "4", "19.7", "12.25"]
    assert numbers.one_based_texts(box) == ["11.3", "5", "30", "16.25"]
    whole = np.float32([10, 4, 30, 14])
    assert numbers.center_and_side_texts(whole, (40, 20)) == [
        *("0.500000", "0.450000", "0.500000", "0.500000")
    ]


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
    said = [s for s in result.not_kept if s.startswith("names of classes: 1 (")]
    assert len(said) == same.count(False) == {"coco": 0, "yolo": 1}.get(target, len(said))
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


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mode", ["copy", "link", "none"])
def test_pictures_are_copied_linked_or_left(tmp_path, mode, target):
    layouts.voc_without_sets(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", target, images=mode)
    old, new = read(tmp_path / "in"), read(tmp_path / "out")
    for one, other in zip(old.images, new.images, strict=True):
        assert one.boxes.tolist() == other.boxes.tolist()
        assert os.path.samefile(one.path, other.path) == (mode != "copy")
        assert one.path.read_bytes() == other.path.read_bytes()
        assert other.path.is_symlink() == (mode == "none" and target in ("voc", "yolo"))
    inside = list((tmp_path / "out").rglob("*.png"))
    assert len(inside) == (0 if mode == "none" and target in ("coco", "csv") else len(old))


def test_out_is_whole_or_not_there_and_only_overwritten_when_asked(tmp_path):
    layouts.labelimg_yolo(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    convert(tmp_path / "in", out, "csv")
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out is not empty: name a new folder, or .*--overwrite"):
        convert(tmp_path / "in", out, "coco")
    (tmp_path / "in" / "p3.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"p3\.png.*data\.on_error=skip"):
        convert(tmp_path / "in", out, "coco", overwrite=True)
    assert (out / "mine.txt").exists()
    with pytest.raises(UserError):
        convert(tmp_path / "in", tmp_path / "new", "coco")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    skip = DataConfig(on_error="skip")
    result = convert(tmp_path / "in", out, "coco", config=skip, overwrite=True)
    assert result.images == {"train": layouts.COUNT - 1}
    assert "images: 1 (they or their annotations are broken: left out)" in result.not_kept
    assert sorted(path.name for path in out.iterdir()) == ["annotations", "train"]
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    for place in (tmp_path / "in", tmp_path):
        with pytest.raises(UserError, match="is or contains the data to convert"):
            convert(tmp_path / "in", place, "voc", overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        convert(tmp_path / "in", tmp_path / "in" / "p0.png", "voc")


def test_a_size_that_fits_no_picture_is_named(tmp_path):
    coco(tmp_path / "in", [(1, "1.png"), (2, "2.png")], [(2, 0, [1, 1, 5, 5])])
    Image.new("RGB", (50, 50)).save(tmp_path / "in" / "1.png")
    message = r"1\.png is 50x50 pixels, but its annotations say 40x20; data\.on_error=skip"
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "in", tmp_path / "out", "yolo")
    config = DataConfig(on_error="skip")
    assert convert(tmp_path / "in", tmp_path / "out", "yolo", config=config).images["train"] == 1


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


def test_tiny_pixels_in_a_table_are_warned_of(tmp_path):
    coco(tmp_path / "in", [(1, "1.png")], [(1, 0, [0, 0, 1, 1])])
    result = convert(tmp_path / "in", tmp_path / "out", "csv")
    assert "data.csv.normalized=false" in result.not_kept[0]


def test_the_command_converts_an_archive_and_says_what_was_lost(tmp_path, capsys):
    objects = [(1, 0, [1, 1, 5, 5]), (1, 0, [1, 1, 50, 5])]
    coco(tmp_path / "in", [(1, "1.png"), (2, "2.png")], objects)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in (tmp_path / "in").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "in"))
    out = tmp_path / "out"
    arguments = ["convert", str(tmp_path / "in.zip"), str(out), "--format", "yolo"]
    assert main([*arguments, "--from", "coco", "data.keep_empty=true"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{tmp_path / 'in.zip'}: format coco"
    assert "reaches out of the image (40x20) and was cut" in printed[1]
    assert printed[2] == "not kept: boxes: 1 (cut to their image)"
    assert printed[-1] == f"wrote {out}: yolo, train: 2 images with 2 objects, 1 classes"
    assert (out / "labels" / "train" / "2.txt").read_text() == ""
    assert main(["check", str(out), "--strict"]) == 0
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rcnn-ext: {out} is not empty")
    assert main(["convert", str(tmp_path / "none"), str(out / "x"), "--format", "csv"]) == 2
    assert main([*arguments, "--overwrite", "--split", "val"]) == 2
    assert (out / "data.yaml").exists()


def test_splits_can_be_cut_while_converting(tmp_path):
    layouts.voc_without_sets(tmp_path / "in")
    config = DataConfig(val_fraction=1 / 3)
    result = convert(tmp_path / "in", tmp_path / "out", "coco", config=config)
    assert result.images == {"train": 4, "val": 2}
    again = convert(tmp_path / "out", tmp_path / "val", "voc", splits=["val"])
    assert again.images == {"val": 2}


def test_rows_of_the_hub_become_files(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets comes with the extra hf")
    layouts.pictures(tmp_path / "pictures")
    rows = [
        {
            "image": str(tmp_path / "pictures" / f"p{n}.png"),
            "image_id": n,
            "objects": {"bbox": [[10, 4, 20, 12]], "category": [n % 2]},
        }
        for n in range(layouts.COUNT)
    ]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    (tmp_path / "in").mkdir()
    table.to_parquet(tmp_path / "in" / "train.parquet")
    result = convert(tmp_path / "in", tmp_path / "out", "voc")
    assert result.read_format == "hf"
    found = read(tmp_path / "out")
    assert [record.boxes.tolist() for record in found.images] == [[list(layouts.BOX)]] * 6
    with pytest.raises(UserError, match="copy them"):
        convert(tmp_path / "in", tmp_path / "new", "voc", images="none")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "pictures"}


def test_outlines_that_cannot_be_read_are_warned_of(tmp_path, capsys):
    coco(tmp_path / "in", [(1, "1.png")], [(1, 0, [n, 1, 5, 5]) for n in range(3)])
    file = tmp_path / "in" / "train.json"
    document = json.loads(file.read_text())
    document["annotations"][1]["segmentation"] = [[1, 2, 3]]
    document["annotations"][2]["segmentation"] = {"counts": [1], "size": [20, 40]}
    file.write_text(json.dumps(document, indent=1))
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--format", "coco"]) == 0
    warning = capsys.readouterr().out.splitlines()[1]
    assert "2 objects keep their boxes only; the first: annotations[1]" in warning
    assert "has a polygon of 3 numbers" in warning
    assert len(read(tmp_path / "out").images.boxes) == 3


@pytest.mark.parametrize("target", TARGETS)
def test_data_without_any_object_and_odd_pictures(tmp_path, target):
    root = tmp_path / "in"
    coco(root, [(1, "1.png"), (2, "img -1.png"), (3, ".hidden.png")], [])
    Image.fromarray(np.zeros((20, 40), np.uint16)).save(root / "1.png")
    for mode in ("copy", "none"):
        convert(root, tmp_path / mode, target, images=mode)
        found = read(tmp_path / mode)
        assert sorted(r.path.resolve().read_bytes() for r in found.images) == sorted(
            path.read_bytes() for path in root.glob("*.png")
        )
        assert len(found.images.boxes) == 0


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


def test_places_that_cannot_be_written_are_named(tmp_path):
    layouts.labelimg_voc(tmp_path / "in")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "out", tmp_path / ("y" * 300)):
        with pytest.raises(UserError, match=r"cannot (write|make the folder) .*(yyy|file)"):
            convert(tmp_path / "in", out, "coco")
    for name, value in (("format", "png"), ("images", "move"), ("splits", ["all"])):
        arguments = {"format": "coco", name: value}
        with pytest.raises(UserError, match="choose from"):
            convert(tmp_path / "in", tmp_path / "out", **arguments)


@pytest.mark.parametrize("mode", ["copy", "link", "none"])
def test_a_full_disk_leaves_nothing_and_is_named(tmp_path, mode, monkeypatch):
    layouts.voc_without_sets(tmp_path / "in")

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    for module, name in ((shutil, "copyfile"), (os, "link"), (os, "symlink")):
        monkeypatch.setattr(module, name, fail)
    message = rf"{tmp_path / 'out'}.*p0\.png: No space left on device"
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "in", tmp_path / "out", "voc", images=mode)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(UserError, match="out: No space left on device; nothing was written: free"):
        convert(tmp_path / "in", tmp_path / "out", "voc", images=mode)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
