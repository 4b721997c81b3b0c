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
from rcnn_ext.data import DataConfig, convert
from rcnn_ext.data.conversion import numbers
from rcnn_ext.errors import UserError
from tests.helpers import layouts
from tests.helpers.small_coco import coco, read

pytest.importorskip("lxml", reason="lxml comes with the extra train")
pytest.importorskip("yaml", reason="PyYAML comes with the extra train")

TARGETS = ("coco", "voc", "yolo", "csv")


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
@pytest.mark.parametrize("mode", ["copy", "link", "none"])
def test_pictures_are_copied_linked_or_left(tmp_path, mode, target):
    layouts.voc_without_sets(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", target, images=mode)
    old = read(tmp_path / "in")
    if mode == "none" and target in ("coco", "csv"):
        with pytest.raises(UserError, match=r"6 pictures lie outside .*data\.allow_outside=true"):
            read(tmp_path / "out")
    new = read(tmp_path / "out", allow_outside=True)
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
    with pytest.raises(UserError, match=r"p0\.png, outside of the data set: data\.allow_outside"):
        convert(tmp_path / "in", tmp_path / "out", "voc")
    config = DataConfig(allow_outside=True)
    result = convert(tmp_path / "in", tmp_path / "out", "voc", config=config)
    assert result.read_format == "hf"
    found = read(tmp_path / "out")
    assert [record.boxes.tolist() for record in found.images] == [[list(layouts.BOX)]] * 6
    with pytest.raises(UserError, match="copy them"):
        convert(tmp_path / "in", tmp_path / "new", "voc", config=config, images="none")
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
        found = read(tmp_path / mode, allow_outside=True)
        assert sorted(r.path.resolve().read_bytes() for r in found.images) == sorted(
            path.read_bytes() for path in root.glob("*.png")
        )
        assert len(found.images.boxes) == 0


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


def test_other_readers_take_what_is_written(tmp_path):
    mask = pytest.importorskip("pycocotools.coco", reason="pycocotools comes with the extra test")
    coco(tmp_path / "in", [(1, "1.png")], [(1, 0, [1, 1, 5, 5])] * 2)
    document = json.loads((tmp_path / "in" / "train.json").read_text())
    shapes = [[[1, 1, 6, 1, 6, 6, 1, 6]], {"counts": [21, 5, 774], "size": [20, 40]}]
    for entry, shape in zip(document["annotations"], shapes, strict=True):
        entry["segmentation"] = shape
    (tmp_path / "in" / "train.json").write_text(json.dumps(document))
    convert(tmp_path / "in", tmp_path / "out", "coco")
    found = mask.COCO(str(tmp_path / "out" / "annotations" / "instances_train.json"))
    masks = [found.annToMask(found.anns[number]) for number in (1, 2)]
    assert [int(one.sum()) for one in masks] == [25, 5]
    assert masks[1][1:6, 1].all()
