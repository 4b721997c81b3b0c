"""The comparison of torchvision's detectors with themselves, accelerated."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from rcnn_ext import accelerate
from rcnn_ext.bench import clients
from rcnn_ext.bench.client_models import make_client
from rcnn_ext.bench.model_pair import SMALL, make_image
from rcnn_ext.cli import main

CPU = torch.device("cpu")


def test_rows_time_every_level(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(clients, "_QUICK", ("retinanet",))
    levels = []
    monkeypatch.setattr(
        clients, "_detect", lambda model, image: levels.append(accelerate.status().level) or []
    )
    path = tmp_path / "clients.json"
    assert main(["bench", "--clients", "--quick", "--threads", "1", "--json", str(path)]) == 0
    assert {*levels} == {None, "operators", "models"}
    report = json.loads(path.read_text())
    assert (report["suite"], report["failures"]) == ("clients", [])
    inference, step = report["results"]
    assert (inference["case"], step["case"]) == ("retinanet/inference", "retinanet/training_step")
    for row in report["results"]:
        assert list(row["contenders"]) == ["torchvision", "operators", "models"]
        alone = row["contenders"]["torchvision"]
        assert alone["cpu_ratio_torchvision"] == 1.0
        for entry in row["contenders"].values():
            assert entry["median_cpu_s"] > 0
            assert entry["error"] is not None
            ratio = alone["median_cpu_s"] / entry["median_cpu_s"]
            assert entry["cpu_ratio_torchvision"] == pytest.approx(ratio)
    assert "RetinaNet, training step" in capsys.readouterr().out
    assert accelerate.status().level is None


def test_wrong_results_are_failures():
    results = itertools.chain([1.0, 1.0, 2.0], itertools.repeat(1.0))

    def call():
        return {"loss": torch.tensor(next(results))}

    config = clients.TimingConfig(min_run_time=0.0, budget=0.0, max_runs=1, min_runs=1)
    row = clients._run_row("ssd", "training_step", call, 1, config)
    assert row["failures"] == ["operators: error 1, allowed 0.001"]


@torch.no_grad()
def test_detectors_find_objects_of_several_classes():
    image = make_image(SMALL, CPU)
    (found,) = make_client("fcos", SMALL, image)([image])
    assert len(found["boxes"]) > 5
    assert len(found["labels"].unique()) > 1
