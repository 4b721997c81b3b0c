"""What a new user meets when training, evaluating and going on, end to end on tiny data."""

from __future__ import annotations

import csv
import shutil

import pytest
import yaml

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


def train(data, out, *more, recipe=("faster_rcnn_synthetic",)):
    return main(["train", *recipe, "--data", str(data), "--out", str(out), *more])


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def stored(out):
    return yaml.safe_load((out / "recipe.yaml").read_text())


def test_epochs_are_counted_in_both_phases_and_kept_as_steps(tiny_run, tmp_path, capsys):
    options = (
        "schedule.epochs=0.5",
        "schedule.decay=multistep",
        "schedule.milestones=[0.25]",
        "refine.schedule.epochs=0.25",
        "evaluation.max_images=1",
        "evaluation.val_every=0",
    )
    assert train(tiny_run.data, tmp_path / "out", *tiny_run.overrides, *options) == 0
    printed = capsys.readouterr().out
    assert "schedule.epochs=0.5: 2 steps of 2 of 8 images" in printed
    assert "refine.schedule.epochs=0.25: 1 steps of 2 of 8 images" in printed
    assert [row["epoch"] for row in rows(tmp_path / "out" / "losses.csv")] == [
        "0.25",
        "0.5",
        "0.75",
    ]
    recipe = stored(tmp_path / "out")
    for section, steps in ((recipe["schedule"], 2), (recipe["refine"]["schedule"], 1)):
        assert (section["steps"], section["epochs"]) == (steps, None)
    assert recipe["schedule"]["milestones"] == [1]


def test_a_length_that_is_given_is_the_length_of_the_run(tiny_run, tmp_path, capsys):
    (tmp_path / "two.yaml").write_text("schedule: {steps: 8}\nrefine: {schedule: {steps: 9}}\n")
    base = ["train", str(tmp_path / "two.yaml"), "--data", str(tiny_run.data)]
    options = ("data.format=coco", *tiny_run.overrides, "model.norm_layer=batch")
    options += ("model.weights_backbone=null", "evaluation.max_images=1")
    out = tmp_path / "out"
    assert main([*base, "--out", str(out), "schedule.steps=1", *options]) == 0
    printed = capsys.readouterr().out
    assert "schedule.steps=1 is the whole length: the second phase (refine) is left out" in printed
    assert [row["step"] for row in rows(out / "losses.csv")] == ["1"]


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


@pytest.mark.parametrize(("given", "steps"), [("3", ["3", "4"]), ("null", ["1", "2", "3", "4"])])
def test_lines_of_losses_are_as_long_as_asked_for(tiny_run, tmp_path, given, steps):
    options = (*tiny_run.overrides, f"runtime.log_every={given}", "evaluation.val_every=0")
    options += ("evaluation.max_images=1", "--max-steps", "4")
    assert train(tiny_run.data, tmp_path / "out", *options) == 0
    assert [row["step"] for row in rows(tmp_path / "out" / "losses.csv")] == steps
