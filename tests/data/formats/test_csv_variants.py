from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.config.data import CsvConfig, DataConfig
from rcnn_ext.data import has_split, open_split
from rcnn_ext.data.formats.csv_boxes import read_csv_boxes
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError


@pytest.mark.parametrize(
    ("cell", "config"),
    [
        ("[10.0, 4.0, 20.0, 12.0]", CsvConfig()),
        ("10 4 20 12", CsvConfig()),
        ("(10, 4, 30, 16)", CsvConfig(box_format="xyxy")),
        ("[[20, 10, 20, 12]]", CsvConfig(box_format="cxcywh")),
        ("[{'x': 10, 'y': 4, 'width': 20, 'height': 12}]", CsvConfig()),
        ("{'xmin': 10, 'ymin': 4, 'xmax': 30, 'ymax': 16}", CsvConfig()),
        ("[0.25, 0.2, 0.5, 0.6]", CsvConfig()),
    ],
)
def test_boxes_in_one_column(write_csv, cell, config):
    report = Report()
    path = write_csv(f'image_id,width,height,bbox,source\na,40,20,"{cell}",x\nb,40,20,[],x\n')
    found = read_csv_boxes(path, config=config, report=report)
    np.testing.assert_allclose(found.images[0].boxes, [[10, 4, 30, 16]], atol=1e-4)
    assert found.classes.names == ("object",)
    assert len(found.images[1].boxes) == 0
    assert not report.errors()
    assert any("data.csv.one_class" in p.message for p in report.problems if p.severity == "note")
    named = read_csv_boxes(path, config=CsvConfig(box_format=config.box_format, one_class="head"))
    assert named.classes.names == ("head",)


@pytest.mark.parametrize(
    "cell", ["[1, 2, 3]", "[1, 2, x, 4]", "{'x': 1}", "[" * 500, "{" * 500, "[1e, 2, 3, 4]", "abc"]
)
def test_boxes_in_one_column_that_are_none(write_csv, cell):
    path = write_csv(f'image_id,bbox\na,"[1, 2, 3, 4]"\nb,"{cell}"\n')
    report = Report()
    assert len(read_csv_boxes(path, report=report)) == 1
    assert [problem.line for problem in report.errors()] == [3]


def test_several_boxes_in_a_cell(write_csv):
    path = write_csv("image_id,bbox\na,1 2 5 9;2 3 8 9\nb,no_box\n")
    found = read_csv_boxes(path, config=CsvConfig(box_format="xyxy"))
    np.testing.assert_array_equal(found.images[0].boxes, [[1, 2, 5, 9], [2, 3, 8, 9]])
    assert len(found.images[1].boxes) == 0


def test_files_without_a_class_that_may_have_one_in_an_unknown_column(write_csv):
    path = write_csv('image_id,bbox,kind_of_fish\na,"[1, 2, 3, 4]",cod\n')
    with pytest.raises(UserError, match="no column with the class among .*kind_of_fish"):
        read_csv_boxes(path)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_delimiters_are_told_from_the_header(write_csv, delimiter):
    text = "filename,xmin,ymin,xmax,ymax,class\na.jpg,10.5,4,30,16,cat\n"
    path = write_csv(text.replace(",", delimiter))
    report = Report()
    found = read_csv_boxes(path, report=report)
    np.testing.assert_array_equal(found.images[0].boxes, [[10.5, 4, 30, 16]])
    assert any("values are divided by" in problem.message for problem in report.problems)
    # Spreadsheets that divide by semicolons may have commas for decimal points.
    path = write_csv(text.replace(",", delimiter).replace("10.5", "10,5"))
    assert read_csv_boxes(path).images[0].boxes[0, 0] == 10.5
    shown = "'.t'" if delimiter == "\t" else f"'.?{delimiter}'"
    with pytest.raises(UserError, match=f"no column with .*data.csv.delimiter={shown}"):
        read_csv_boxes(path, config=CsvConfig(delimiter=","))


@pytest.mark.parametrize("quote_at", [3, 101, 798])
def test_a_stray_quote_costs_one_image(write_csv, quote_at):
    rows = [f"{'abc'[n % 3]}.jpg,{n % 30},1,{n % 30 + 5},9,class{n // 3}" for n in range(800)]
    rows[quote_at - 2] = 'b.jpg,1,125,30,16,"other'
    path = write_csv("\n".join(["filename,xmin,ymin,xmax,ymax,class", *rows]) + "\n")
    report = Report()
    found = read_csv_boxes(path, report=report)
    assert [record.path.name for record in found.images] == ["a.jpg", "c.jpg"]
    (problem,) = report.errors()
    assert problem.line == quote_at
    assert "a quote is not closed" in problem.message
    rows[500] = 'c.jpg,1,1,5,9,"other'
    path.write_text("\n".join(["filename,xmin,ymin,xmax,ymax,class", *rows]) + "\n")
    report = Report()
    assert len(read_csv_boxes(path, report=report)) == 1
    assert sorted(problem.line or 0 for problem in report.errors()) == sorted([quote_at, 502])


def test_values_over_several_lines_are_read_where_they_take_no_rows(write_csv):
    text = 'filename,xmin,ymin,xmax,ymax,class,remark\na.jpg,1,2,5,9,cat,"seen\nat night"\n'
    found = read_csv_boxes(write_csv(text + "b.jpg,1,2,5,9,cat,\n"))
    assert [record.origin[1] for record in found.images] == [2, 4]


