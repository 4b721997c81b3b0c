from __future__ import annotations

import pytest

from rcnn_ext.data import DataConfig, open_split
from tests.helpers import layouts

pytest.importorskip("yaml", reason="PyYAML comes with the extra train")


def notes(config, root):
    return [p.message for p in open_split(config, root, "train").problems]


@pytest.mark.parametrize("kind", ["up", "absolute"])
@pytest.mark.parametrize("format_name", ["csv", "coco", "yolo"])
def test_pictures_outside_of_the_data_folder_are_noted(tmp_path, kind, format_name):
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
    found = [text for text in notes(DataConfig(), root) if "lie outside" in text]
    assert len(found) == 1
    assert found[0].startswith(f"2 pictures lie outside of the data folder {root}, the first is ")
    assert found[0].endswith("p0.png")


def test_folders_that_the_recipe_names_are_no_surprise(tmp_path):
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    layouts.pictures(elsewhere)
    layouts.coco(root / "train.json")
    assert notes(DataConfig(train_images=str(elsewhere)), root) == []
    layouts.coco(elsewhere / "all.json")
    assert notes(DataConfig(train_annotations="../elsewhere/all.json"), root) == []
