"""What a new user meets when training, evaluating and going on, end to end on tiny data."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


def train(data, out, *more, recipe=("faster_rcnn_synthetic",)):
    return main(["train", *recipe, "--data", str(data), "--out", str(out), *more])


def test_eval_takes_the_keys_that_its_errors_advise(tiny_run, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(tiny_run.data, data)
    (data / "annotations" / "instances_val.json").rename(data / "annotations" / "mine.json")
    command = ["eval", str(tiny_run.out), "--data", str(data), "--out", str(tmp_path / "found")]
    assert main([*command, "data.format=coco"]) == 2
    assert "name one with data.val_annotations" in capsys.readouterr().err
    named = ("data.format=coco", "data.val_annotations=annotations/mine.json")
    assert main([*command, *named, "data.val_images=val"]) == 0
    for override, message in (
        ("model.min_size=32", "eval takes the model as it is, and data.* and selective_search.*"),
        ("data.classes=[circle]", "the model has learned its own classes"),
        ("data.formt=coco", "did you mean data.format?"),
    ):
        assert main([*command, override]) == 2
        assert message in capsys.readouterr().err