@pytest.mark.parametrize(
    "name",
    [
        "/mnt/old/images/a.jpg",
        "C:\\data\\images\\a.jpg",
        "images\\a.jpg",
        "c:/data/a.jpg",
        "gs://bucket/images/a.jpg",
        "./images/a.jpg",
        "A.JPG",
        "../images/a.jpg",
        "a",
    ],
)
def test_names_as_other_systems_write_them(write_csv, tmp_path, name):
    path = write_csv(f"filename,xmin,ymin,xmax,ymax,class\n{name},1,2,5,9,cat\n")
    assert read_csv_boxes(path).images[0].path.resolve() == tmp_path / "images" / "a.jpg"


@pytest.mark.parametrize("name", ["**", "**/*", "*", "[ab]", "a*", "/mnt/**", "x" * 300, "?"])
def test_names_with_patterns_are_names(write_csv, name):
    path = write_csv(f"filename,xmin,ymin,xmax,ymax,class\nb.jpg,1,1,9,9,dog\n{name},1,2,5,9,cat\n")
    report = Report()
    assert [r.path.name for r in read_csv_boxes(path, report=report).images] == ["b.jpg"]
    (problem,) = report.errors()
    assert problem.line == 3
    assert "does not exist" in problem.message


def test_two_names_are_never_one_picture_by_their_last_parts(write_csv):
    row = "1,2,5,9,cat"
    path = write_csv(f"image,x1,y1,x2,y2,class\n/d/1/a.jpg,{row}\n/d/2/a.jpg,{row}\nb.jpg,{row}\n")
    report = Report()
    assert len(read_csv_boxes(path, report=report)) == 2
    (problem,) = report.errors()
    assert "d/1/a.jpg and d/2/a.jpg would both be" in problem.message
    # The rows of one picture are one image, however it is called.
    path = write_csv(
        f"image,x1,y1,x2,y2,class\na.jpg,{row}\nA.jpg,0,0,4,4,cat\n./a.jpg,5,5,9,9,cat\n"
    )
    assert [len(record.boxes) for record in read_csv_boxes(path).images] == [3]


def test_names_without_suffix_that_fit_two_pictures(write_csv, tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "a.png")
    path = write_csv("image_id,x1,y1,x2,y2,class\na,1,2,5,9,cat\nb,1,2,5,9,cat\n")
    report = Report()
    assert len(read_csv_boxes(path, report=report)) == 1
    assert "a may be a.jpg or a.png" in report.errors()[0].message


def test_pictures_without_rows_are_counted_or_background(write_csv, tmp_path):
    path = write_csv("filename,xmin,ymin,xmax,ymax,class\na.jpg,1,2,5,9,cat\n")
    report = Report()
    assert len(read_csv_boxes(path, report=report)) == 1
    (problem,) = report.warnings()
    assert "2 pictures in" in problem.message
    assert "the first is b.jpg; data.csv.unlisted=background" in problem.message
    found = read_csv_boxes(path, config=CsvConfig(unlisted="background"))
    assert [len(record.boxes) for record in found.images] == [1, 0, 0]
    # Those of another split are listed there.
    write_csv("filename,xmin,ymin,xmax,ymax,class\nb.jpg,1,2,5,9,cat\n", "val.csv")
    found = open_split(DataConfig(), tmp_path, "train")
    assert ["1 picture in" in problem.message for problem in found.problems] == [True]
    assert "the first is c.jpg" in found.problems[0].message


def test_rows_with_a_class_but_no_box(write_csv):
    report = Report()
    text = "image_id,class_name,x_min,y_min,x_max,y_max\na,cat,1,2,5,9\nb,No finding,,,,\n"
    found = read_csv_boxes(write_csv(text + "c,No finding,nan,nan,nan,nan\n"), report=report)
    assert found.classes.names == ("cat",)
    assert [len(record.boxes) for record in found.images] == [1, 0, 0]
    assert report.warnings()[0].line == 3
    assert "2 rows have, the first here, a class but no box" in report.warnings()[0].message


def test_a_column_of_splits(write_csv, tmp_path):
    text = "filename,xmin,ymin,xmax,ymax,class,split\na.jpg,1,2,5,9,cat,TRAIN\n"
    write_csv(text + "b.jpg,1,2,5,9,cat,validation\nc.jpg,1,2,5,9,cat,unassigned\n", "all.csv")
    config = DataConfig()
    assert [has_split(config, tmp_path, s) for s in ("train", "val", "test")] == [True, True, False]
    train = open_split(config, tmp_path, "train")
    assert [record.path.name for record in train.images] == ["a.jpg"]
    assert "1 row is of no split" in train.problems[0].message
    val = open_split(config, tmp_path, "val")
    assert [record.path.name for record in val.images] == ["b.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gbk"])
def test_encodings(write_csv, tmp_path, encoding):
    text = "filename,xmin,ymin,xmax,ymax,class\na.jpg,1,2,5,9,狗\n"
    write_csv("", "train.csv").write_bytes(text.encode(encoding))
    if encoding == "gbk":
        with pytest.raises(UserError, match=r"train\.csv:2: byte 0x\w+ at offset \d+ is not UTF-8"):
            open_split(DataConfig(), tmp_path, "train")
    stated = DataConfig(encoding="gbk" if encoding == "gbk" else None)
    assert open_split(stated, tmp_path, "train").classes.names == ("狗",)
