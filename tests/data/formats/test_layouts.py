from __future__ import annotations

import numpy as np
import pytest

from rcnn_ext.data import DataConfig, detect_format, has_split, open_split, read_voc
from rcnn_ext.data.formats.coco import list_annotations
from rcnn_ext.data.formats.csv_layout import find_csv
from rcnn_ext.data.formats.split_names import split_folders, splits_in_name
from rcnn_ext.errors import UserError
from tests.helpers import layouts

pytest.importorskip("yaml", reason="PyYAML comes with the extra train")
pytest.importorskip("lxml", reason="lxml comes with the extra train")


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_layouts_of_tools_are_read_with_their_splits_and_classes(tmp_path, name):
    make, kind, counts = layouts.LAYOUTS[name]
    make(tmp_path)
    assert detect_format(tmp_path) == kind
    config = DataConfig()
    seen = []
    for split in ("train", "val", "test"):
        assert has_split(config, tmp_path, split) == (split in counts)
        if split not in counts:
            continue
        found = open_split(config, tmp_path, split, layouts.CLASSES)
        assert len(found) == counts[split]
        assert found.annotated
        assert open_split(config, tmp_path, "train").classes.names == layouts.CLASSES
        for record in found.images:
            number = int(record.path.stem.removeprefix("p"))
            np.testing.assert_allclose(record.boxes, [layouts.BOX], atol=1e-4)
            assert record.labels.tolist() == [number % 2 + 1]
            seen.append(number)
    assert sorted(seen) == list(range(layouts.COUNT))


@pytest.mark.parametrize(
    "name", [n for n, (_, _, counts) in layouts.LAYOUTS.items() if len(counts) == 1]
)
def test_data_without_splits_are_divided_by_fraction_and_seed(tmp_path, name):
    layouts.LAYOUTS[name][0](tmp_path)
    config = DataConfig(val_fraction=1 / 3)
    parts = [
        sorted(record.path.name for record in open_split(config, tmp_path, split).images)
        for split in ("train", "val", "val")
    ]
    assert [len(part) for part in parts] == [4, 2, 2]
    assert parts[1] == parts[2]
    assert not set(parts[0]) & set(parts[1])


def test_names_of_splits():
    assert splits_in_name("instances_val2017") == {"val"}
    assert splits_in_name("Testing-images") == {"test"}
    assert splits_in_name("valley") == splits_in_name("trainval") == set()


def test_folders_of_splits(tmp_path):
    for name in ("train2014", "train2017", "validation", "tested"):
        (tmp_path / name).mkdir()
    assert split_folders(tmp_path, "train") == [tmp_path / "train2014", tmp_path / "train2017"]
    assert split_folders(tmp_path, "val") == [tmp_path / "validation"]
    assert split_folders(tmp_path, "test") == split_folders(tmp_path / "no", "test") == []
    (tmp_path / "train").mkdir()
    assert split_folders(tmp_path, "train") == [tmp_path / "train"]


def test_voc_splits_are_never_merged(tmp_path):
    layouts.voc_without_sets(tmp_path)
    sets = tmp_path / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "val.txt").write_text("p0\n")
    assert not has_split(DataConfig(), tmp_path, "train")
    with pytest.raises(UserError, match=r"no VOC annotations for train .*image sets val; name"):
        open_split(DataConfig(), tmp_path, "train")
    # Without a list the caller asks for all.
    assert len(read_voc(str(tmp_path))) == layouts.COUNT


def test_voc_with_pictures_in_folders_of_splits_is_not_merged(tmp_path):
    layouts.voc_xml(tmp_path / "annotations")
    layouts.pictures(tmp_path / "images" / "train", range(4))
    layouts.pictures(tmp_path / "images" / "val", range(4, 6))
    message = r"no VOC annotations for train .*the splits images/train, images/val are not merged"
    with pytest.raises(UserError, match=message):
        open_split(DataConfig(format="voc"), tmp_path, "train")


def test_voc_folders_can_be_named(tmp_path):
    layouts.voc_xml(tmp_path / "mine", range(2))
    layouts.pictures(tmp_path / "mine", range(2))
    layouts.voc_without_sets(tmp_path)
    config = DataConfig(format="voc", val_annotations="mine", test_annotations="nowhere")
    assert len(open_split(config, tmp_path, "val")) == 2
    message = r"no image set ImageSets/Main/nowhere\.txt, nor XML files in .*nowhere"
    with pytest.raises(UserError, match=message):
        open_split(config, tmp_path, "test")


