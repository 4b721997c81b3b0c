from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.config.data import CsvConfig
from rcnn_ext.data.formats.csv_boxes import listed_images, read_csv_boxes
from rcnn_ext.data.formats.csv_layout import find_csv
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from tests.helpers.real_data import REAL, needs_real_data


def test_several_objects_an_image_and_images_without_any(write_csv):
    path = write_csv(
        "filename,xmin,ymin,xmax,ymax,class\n"
        "b.jpg,1,2,10,12,dog\n\n"
        "a.jpg,0,0,40,20,cat\n"
        "b.jpg,5,5,9,9,cat\n"
        "c.jpg,,,,,\n"
    )
    found = read_csv_boxes(path)
    assert found.classes.names == ("cat", "dog")
    assert [r.path.name for r in found.images] == ["b.jpg", "a.jpg", "c.jpg"]
    np.testing.assert_array_equal(found.images[0].boxes, [[1, 2, 10, 12], [5, 5, 9, 9]])
    assert found.images[0].labels.tolist() == [2, 1]
    assert found.images[1].origin == (path, 4)
    assert len(found.images[2].boxes) == 0
    assert found.annotated


@pytest.mark.parametrize(
    ("header", "row", "config"),
    [
        ("image,label,x1,y1,x2,y2", "a.jpg,d,10,4,30,16", CsvConfig()),
        ("image_id,label,x,y,w,h", "a,d,10,4,20,12", CsvConfig()),
        ("path,class,cx,cy,w,h", "a.jpg,d,.5,.5,.5,.6", CsvConfig(normalized=True)),
        ("path,class,x1,y1,x2,y2", "a.jpg,d,.25,.2,.75,.8", CsvConfig(normalized=True)),
        # Width and height are the image's here, whatever they are called.
        (
            "filename,width,height,class,xmin,ymin,xmax,ymax",
            "a.jpg,40,20,d,10,4,30,16",
            CsvConfig(),
        ),
        (
            "Bild;Art;L;O;R;U",
            "a.jpg;d;10;4;30;16",
            CsvConfig(
                {"image": "Bild", "class": "Art", "x1": "L", "y1": "O", "x2": "R", "y2": "U"},
                delimiter=";",
            ),
        ),
    ],
)
def test_columns_by_name_and_units(write_csv, header, row, config):
    found = read_csv_boxes(write_csv(f"{header}\n{row}\n"), config=config)
    np.testing.assert_allclose(found.images[0].boxes, [[10, 4, 30, 16]], atol=1e-5)
    assert found.classes.names == ("d",)


def test_files_that_only_list_images(write_csv):
    found = read_csv_boxes(write_csv("filename\na.jpg\nb.jpg\n", "test.csv"))
    assert not found.annotated
    assert [r.path.name for r in found.images] == ["a.jpg", "b.jpg"]
    assert found.images[0].width == 40


def test_files_without_a_header(write_csv):
    path = write_csv("a.jpg,10,4,30,16,cat\na.jpg,1,2,3,4,dog\nb.jpg,,,,,\n")
    found = read_csv_boxes(path)
    np.testing.assert_array_equal(found.images[0].boxes, [[10, 4, 30, 16], [1, 2, 3, 4]])
    assert found.images[0].labels.tolist() == [1, 2]
    assert found.images[0].origin == (path, 1)
    assert [len(record.boxes) for record in found.images] == [2, 0]


def test_columns_of_open_images(write_csv):
    text = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\na,x,/m/01,1,.25,.75,.2,.8\n"
    found = read_csv_boxes(write_csv(text), config=CsvConfig(normalized=True))
    np.testing.assert_allclose(found.images[0].boxes, [[10, 4, 30, 16]], atol=1e-5)


def test_lists_may_say_more_of_the_images(write_csv):
    text = "id,filename,width,height,source\n1,a.jpg,40,20,site\n2,b.jpg,40,20,site\n"
    found = read_csv_boxes(write_csv(text, "test.csv"))
    assert not found.annotated
    assert len(found) == 2


