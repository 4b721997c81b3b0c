"""Folders of no format, or of one that is known and not read: the error says what to do."""

from __future__ import annotations

import csv
import json

import pytest

from rcnn_ext.cli import main
from rcnn_ext.data import DataConfig, detect_format, open_split
from rcnn_ext.errors import UserError
from tests.helpers import layouts


def test_a_folder_of_no_format_is_told_by_its_files_and_the_nearest_formats(tmp_path):
    with pytest.raises(UserError, match="looks like none of the known formats: it has no files"):
        detect_format(tmp_path)
    layouts.pictures(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"no annotations, only files such as pictures/p0\.png"):
        detect_format(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        detect_format(tmp_path)
    text = str(caught.value)
    assert "it has files such as a.json (by suffix: 1 .json, 6 .png)" in text
    assert "The nearest are coco, which has instances_train*.json" in text
    assert "labelme" in text
    assert "kitti" not in text
    assert len(text) < 600


def test_motchallenge_is_named_with_what_to_convert_it_to(tmp_path, capsys):
    sequence = tmp_path / "train" / "MOT17-02"
    layouts.pictures(sequence / "img1")
    (sequence / "gt").mkdir()
    (sequence / "gt" / "gt.txt").write_text("1,1,10,4,20,12,1,1,1\n")
    for root in (tmp_path, sequence):
        assert main(["check", str(root)]) == 2
        error = capsys.readouterr().err
        assert f"{sequence / 'gt' / 'gt.txt'} is a MOTChallenge file" in error
        assert "convert it to COCO JSON or YOLO" in error


def test_tables_of_via_3_are_named_with_what_to_save_instead(tmp_path, capsys):
    layouts.pictures(tmp_path)
    with (tmp_path / "via.csv").open("w", newline="") as file:
        file.write("# Exported using VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/)\n")
        file.write("# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_")
        file.write('coordinates,metadata\n# SHAPE_ID = {"POINT":1,"RECT":2}\n')
        row = ("1_a", '["p0.png"]', 0, "[]", "[2,10,4,20,12]", '{"1":"cat"}')
        csv.writer(file, quoting=csv.QUOTE_NONNUMERIC).writerow(row)
    assert main(["check", str(tmp_path)]) == 2
    printed = capsys.readouterr().out
    assert "via.csv is the CSV file of a project of VIA 3" in printed
    assert printed.count("error: ") == 1


@pytest.mark.parametrize("folder", ["annotations", ""])
def test_lvis_names_pictures_by_address_and_splits_by_file(tmp_path, folder):
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        path = tmp_path / folder / f"lvis_v1_{split}.json"
        layouts.coco(path, numbers)
        document = json.loads(path.read_text())
        for image in document["images"]:
            # Pictures of COCO's validation are in LVIS's training split.
            where = "val2017" if image["id"] > 2 else "train2017"
            name = image.pop("file_name")
            image["coco_url"] = f"http://images.cocodataset.org/{where}/{name}"
            layouts.pictures(tmp_path / where, [image["id"]])
        path.write_text(json.dumps(document))
    assert detect_format(tmp_path) == "coco"
    train, val = (open_split(DataConfig(), tmp_path, split) for split in ("train", "val"))
    assert [str(r.path.relative_to(tmp_path)) for r in train.images] == [
        *(f"train2017/p{n}.png" for n in range(3)),
        "val2017/p3.png",
    ]
    assert [r.path.name for r in val.images] == ["p4.png", "p5.png"]
    assert not train.problems


def test_several_files_of_one_split_are_listed(tmp_path):
    layouts.pictures(tmp_path / "train")
    names = ["instances_train_cars.json", "instances_train_people.json"]
    for name in names:
        layouts.coco(tmp_path / name)
    with pytest.raises(UserError, match=rf"{', '.join(names)}; choose one with data\.train_annot"):
        open_split(DataConfig(), tmp_path, "train")
    config = DataConfig(train_annotations=names[0])
    assert len(open_split(config, tmp_path, "train")) == layouts.COUNT