def test_xml_of_another_kind_is_an_error(tmp_path):
    layouts.voc_without_sets(tmp_path)
    (tmp_path / "Annotations" / "p0.xml").write_text("<html><body/></html>")
    with pytest.raises(UserError, match=r"p0\.xml:1: .*begins with <html> instead of <annotation>"):
        open_split(DataConfig(), tmp_path, "train")


def test_one_coco_file_is_for_training_only_where_there_is_no_other_split(tmp_path):
    layouts.coco(tmp_path / "annotations.json")
    (tmp_path / "package.json").write_text('{"name": "no COCO file"}')
    (tmp_path / "empty.json").write_text("")
    assert list_annotations(tmp_path, "train") == [tmp_path / "annotations.json"]
    layouts.coco(tmp_path / "more.json")
    assert len(list_annotations(str(tmp_path), "train")) == 2
    with pytest.raises(UserError, match=r"several annotation files for train: annotations\.json"):
        open_split(DataConfig(), tmp_path, "train")
    layouts.coco(tmp_path / "val.json")
    assert list_annotations(tmp_path, "train") == []


def test_a_missing_first_picture_does_not_hide_the_folder_of_the_others(tmp_path):
    layouts.cvat_coco(tmp_path)
    (tmp_path / "images" / "default" / "p0.png").unlink()
    assert len(open_split(DataConfig(on_error="skip"), tmp_path, "train")) == layouts.COUNT - 1


def test_a_lone_file_of_another_split_is_not_for_training(tmp_path):
    layouts.pictures(tmp_path)
    rows = "filename,xmin,ymin,xmax,ymax,class\np0.png,1,1,9,9,cat\n"
    for name in ("test.csv", "my_validation.csv"):
        path = tmp_path / name
        path.write_text(rows)
        assert find_csv(tmp_path, "train") is None
        assert not has_split(DataConfig(format="csv"), tmp_path, "train")
        with pytest.raises(UserError, match=r"no CSV file for train .*looked for train\.csv"):
            open_split(DataConfig(format="csv"), tmp_path, "train")
        path.unlink()
    (tmp_path / "a.csv").write_text(rows)
    assert len(open_split(DataConfig(), tmp_path, "train")) == 1
    (tmp_path / "b.csv").write_text(rows)
    with pytest.raises(UserError, match=r"several CSV files: a\.csv, b\.csv; name .*train_annot"):
        open_split(DataConfig(), tmp_path, "train")


@pytest.mark.parametrize("name", ["Roboflow VOC", "CVAT COCO", "custom YAML", "Roboflow CSV"])
def test_readers_take_text_for_paths(tmp_path, name):
    make, kind, _ = layouts.LAYOUTS[name]
    make(tmp_path)
    assert detect_format(str(tmp_path)) == kind
    assert has_split(DataConfig(), str(tmp_path), "train")
    assert len(open_split(DataConfig(), str(tmp_path), "train")) >= 4


def test_a_named_format_that_does_not_fit_names_the_one_that_does(tmp_path):
    layouts.custom_yaml(tmp_path)
    message = (
        r"no data in the format coco: looked for instances_train.*looks like yolo: data\.format"
    )
    with pytest.raises(UserError, match=message):
        open_split(DataConfig(format="coco"), tmp_path, "train")


def test_a_named_file_decides_the_format(tmp_path):
    layouts.labelimg_voc(tmp_path)
    layouts.coco(tmp_path / "train.json", range(3))
    config = DataConfig(train_annotations="train.json", train_images=".")
    assert len(open_split(config, tmp_path, "train")) == 3
    assert len(open_split(DataConfig(), tmp_path, "train")) == layouts.COUNT


@pytest.mark.parametrize("name", ["LabelImg YOLO", "CVAT YOLO 1.1", "CVAT VOC", "custom YAML"])
def test_texts_with_a_byte_order_mark_or_in_another_encoding(tmp_path, name):
    layouts.LAYOUTS[name][0](tmp_path)
    texts = [p for s in ("*.txt", "*.names", "*.yaml") for p in tmp_path.rglob(s)]
    for path in texts:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = open_split(DataConfig(), tmp_path, "train")
    assert found.classes.names == layouts.CLASSES
    assert all(len(record.boxes) == 1 for record in found.images)
    lists = ("classes.txt", "obj.names", "default.txt", "animals.yaml")
    (path,) = (path for path in texts if path.name in lists)
    path.write_bytes("names: [猫, 狗]\ntrain: images/fit\n".encode("gbk"))
    with pytest.raises(UserError, match=path.name):
        open_split(DataConfig(format=layouts.LAYOUTS[name][1]), tmp_path, "train")
