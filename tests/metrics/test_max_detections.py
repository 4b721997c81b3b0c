"""The limit of detections per image, from the recipe and the command line to the model."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from rcnn_ext.cli import eval as eval_command
from rcnn_ext.cli import main
from rcnn_ext.config import EvaluationConfig
from rcnn_ext.data import DetectionDataset, open_split
from rcnn_ext.metrics import tasks
from rcnn_ext.metrics.evaluate import detections_limit, evaluate
from rcnn_ext.predict.load import load_saved


class Heads(nn.Module):
    def __init__(self, limit):
        super().__init__()
        self.detections_per_img = limit


class Counting(nn.Module):
    """Give as many detections as its heads allow."""

    def __init__(self, limit):
        super().__init__()
        self.roi_heads = Heads(limit)

    def forward(self, images):
        count = self.roi_heads.detections_per_img
        one = {
            "boxes": torch.tensor([[0.0, 0, 5, 5]]).expand(count, 4),
            "labels": torch.ones(count, dtype=torch.int64),
            "scores": torch.ones(count),
        }
        return [one for _ in images]


@pytest.mark.parametrize(("own", "wanted", "given"), [(20, 400, 400), (20, None, 20), (9, 4, 9)])
def test_an_evaluation_raises_the_limit_of_the_model_and_puts_it_back(tiny_run, own, wanted, given):
    model = Counting(own).eval()
    annotations = open_split(load_saved(tiny_run.out).recipe.data, tiny_run.data, "val")
    images = evaluate(
        model,
        DetectionDataset(annotations),
        device=torch.device("cpu"),
        batch_size=4,
        workers=0,
        max_detections=wanted,
    )
    assert {len(image.scores) for image in images} == {given}
    assert detections_limit(model) == own


def test_the_option_counts_more_and_says_what_the_model_gives(tiny_run, tmp_path, capsys):
    arguments = ["eval", str(tiny_run.out), "--data", str(tiny_run.data), "--out", str(tmp_path)]
    assert main([*arguments, "--max-detections", "150"]) == 0
    printed = capsys.readouterr().out
    assert "counting up to 150 detections of a class in an image" in printed
    assert "the model's limit of 20 per image is raised" in printed
    assert "AR150" in printed
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["AR150"] >= metrics["AR100"] >= metrics["AR10"]
    assert {"AR100", "AR150"} <= set(metrics["per_class"]["circle"])
    assert main([*arguments, "--max-detections", "15"]) == 0
    assert "the model gives up to 20 per image" in capsys.readouterr().out


def test_objects_beyond_the_limit_are_said(tiny_run, tmp_path, capsys):
    arguments = ["eval", str(tiny_run.out), "--data", str(tiny_run.data), "--out", str(tmp_path)]
    assert main([*arguments, "--max-detections", "1", "--split", "train"]) == 0
    assert "have more than 1 objects of a class" in capsys.readouterr().out
    assert main([*arguments, "--split", "train"]) == 0
    assert "note:" not in capsys.readouterr().out


def test_the_recipe_is_read_and_checked(tiny_run, tmp_path, capsys):
    assert EvaluationConfig().max_detections is None
    with pytest.raises(ValueError, match="max_detections must be null or at least 1"):
        EvaluationConfig(max_detections=0)
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "RUN", "--data", "DATA", "--max-detections", "0"])
    options = ["--max-steps", "1", "--out", str(tmp_path), "--data", str(tiny_run.data)]
    changed = ["evaluation.max_detections=130", *tiny_run.overrides]
    assert main(["train", "faster_rcnn_synthetic", *options, *changed]) == 0
    assert "AR130" in capsys.readouterr().err
    assert main(["eval", str(tmp_path), "--data", str(tiny_run.data)]) == 0
    assert "counting up to 130 detections" in capsys.readouterr().out


def test_models_whose_limit_is_fixed_are_said():
    program, localizer = nn.Module(), nn.Module()
    localizer.localizes = True
    assert "as many as when it was exported" in eval_command._limit_note(program, 400)
    assert "one object per image" in eval_command._limit_note(localizer, 400)
    assert "up to 500 per image" in eval_command._limit_note(Counting(500), 400)


def test_localizers_have_no_such_limit(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tasks, "is_localizer", lambda model: True)
    arguments = ["eval", str(tiny_run.out), "--data", str(tiny_run.data), "--out", str(tmp_path)]
    assert main([*arguments, "--max-detections", "9"]) == 2
    assert "--max-detections is for detectors" in capsys.readouterr().err
