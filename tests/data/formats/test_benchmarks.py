"""Data of public benchmarks, whose classes and marks are their own."""

from __future__ import annotations

import numpy as np
import pytest

from rcnn_ext.cli import main
from rcnn_ext.data import DataConfig, detect_format, has_split, open_split
from rcnn_ext.errors import UserError
from tests.conftest import TINY
from tests.helpers.layouts import pictures
from tests.helpers.text_layouts import (
    OPEN_IMAGES,
    global_wheat_2020,
    global_wheat_2021,
    kitti,
    kitti_lines,
    open_images,
    via_csv,
    visdrone,
    widerface,
    write_rows,
)

MAKERS = {
    "Global Wheat 2020": (global_wheat_2020, "global_wheat"),
    "Global Wheat 2021": (global_wheat_2021, "global_wheat"),
    "VisDrone": (visdrone, "visdrone"),
    "WIDER FACE": (widerface, "widerface"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_benchmarks_are_recognized_checked_and_trained(tmp_path, name, one_thread, capsys):
    pytest.importorskip("lightning", reason="lightning comes with the extra train")
    make, kind = MAKERS[name]
    data = tmp_path / "data"
    make(data)
    assert detect_format(data) == kind
    assert main(["check", str(data)]) == 0
    assert f"{data}: format {kind}" in capsys.readouterr().out
    arguments = ["faster_rcnn_synthetic", "--data", str(data), "--out", str(tmp_path / "out")]
    arguments += ["--max-steps", "1", *TINY, "data.format=auto", "data.workers=0"]
    assert main(["train", *arguments, "data.val_fraction=0.5"]) == 0
    assert (tmp_path / "out" / "last.ckpt").is_file()


def test_global_wheat_2020(tmp_path):
    global_wheat_2020(tmp_path)
    found = open_split(DataConfig(), tmp_path, "train")
    assert found.classes.names == ("wheat_head",)
    assert [len(record.boxes) for record in found.images] == [2, 1]
    np.testing.assert_allclose(found.images[0].boxes[0], [10, 4, 30, 16])
    (problem,) = (p for p in found.problems if p.severity == "warning")
    assert "1 picture in" in problem.message
    assert "the first is p2.png" in problem.message
    background = DataConfig()
    background.csv.unlisted = "background"
    found = open_split(background, tmp_path, "train")
    assert [len(record.boxes) for record in found.images] == [2, 1, 0]


def test_global_wheat_2021(tmp_path):
    global_wheat_2021(tmp_path)
    counts = {s: len(open_split(DataConfig(), tmp_path, s)) for s in ("train", "val", "test")}
    assert counts == {"train": 3, "val": 1, "test": 1}
    found = open_split(DataConfig(), tmp_path, "train")
    assert not [p for p in found.problems if p.severity != "note"]
    assert found.classes.names == ("wheat_head",)
    assert [len(record.boxes) for record in found.images] == [2, 1, 0]
    np.testing.assert_allclose(found.images[0].boxes, [[10, 4, 30, 16], [1, 2, 5, 9]])


def test_visdrone(tmp_path):
    visdrone(tmp_path)
    found = open_split(DataConfig(), tmp_path, "train")
    assert found.classes.names[:4] == ("pedestrian", "people", "bicycle", "car")
    assert len(found.classes.names) == 10
    first, second = found.images
    # A car, one that is not evaluated, and nothing else that is no crowd.
    assert first.labels[~first.crowd].tolist() == [4]
    np.testing.assert_array_equal(first.boxes[~first.crowd], [[10, 4, 30, 16]])
    # An ignored region and an object of no class are crowds of all ten.
    assert first.crowd.sum() == 1 + 2 * 10
    assert sorted(set(first.labels[first.crowd].tolist())) == list(range(1, 11))
    assert second.truncated.tolist() == [True]
    (note,) = found.problems
    assert "2 ignored regions and others" in note.message
    cars = open_split(DataConfig(classes=["car"]), tmp_path, "train")
    assert cars.images[0].crowd.sum() == 3
    assert len(open_split(DataConfig(), tmp_path, "val")) == 1
    assert not open_split(DataConfig(), tmp_path, "test").annotated
    # One of its folders alone is for training.
    alone = tmp_path / "VisDrone2019-DET-val"
    assert detect_format(alone) == "visdrone"
    assert len(open_split(DataConfig(), alone, "train")) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3,4,1,4,0", "7 values; a line has eight"),
        ("1,2,3,x,1,4,0,0", "'x' is not a whole number"),
        ("1,2,3,4,1,12,0,0", "there is no category 12"),
    ],
)
def test_visdrone_lines_that_are_wrong(tmp_path, line, message):
    visdrone(tmp_path)
    path = tmp_path / "VisDrone2019-DET-train" / "annotations" / "p1.txt"
    path.write_text(f"1,2,9,9,1,4,0,0\n{line}\n")
    with pytest.raises(UserError, match=rf"p1\.txt:2: {message}"):
        open_split(DataConfig(), tmp_path, "train")
    assert len(open_split(DataConfig(on_error="skip"), tmp_path, "train")) == 1


