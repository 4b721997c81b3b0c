"""The average of the weights: what it is, who uses it, and that resuming keeps it bit for bit."""

from __future__ import annotations

import csv
import os
import signal

import pytest
import torch
from torch import nn

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.cli import main
from rcnn_ext.config import EmaConfig
from rcnn_ext.predict.checkpoint import load_checkpoint
from rcnn_ext.train import logs
from rcnn_ext.train.ema import WeightAverage
from rcnn_ext.train.validation import Validation

EMA = "training.ema.decay=0.6"


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("warmup", [True, False])
def test_average(warmup):
    model = network()
    average = WeightAverage(model, EmaConfig(0.25, warmup), torch.device("cpu"))
    expected = {name: value.double().clone() for name, value in model.state_dict().items()}
    for step in range(1, 5):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.copy_((value + step).to(value.dtype))
        average.update(model)
        decay = min(0.25, step / (9 + step)) if warmup else 0.25
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
        assert average.num_updates == step
    counted = "1.num_batches_tracked"
    found = average.model.state_dict()
    assert found[counted] == model.state_dict()[counted], "counts are not averaged"
    for name in expected.keys() - {counted}:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def train(run, out, *more):
    arguments = ["train", "faster_rcnn_synthetic", "--data", str(run.data), "--out", str(out)]
    return main([*arguments, "--max-steps", str(run.steps), *run.overrides, *more])


@pytest.fixture(scope="module")
def averaged_run(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("ema") / "out"
    evaluated = []
    call = Validation.__call__

    def spy(self, model, after_batch):
        evaluated.append({name: value.clone() for name, value in model.state_dict().items()})
        return call(self, model, after_batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "__call__", spy)
        assert train(tiny_run, out, EMA) == 0
    return out, evaluated


def content(path):
    return torch.load(path, weights_only=True)


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def rows(path):
    with path.open(newline="") as file:
        return [{**row, "seconds_per_step": 0} for row in csv.DictReader(file)]


def test_training_is_the_same_and_files_and_validations_hold_the_average(tiny_run, averaged_run):
    out, evaluated = averaged_run
    assert rows(out / "losses.csv") == rows(tiny_run.out / "losses.csv")
    last, plain = content(out / "last.ckpt"), content(tiny_run.out / "last.ckpt")
    assert "training_weights" not in plain
    # Training goes its way without the average ...
    assert same(last["training_weights"]["state_dict"], plain["state_dict"])
    assert last["training_weights"]["num_updates"] == tiny_run.steps
    # ... and everything else sees only that.
    assert not same(last["state_dict"], plain["state_dict"])
    assert len(evaluated) == 2
    saved = load_checkpoint(out / "last.ckpt")
    assert same(saved.weights, evaluated[-1])
    assert same(saved.build(torch.device("cpu")).state_dict(), evaluated[-1])
    best = content(out / "best.ckpt")
    assert "training_weights" not in best, "it would double the file, and nothing resumes from it"
    assert any(
        same({f"model.{name}": value for name, value in one.items()}, best["state_dict"])
        for one in evaluated
    )


def test_an_interrupted_and_resumed_run_keeps_it_bit_for_bit(
    tiny_run, averaged_run, tmp_path, monkeypatch
):
    step_end = logs.Logs.on_train_batch_end

    def press_ctrl_c(self, trainer, module, *arguments):
        step_end(self, trainer, module, *arguments)
        if module.steps_done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(logs.Logs, "on_train_batch_end", press_ctrl_c)
        assert train(tiny_run, tmp_path / "out", EMA) == 130
    assert train(tiny_run, tmp_path / "out", EMA, "--resume") == 0
    unbroken, resumed = (content(out / "last.ckpt") for out in (averaged_run[0], tmp_path / "out"))
    assert same(unbroken["state_dict"], resumed["state_dict"])
    one, other = (ckpt["training_weights"] for ckpt in (unbroken, resumed))
    assert one["num_updates"] == other["num_updates"]
    assert same(one["state_dict"], other["state_dict"])
    for name in ("losses.csv", "validation.csv"):
        assert rows(averaged_run[0] / name) == rows(tmp_path / "out" / name)


def test_it_goes_on_in_a_second_phase_and_can_end_with_a_resumption(
    tiny_run, averaged_run, tmp_path
):
    out = tmp_path / "out"
    refine = (
        "refine.trainable=[roi_heads]",
        "refine.schedule.steps=1",
        "refine.schedule.warmup_steps=0",
        "refine.schedule.decay=constant",
        "evaluation.val_every=0",
    )
    arguments = ["train", "faster_rcnn_synthetic", "--data", str(tiny_run.data), "--out", str(out)]
    arguments += ["schedule.steps=1", *tiny_run.overrides, *refine]
    assert main([*arguments, EMA]) == 0
    assert content(out / "last.ckpt")["training_weights"]["num_updates"] == 2
    # One more step of the second phase, without an average: from the weights of the last step.
    assert main([*arguments, "refine.schedule.steps=2", "--resume"]) == 0
    assert "training_weights" not in content(out / "last.ckpt")


def test_bad_values_are_named(tiny_run, tmp_path, capsys):
    assert train(tiny_run, tmp_path / "out", "training.ema.decay=1") == 2
    assert "training.ema.decay must be null or from 0 to below 1" in capsys.readouterr().err
