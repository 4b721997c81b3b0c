from __future__ import annotations

import pytest

from rcnn_ext.cli import main
from rcnn_ext.data import DataConfig, open_split
from rcnn_ext.errors import UserError
from tests.helpers import layouts

pytest.importorskip("yaml", reason="PyYAML comes with the extra train")


def notes(config, root):
    return [p.message for p in open_split(config, root, "train").problems]


@pytest.mark.parametrize("kind", ["up", "absolute"])
@pytest.mark.parametrize("format_name", ["csv", "coco", "yolo"])
def test_pictures_outside_of_the_data_folder_are_read_by_option(
    tmp_path, capsys, kind, format_name
):
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    layouts.pictures(elsewhere)
    root.mkdir()
    prefix = f"{elsewhere}/" if kind == "absolute" else "../elsewhere/"
    if format_name == "csv":
        row = "{}p0.png,1,2,9,9,cat\n{}p1.png,1,2,9,9,cat\n".replace("{}", prefix)
        (root / "train.csv").write_text(f"filename,xmin,ymin,xmax,ymax,class\n{row}")
    elif format_name == "coco":
        layouts.coco(root / "train.json", range(2), prefix)
    else:
        layouts.yolo_labels(elsewhere, range(2))
        (root / "train.txt").write_text(f"{prefix}p0.png\n{prefix}p1.png\n")
        (root / "data.yaml").write_text("train: train.txt\nnames: [cat, dog]\n")
    says = f"2 pictures lie outside of the data folder {root}, the first is "
    allowed = DataConfig(allow_outside=True)
    found = [text for text in notes(allowed, root) if "lie outside" in text]
    assert len(found) == 1
    assert found[0].startswith(says)
    assert found[0].endswith("p0.png")
    assert len(open_split(allowed, root, "train")) == 2
    with pytest.raises(UserError, match=rf"{says}.*p0\.png: data\.allow_outside=true reads them"):
        open_split(DataConfig(), root, "train")
    with pytest.raises(UserError, match="has no images that can be used"):
        open_split(DataConfig(on_error="skip"), root, "train")
    assert main(["check", str(root)]) == 2
    assert says in capsys.readouterr().out
    assert main(["check", str(root), "data.allow_outside=true"]) == 0


def test_pictures_inside_are_kept_when_others_are_outside(tmp_path):
    root = tmp_path / "data"
    layouts.pictures(root)
    layouts.pictures(tmp_path / "elsewhere")
    rows = ["p0.png,1,2,9,9,cat", "../elsewhere/p1.png,1,2,9,9,dog", "p2.png,1,2,9,9,dog"]
    (root / "train.csv").write_text("\n".join(["filename,xmin,ymin,xmax,ymax,class", *rows]))
    found = open_split(DataConfig(on_error="skip"), root, "train")
    assert [record.path for record in found.images] == [root / "p0.png", root / "p2.png"]
    assert found.skipped == 1
    assert found.images[1].labels.tolist() == [2]


def test_a_yaml_file_is_first_taken_to_mean_its_own_folder(tmp_path):
    root = tmp_path / "data"
    layouts.pictures(root / "train" / "images")
    layouts.yolo_labels(root / "train" / "labels")
    layouts.pictures(tmp_path / "train" / "images")
    (root / "data.yaml").write_text("train: ../train/images\nnames: [cat, dog]\n")
    found = open_split(DataConfig(), root, "train")
    assert {record.path.parent for record in found.images} == {root / "train" / "images"}


def test_folders_that_the_recipe_names_are_no_surprise(tmp_path):
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    layouts.pictures(elsewhere)
    layouts.coco(root / "train.json")
    assert notes(DataConfig(train_images=str(elsewhere)), root) == []
    layouts.coco(elsewhere / "all.json")
    assert notes(DataConfig(train_annotations="../elsewhere/all.json"), root) == []