def test_kitti(tmp_path):
    kitti(tmp_path)
    path = tmp_path / "training" / "label_2" / "p0.txt"
    ignored = "DontCare -1 -1 -10 2.00 3.00 9.00 9.00 -1 -1 -1 -1000 -1000 -1000 -10\n"
    path.write_text(kitti_lines(0) + ignored)
    found = open_split(DataConfig(), tmp_path, "train")
    assert found.classes.names == ("cat", "dog")
    first = found.images[0]
    assert first.crowd.tolist() == [False, True, True]
    np.testing.assert_array_equal(first.boxes, [[10, 4, 30, 16], [2, 3, 9, 9], [2, 3, 9, 9]])
    assert "1 regions DontCare are crowds" in found.problems[0].message
    pictures(tmp_path / "testing" / "image_2", range(2))
    assert not open_split(DataConfig(), tmp_path, "test").annotated
    path.write_text("cat 0.00 0 x 1 2 3 4 5 6 7 8 9 10 11\n")
    with pytest.raises(UserError, match=r"p0\.txt:1: 'x' is not a number"):
        open_split(DataConfig(), tmp_path, "train")
    path.write_text("cat 0.00 0 1 2 3\n")
    with pytest.raises(UserError, match=r"p0\.txt:1: 6 values; a line has a class and 14"):
        open_split(DataConfig(), tmp_path, "train")


def test_kitti_files_without_counterpart(tmp_path):
    kitti(tmp_path)
    (tmp_path / "training" / "label_2" / "p3.txt").unlink()
    (tmp_path / "training" / "image_2" / "p4.png").unlink()
    found = open_split(DataConfig(), tmp_path, "train")
    assert [p.severity for p in found.problems] == ["note", "warning"]
    assert "1 picture has no text file, so no objects; the first is p3.png" in str(
        found.problems[0]
    )
    assert "1 text file has no picture that can be read; the first is p4.txt" in str(
        found.problems[1]
    )


def test_widerface(tmp_path):
    widerface(tmp_path)
    found = open_split(DataConfig(), tmp_path, "train")
    assert found.classes.names == ("face",)
    assert [len(record.boxes) for record in found.images] == [2, 0, 1]
    np.testing.assert_array_equal(found.images[0].boxes[0], [10, 4, 30, 16])
    assert found.images[0].difficult.tolist() == [False, True]
    assert len(open_split(DataConfig(), tmp_path, "val")) == 1
    assert not open_split(DataConfig(), tmp_path, "test").annotated


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\n2\n", "\nx\n", "line 2: 'x' is not the number of faces"),
        ("\n2\n", "\n3\n", "line 2: 3 faces of 0--Parade/p0.png, but 2 lines"),
        ("10 4 20 12", "10 4 x 12", "line 3: not numbers"),
        ("10 4 20 12", "10 4 20", "line 3: 9 values"),
        ("0--Parade/p0.png", "12", "line 1: '12' stands where the name of a picture is due"),
    ],
)
def test_widerface_lines_that_are_wrong(tmp_path, old, new, message):
    widerface(tmp_path)
    path = tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        open_split(DataConfig(), tmp_path, "train")
    assert len(open_split(DataConfig(on_error="skip"), tmp_path, "train")) == 2


def test_open_images_groups_codes_and_pictures_that_were_not_fetched(tmp_path):
    open_images(tmp_path)
    row = ("p0", "x", "/m/00", 1, 0, 0.5, 0, 0.5, 0, 1, 1, 0, 0)
    path = tmp_path / "more"
    pictures(path / "train", range(1))
    write_rows(path / "train-annotations-bbox.csv", [row, ("gone", *row[1:])], OPEN_IMAGES)
    found = open_split(DataConfig(), path, "train")
    assert found.classes.names == ("/m/00",)
    assert found.images[0].crowd.tolist() == found.images[0].truncated.tolist() == [True]
    np.testing.assert_array_equal(found.images[0].boxes, [[0, 0, 20, 10]])
    severities = {p.severity: p.message for p in found.problems}
    assert "1 of 2 images are not in" in severities["warning"]
    assert "called by their codes" in severities["note"]
    named = DataConfig(train_annotations="train-annotations-bbox.csv")
    assert has_split(named, tmp_path / "more", "train")
    assert len(open_split(named, path, "train")) == 1
    write_rows(path / "train-annotations-bbox.csv", [(*row[:5], 20, *row[6:])], OPEN_IMAGES)
    with pytest.raises(UserError, match="20 is not a part of the image's side"):
        open_split(DataConfig(), path, "train")


def test_via_csv_shapes_and_what_is_wrong(tmp_path):
    via_csv(tmp_path)
    path = tmp_path / "via_project_csv.csv"
    lines = path.read_text().splitlines()
    found = open_split(DataConfig(), tmp_path, "train")
    assert found.outlines == {"polygon": 2, "ellipse": 2}
    empty = 'p0.png,900,"{}",0,0,"{}","{}"'
    path.write_text("\n".join([lines[0], empty, *lines[2:]]))
    assert len(open_split(DataConfig(), tmp_path, "train").images[0].boxes) == 0
    point = 'p0.png,900,"{}",1,0,"{""name"":""point"",""cx"":1,""cy"":2}","{""type"":""cat""}"'
    path.write_text("\n".join([lines[0], point, *lines[2:]]))
    problems = open_split(DataConfig(), tmp_path, "train").problems
    assert "1 objects of shape point, which have no box" in problems[0].message
    for cell, message in (
        ("{not JSON", "is not JSON"),
        ('{""name"":""rect"",""x"":1}', "the rect has no numbers"),
        ("[" * 9000, "is not JSON"),
    ):
        bad = f'p0.png,900,"{{}}",1,0,"{cell}","{{""type"":""cat""}}"'
        path.write_text("\n".join([lines[0], bad, *lines[2:]]))
        with pytest.raises(UserError, match=f"line 2: .*{message}"):
            open_split(DataConfig(), tmp_path, "train")
