"""Training options through the command line: phases, accumulation, patience, logs, bad losses."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import signal
import sys

import pytest
import torch

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.cli import main
from rcnn_ext.predict.checkpoint import load_checkpoint
from rcnn_ext.train import logs, module
from rcnn_ext.train.phases import RunState


def train(run, out, *more, steps=None):
    arguments = ["train", "faster_rcnn_synthetic", "--data", str(run.data), "--out", str(out)]
    return main([*arguments, f"schedule.steps={steps or run.steps}", *run.overrides, *more])


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def changed(first, second):
    one, two = weights(first), weights(second)
    return {name for name in one if not torch.equal(one[name], two[name])}


def interrupt_at(monkeypatch, step):
    """Presses Ctrl-C at the end of a step; it is heard of at the end of the next."""
    step_end = logs.Logs.on_train_batch_end

    def press(self, trainer, pl_module, *arguments):
        step_end(self, trainer, pl_module, *arguments)
        if pl_module.steps_done == step and pl_module.step_done:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(logs.Logs, "on_train_batch_end", press)


def test_a_second_phase_refines_the_heads_and_resumes_bit_for_bit(tiny_run, tmp_path, monkeypatch):
    refine = (
        "refine.schedule.steps=4",
        "refine.schedule.decay=plateau",
        "refine.schedule.patience=1",
        "refine.schedule.warmup_steps=0",
        "refine.trainable=[roi_heads]",
        "refine.optimizer.lr=0.01",
        "refine.optimizer.lr_overrides={roi_heads.box_head: 0.005}",
        "optimizer.accumulate_grad_batches=2",
        "optimizer.freeze=[rpn]",
    )
    assert train(tiny_run, tmp_path / "whole", *refine) == 0
    log = rows(tmp_path / "whole" / "losses.csv")
    assert [int(row["step"]) for row in log] == list(range(1, 9))
    # The rate of the second phase, until two validations see no progress.
    assert [float(row["lr"]) for row in log[4:6]] == [0.01, 0.01]
    state = RunState(**load_checkpoint(tmp_path / "whole" / "last.ckpt").state)
    assert (state.phase, state.phase_start, state.ended) == (1, 4, True)

    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert train(tiny_run, tmp_path / "parts", *refine) == 130
    between = tmp_path / "between.ckpt"
    os.link(tmp_path / "parts" / "last.ckpt", between)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert train(tiny_run, tmp_path / "parts", *refine, "--resume") == 130
    first_phase_done = load_checkpoint(between)
    assert (first_phase_done.step, first_phase_done.state["phase"]) == (4, 0)
    stopped = load_checkpoint(tmp_path / "parts" / "last.ckpt")
    assert (stopped.step, stopped.state["phase"]) == (6, 1)
    assert train(tiny_run, tmp_path / "parts", *refine, "--resume") == 0

    assert not changed(tmp_path / "whole" / "last.ckpt", tmp_path / "parts" / "last.ckpt")
    for whole, parts in zip(log, rows(tmp_path / "parts" / "losses.csv"), strict=True):
        assert {**whole, "seconds_per_step": 0} == {**parts, "seconds_per_step": 0}
    for name in ("validation.csv", "recipe.yaml"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()

    # In the second phase the heads changed, and nothing else, not even batch statistics.
    second = changed(between, tmp_path / "whole" / "last.ckpt")
    assert second
    assert all(name.startswith("model.roi_heads") for name in second)


def test_parts_of_a_step_see_its_images_once(tiny_run, tmp_path):
    """Gradients of two halves of a batch, averaged, are close to those of the batch."""
    options = ("data.batch_size=4", "model.norm_layer=frozen", "optimizer.name=sgd")
    options += ("optimizer.lr=0.01", "evaluation.val_every=0", "schedule.warmup_steps=0")
    assert train(tiny_run, tmp_path / "one", *options, steps=3) == 0
    assert (
        train(tiny_run, tmp_path / "two", *options, "optimizer.accumulate_grad_batches=2", steps=3)
        == 0
    )
    one, two = (rows(tmp_path / name / "losses.csv") for name in ("one", "two"))
    assert [row["step"] for row in two] == ["1", "2", "3"]
    for first, second in zip(one, two, strict=True):
        assert float(second["loss"]) == pytest.approx(float(first["loss"]), rel=0.02)
    before, after = weights(tmp_path / "one/last.ckpt"), weights(tmp_path / "two/last.ckpt")
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0.01, atol=2e-3)


def test_training_ends_when_patience_does(tiny_run, tmp_path, capsys):
    options = ("evaluation.val_every=1", "evaluation.patience=2", "evaluation.min_delta=1")
    options += ("evaluation.monitor=VOC_AP11",)
    assert train(tiny_run, tmp_path / "out", *options, steps=20) == 0
    assert "2 validations without a new best: the phase ends at step 3" in capsys.readouterr().err
    assert [row["step"] for row in rows(tmp_path / "out" / "validation.csv")] == ["1", "2", "3"]
    assert load_checkpoint(tmp_path / "out" / "last.ckpt").step == 3
    assert train(tiny_run, tmp_path / "out", *options, "--resume", steps=20) == 2
    assert "a larger evaluation.patience than 2 continues it" in capsys.readouterr().err
    longer = (*options, "evaluation.patience=3")
    assert train(tiny_run, tmp_path / "out", *longer, "--resume", steps=20) == 0
    assert load_checkpoint(tmp_path / "out" / "last.ckpt").step == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.monitor=mAP", "evaluation.monitor is 'mAP', but the metrics are AP, AP50"),
        (
            "optimizer.accumulate_grad_batches=3",
            "2 images cannot be divided among 1 processes and optimizer.acc",
        ),
        ("optimizer.freeze=[rpm]", "optimizer.freeze names rpm, but no parameter fits"),
        ("refine.trainable=[hed]", "trainable names hed"),
    ],
)
def test_options_that_do_not_fit(tiny_run, tmp_path, override, message, capsys):
    more = ["refine.schedule.steps=1", "evaluation.val_every=0", "evaluation.max_images=1"]
    assert train(tiny_run, tmp_path / "out", *more, override, steps=1) == 2
    assert message in capsys.readouterr().err


def test_what_needs_a_validation_says_so(tiny_run, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(tiny_run.data, data)
    (data / "annotations" / "instances_val.json").unlink()
    run = dataclasses.replace(tiny_run, data=data)
    overrides = {"schedule.decay=plateau": "schedule.decay=plateau"}
    overrides["refine.schedule.decay=plateau"] = "refine.schedule.decay=plateau"
    overrides["evaluation.patience=1"] = "evaluation.patience"
    for override, name in overrides.items():
        assert train(run, tmp_path / "out", "data.format=coco", override, steps=1) == 2
        assert f"{name} needs a validation split" in capsys.readouterr().err


@pytest.fixture
def bad_at_step_2(monkeypatch):
    """Makes the loss of the second step infinite, and the gradients of the third NaN."""
    call = module.call_model
    steps = []

    def bad(model, images, targets, **options):
        losses = call(model, images, targets, **options)
        if model.training:
            steps.append(1)
            if len(steps) == 2:
                losses["loss_box_reg"] = losses["loss_box_reg"] / 0
            if len(steps) == 3:
                zero = losses["loss_box_reg"] * 0
                losses["loss_box_reg"] = losses["loss_box_reg"] + (zero - zero.detach()).sqrt()
        return losses

    monkeypatch.setattr(module, "call_model", bad)


def test_steps_that_are_not_finite_can_be_skipped(tiny_run, tmp_path, capsys, bad_at_step_2):
    options = ("runtime.on_nan=skip", "evaluation.val_every=0", "runtime.checkpoint_every=1")
    kept = []
    save = logs.Logs.on_train_batch_end

    def keep(self, trainer, pl_module, *arguments):
        save(self, trainer, pl_module, *arguments)
        kept.append({n: p.detach().clone() for n, p in pl_module.model.named_parameters()})

    logs.Logs.on_train_batch_end, before = keep, logs.Logs.on_train_batch_end
    try:
        assert train(tiny_run, tmp_path / "out", *options) == 0
    finally:
        logs.Logs.on_train_batch_end = before
    output = capsys.readouterr()
    assert "step 2 is skipped: the loss is not finite" in output.out
    assert "loss_box_reg = inf" in output.out
    assert "step 3 is skipped: a gradient is not finite" in output.out
    assert "2 steps skipped" in output.out
    same = [
        all(torch.equal(one[name], two[name]) for name in one)
        for one, two in zip(kept, kept[1:], strict=False)
    ]
    assert same == [True, True, False]
    assert load_checkpoint(tmp_path / "out" / "last.ckpt").state["skipped"] == 2


def test_gradients_that_are_not_finite_stop_too(tiny_run, tmp_path, capsys, monkeypatch):
    call = module.call_model

    def bad(model, images, targets, **options):
        losses = call(model, images, targets, **options)
        zero = losses["loss_box_reg"] * 0
        return {**losses, "loss_box_reg": (zero - zero.detach()).sqrt()}

    monkeypatch.setattr(module, "call_model", bad)
    assert train(tiny_run, tmp_path / "out") == 2
    assert "a gradient is not finite at step 1" in capsys.readouterr().err


def test_endless_skipping_stops(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "_MAX_SKIPPED_IN_A_ROW", 3)
    call = module.call_model

    def bad(model, images, targets, **options):
        return {
            name: value * float("nan")
            for name, value in call(model, images, targets, **options).items()
        }

    monkeypatch.setattr(module, "call_model", bad)
    assert train(tiny_run, tmp_path / "out", "runtime.on_nan=skip", steps=9) == 2
    assert "3 steps in a row were skipped" in capsys.readouterr().err


def test_tensorboard_logs_have_losses_and_metrics(tiny_run, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard comes with the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    loggers = "runtime.loggers=[csv, tensorboard]"
    assert train(tiny_run, out, loggers, steps=2) == 0
    assert train(tiny_run, out, loggers, "--resume", steps=3) == 0
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("training/loss")
    assert [event.step for event in scalars] == [1, 2, 3]
    expected = [float(row["loss"]) for row in rows(out / "losses.csv")]
    assert [event.value for event in scalars] == pytest.approx(expected, abs=1e-5)
    assert [event.step for event in events.Scalars("validation/AP50")] == [2, 3]


def test_without_tensorboard_a_line_says_so(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    loggers = "runtime.loggers=[csv, tensorboard]"
    options = (loggers, "evaluation.val_every=0", "evaluation.max_images=1")
    assert train(tiny_run, tmp_path / "out", *options, steps=1) == 0
    assert "tensorboard is not installed: pip install 'rcnn-ext[tensorboard]'" in (
        capsys.readouterr().out
    )
