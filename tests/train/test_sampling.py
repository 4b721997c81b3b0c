"""A run with repeat factors and copy-paste resumes as if it had not stopped."""

from __future__ import annotations

import csv

import pytest
import torch

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.cli import main
from tests.conftest import TINY
from tests.helpers.made_data import as_pennfudan, shapes

pytestmark = pytest.mark.usefixtures("one_thread")

OVERRIDES = (
    *TINY,
    "data.workers=1",
    "data.augment.copy_paste=0.7",
    "data.augment.mosaic=0.3",
    "evaluation.val_every=0",
    "runtime.log_every=1",
    "data.format=auto",
    "data.augment.horizontal_flip=0.5",
    "schedule.warmup_steps=0",
    "schedule.decay=constant",
)


def train(data, out, *more, steps=4):
    paths = ["--data", str(data), "--out", str(out), "--max-steps", str(steps)]
    return main(["train", "faster_rcnn_synthetic", *paths, *OVERRIDES, *more])


def losses(out):
    with (out / "losses.csv").open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_a_resumed_run_is_as_if_it_had_not_stopped(tmp_path):
    data = as_pennfudan(tmp_path)
    assert train(data, tmp_path / "whole") == 0
    assert train(data, tmp_path / "parts", steps=2) == 0
    assert train(data, tmp_path / "parts", "--resume") == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    whole, parts = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    for name, weight in whole.items():
        assert torch.equal(weight, parts[name]), name


def test_what_is_repeated_is_said_and_an_epoch_is_longer(tmp_path, capsys):
    data = shapes(tmp_path / "shapes").source.parent.parent
    repeat = ("data.repeat_threshold=0.9", "data.augment.copy_paste=0")
    paths = ["--data", str(data), "--out", str(tmp_path / "out")]
    epochs = ("schedule.steps=null", "schedule.epochs=1")
    assert main(["train", "faster_rcnn_synthetic", *paths, *OVERRIDES, *repeat, *epochs]) == 0
    said = capsys.readouterr().out
    assert "data.repeat_threshold=0.9: " in said
    with (tmp_path / "out" / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["epoch"]) == pytest.approx(1, abs=0.2)
    assert len(rows) > 4, "8 images, 2 per step"


def test_data_without_masks_are_refused(tmp_path, capsys):
    data = shapes(tmp_path / "shapes").source.parent.parent
    assert train(data, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "data.augment.copy_paste needs outlines or masks of objects" in said
    assert len(said.strip().splitlines()) == 1
