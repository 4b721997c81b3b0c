from __future__ import annotations

import pytest

from rcnn_ext.config import load_recipe
from rcnn_ext.data.splits import open_split
from rcnn_ext.errors import UserError
from rcnn_ext.train.resolve import resolve_recipe


@pytest.fixture
def data(tmp_path):
    from PIL import Image

    rows = ["filename,xmin,ymin,xmax,ymax,class"]
    for number, name in enumerate("aaab"):
        Image.new("RGB", (20, 10)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,1,2,9,8,{name}")
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def recipe(*overrides):
    return load_recipe(
        "localizer_csv", ["model.weights_backbone=null", "data.val_fraction=0", *overrides]
    )


def test_balanced_classes_weigh_alike_and_objects_one_on_average(data):
    wanted = recipe()
    said = []
    found = resolve_recipe(wanted, open_split(wanted.data, data, "train"), said.append)
    weights = found.model.localizer.class_weights
    assert weights == pytest.approx([4 / (2 * 3), 4 / (2 * 1)], abs=1e-6)
    assert said == ["model.weights_backbone=null: the whole backbone is trained"]


def test_a_class_without_objects_cannot_be_balanced(data):
    wanted = recipe("data.classes=[a, b, c]")
    with pytest.raises(UserError, match=r"has no c, .* leave the class out with data\.classes"):
        resolve_recipe(wanted, open_split(wanted.data, data, "train"), print)


def test_a_localizer_learns_from_images_with_one_object(data):
    with (data / "train.csv").open("a") as file:
        file.write("0.png,1,1,4,4,b\n")
    wanted = recipe("data.objects=many")
    with pytest.raises(UserError, match=r"0\.png has 2 objects.*data\.objects=largest"):
        resolve_recipe(wanted, open_split(wanted.data, data, "train"), print)
    largest = recipe("data.objects=largest")
    resolve_recipe(largest, open_split(largest.data, data, "train"), print)
    for name in ("mosaic", "copy_paste"):
        mixed = recipe("data.objects=largest", f"data.augment.{name}=0.5")
        found = open_split(mixed.data, data, "train")
        with pytest.raises(UserError, match=rf"data\.augment\.{name} puts several objects"):
            resolve_recipe(mixed, found, print)


def test_training_can_be_limited_to_the_first_images(data):
    wanted = recipe("data.max_train_images=2", "model.localizer.class_weights=null")
    found = open_split(wanted.data, data, "train")
    assert [record.path.name for record in found.images] == ["0.png", "1.png"]


def test_training_is_in_reach_of_the_package():
    pytest.importorskip("lightning", reason="lightning comes with the extra train")
    import rcnn_ext
    from rcnn_ext.train.run import TrainingResult, train

    assert rcnn_ext.train.train is train
    assert rcnn_ext.train.TrainingResult is TrainingResult
    assert "train" in dir(rcnn_ext.train)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rcnn_ext.train.nothing  # noqa: B018