@pytest.mark.parametrize(
    ("header", "row", "unread"),
    [
        # VIA, and a box as one column of any name.
        (
            "filename,file_size,region_count,region_id,region_shape_attributes",
            'a.jpg,5,1,0,"{""name"":""rect"",""x"":1}"',
            "region_count, region_id, region_shape_attributes",
        ),
        ("filename,where", 'a.jpg,"[1, 2, 3, 4]"', "where"),
        ("filename,x,y", "a.jpg,1,2", "x, y"),
    ],
)
def test_boxes_in_another_form_are_no_list_of_images(write_csv, header, row, unread):
    message = (
        f"no columns for a box among .*looked for xmin ymin xmax ymax, or x y w h, or cx cy w h, "
        f"one number in each, or all in bbox; {unread} cannot be read as one"
    )
    for name in ("train.csv", "test.csv"):
        with pytest.raises(UserError, match=message):
            read_csv_boxes(write_csv(f"{header}\n{row}\n", name))


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("b.jpg,1,2,x,9,dog", 3, "x2 is 'x', not a number"),
        ("b.jpg,1,2,,9,dog", 3, "no value for x2"),
        ("b.jpg,1,2,5,9,", 3, "no value for class"),
        ("b.jpg,1,2,5,9", 3, "5 values, but the header has 6 columns"),
        ("b.jpg,1,2,5,9,dog\nb.jpg,1,2,5,9,dog", 4, "repeats line 3"),
        (",1,2,5,9,dog", 3, "no image name"),
        ("nowhere.jpg,1,2,5,9,dog", 3, r"nowhere\.jpg does not exist"),
    ],
)
def test_broken_rows_are_named_and_their_images_left_out(write_csv, text, line, message):
    path = write_csv(f"filename,xmin,ymin,xmax,ymax,class\na.jpg,1,1,9,9,dog\n{text}\n")
    report = Report()
    found = read_csv_boxes(path, report=report)
    assert [r.path.name for r in found.images] == ["a.jpg"]
    (problem,) = report.errors()
    assert (problem.file, problem.line) == (path, line)
    with pytest.raises(UserError, match=f"line {line}: .*{message}"):
        read_csv_boxes(path)


@pytest.mark.parametrize(
    ("text", "config", "message"),
    [
        ("", CsvConfig(), "is empty"),
        ("filename,class\n", CsvConfig(), r"train\.csv:1: no columns for a box .* missing x1, y1"),
        ("filename,xmin,ymin,xmax,class\n", CsvConfig(), "missing y2"),
        ("filename,xmin,ymin,xmax,ymax\n", CsvConfig(), "no column with the class"),
        ("what,xmin,ymin,xmax,ymax,class\n", CsvConfig(), "no column with the images' names"),
        ("filename\n", CsvConfig({"class": "kind"}), r"no column 'kind' .* names it as the class"),
        ("filename\n", CsvConfig(), "lists no images"),
        ("filename,xmin,ymin,xmax,ymax,class\na.jpg,0,0,1,1,d\n", CsvConfig(), "normalized=true"),
        (
            "filename,xmin,ymin,xmax,ymax,class\na.jpg,0,0,30,1,d\n",
            CsvConfig(normalized=True),
            "is 30, but data.csv.normalized",
        ),
    ],
)
def test_files_that_are_wrong_as_a_whole(write_csv, text, config, message):
    with pytest.raises(UserError, match=message):
        read_csv_boxes(write_csv(text), config=config)


def test_configurations_that_are_wrong():
    with pytest.raises(ValueError, match="columns has 'xmin'"):
        CsvConfig({"xmin": "a"})
    with pytest.raises(ValueError, match="delimiter must be one character"):
        CsvConfig(delimiter="")


def test_usual_names_are_found(write_csv, tmp_path):
    assert find_csv(tmp_path, "train") is None
    lone = write_csv("", "boxes.csv")
    assert find_csv(tmp_path, "train") == lone
    assert find_csv(tmp_path, "val") is None
    both = [write_csv("", name) for name in ("train.csv", "val_labels.csv")]
    assert [find_csv(tmp_path, split) for split in ("train", "val")] == both


@needs_real_data
def test_real_csv():
    train = read_csv_boxes(REAL / "csv" / "train.csv")
    assert len(train) == 90
    assert all(len(r.boxes) == 1 for r in train.images)
    assert train.classes.names == ("other", "person")
    test = read_csv_boxes(REAL / "csv" / "test.csv")
    assert len(test) == 23
    assert not test.annotated


def test_lists_of_names_for_detection(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("a/2.png", "1.png", "3.jpg"):
        Image.new("RGB", (8, 6)).save(tmp_path / "images" / name)
    path = tmp_path / "test.csv"
    path.write_text("id,picture,class\n9,a/2.png,\n8,1.png,\n8,1.png,\n7,3,\n6,gone.png,\n5,,\n")
    columns = CsvConfig(columns={"image": "picture", "class": "label"})
    images = tmp_path / "images"
    assert listed_images(path, config=columns) == [
        (images / "a" / "2.png", Path("a/2.png")),
        (images / "1.png", Path("1.png")),
        (images / "3.jpg", Path("3")),
        (images / "gone.png", Path("gone.png")),
    ]
    with pytest.raises(UserError, match="no column with the images' names among id, picture"):
        listed_images(path)
    path.write_text(f"filename\n{images / '1.png'}\n../images/3.jpg\n")
    found = listed_images(path)
    assert [name for _, name in found] == [Path("1.png"), Path("3.jpg")]
    assert all(picture.is_file() for picture, _ in found)
    path.write_text("filename\n\n")
    with pytest.raises(UserError, match="lists no images"):
        listed_images(path)
