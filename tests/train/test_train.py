"""Training through the command line: what it writes, resuming, stopping, and its errors."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal

import pytest
import torch

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.cli import main
from rcnn_ext.config import load_recipe
from rcnn_ext.metrics.coco import SUMMARY
from rcnn_ext.predict.checkpoint import load_checkpoint
from rcnn_ext.train import callbacks, logs

LOSSES = ["loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"]


def train(run, out, *more, steps=None):
    arguments = ["train", "faster_rcnn_synthetic", "--data", str(run.data), "--out", str(out)]
    return main([*arguments, "--max-steps", str(steps or run.steps), *run.overrides, *more])


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_run_leaves_all_its_files(tiny_run):
    names = {"best.ckpt", "last.ckpt", "losses.csv", "validation.csv", "recipe.yaml"}
    assert names <= set(os.listdir(tiny_run.out))
    assert not [name for name in os.listdir(tiny_run.out) if name.startswith(".")]

    losses = rows(tiny_run.out / "losses.csv")
    assert [int(row["step"]) for row in losses] == [1, 2, 3, 4]
    assert list(losses[0])[4:] == ["loss", *LOSSES]
    for row in losses:
        assert float(row["loss"]) == pytest.approx(sum(float(row[n]) for n in LOSSES), abs=1e-4)
        assert float(row["epoch"]) == int(row["step"]) / 4  # 2 of 8 images in a step

    validation = rows(tiny_run.out / "validation.csv")
    assert [int(row["step"]) for row in validation] == [2, 4]
    assert list(validation[0]) == ["step", *SUMMARY]

    recipe = load_recipe(str(tiny_run.out / "recipe.yaml"))
    assert recipe.schedule.steps == tiny_run.steps
    assert recipe == load_checkpoint(tiny_run.out / "last.ckpt").recipe


def test_a_checkpoint_is_a_detector_and_holds_plain_values_only(tiny_run):
    for name, step in (("last.ckpt", 4), ("best.ckpt", None)):
        saved = load_checkpoint(tiny_run.out / name)  # With weights_only=True.
        assert saved.classes.names == ("circle", "square", "triangle")
        assert step is None or saved.step == step
        model = saved.build(torch.device("cpu"))
        assert not model.training
        (found,) = model([torch.rand(3, 50, 70)])
        assert set(found) == {"boxes", "labels", "scores"}
    assert load_checkpoint(tiny_run.out).path.name == "best.ckpt"
    best = load_checkpoint(tiny_run.out / "best.ckpt")
    aps = [float(row["AP"]) for row in rows(tiny_run.out / "validation.csv")]
    assert best.state["best"] == pytest.approx(max(aps))
    # The optimizer would double the file, and nothing resumes from the best.
    assert "optimizer_states" not in torch.load(best.path, weights_only=True)


def test_ctrl_c_saves_and_a_resumed_run_is_as_if_it_had_not_stopped(
    tiny_run, tmp_path, monkeypatch, capsys
):
    step_end = logs.Logs.on_train_batch_end

    def press_ctrl_c(self, trainer, module, *arguments):
        step_end(self, trainer, module, *arguments)
        if module.steps_done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(logs.Logs, "on_train_batch_end", press_ctrl_c)
        assert train(tiny_run, tmp_path / "out") == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert "; continue with: rcnn-ext train --data " in capsys.readouterr().err
    # A signal between two steps is heard of in the next.
    assert load_checkpoint(tmp_path / "out" / "last.ckpt").step in (1, 2)
    assert not (tmp_path / "out" / "best.ckpt").exists()

    assert train(tiny_run, tmp_path / "out", "--resume") == 0
    unbroken, resumed = (rows(out / "losses.csv") for out in (tiny_run.out, tmp_path / "out"))
    for one, other in zip(unbroken, resumed, strict=True):
        assert {**one, "seconds_per_step": 0} == {**other, "seconds_per_step": 0}
    one, other = (weights(out / "last.ckpt") for out in (tiny_run.out, tmp_path / "out"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    validation = [rows(out / "validation.csv") for out in (tiny_run.out, tmp_path / "out")]
    assert validation[0] == validation[1]


def test_a_line_of_losses_that_was_interrupted_is_finished(tiny_run, tmp_path, monkeypatch):
    class EverySecond(logs.Logs):
        def __init__(self, folder, every, *arguments, **options):
            super().__init__(folder, 2, *arguments, **options)

    step_end = logs.Logs.on_train_batch_end

    def press_ctrl_c(self, trainer, module, *arguments):
        step_end(self, trainer, module, *arguments)
        if module.steps_done == 2:
            module.stop_signal = signal.SIGINT

    monkeypatch.setattr("rcnn_ext.train.run.Logs", EverySecond)
    no_validation = "evaluation.val_every=0"
    with monkeypatch.context() as patch:
        patch.setattr(logs.Logs, "on_train_batch_end", press_ctrl_c)
        assert train(tiny_run, tmp_path / "out", no_validation) == 130
    assert load_checkpoint(tmp_path / "out" / "last.ckpt").step == 3
    assert train(tiny_run, tmp_path / "out", no_validation, "--resume") == 0
    resumed = rows(tmp_path / "out" / "losses.csv")
    single = rows(tiny_run.out / "losses.csv")
    assert [row["step"] for row in resumed] == ["2", "4"]
    for row, pair in zip(resumed, (single[:2], single[2:]), strict=True):
        mean = sum(float(one["loss"]) for one in pair) / 2
        assert float(row["loss"]) == pytest.approx(mean, abs=2e-6)


def test_sigterm_saves_too(tiny_run, tmp_path, monkeypatch):
    after_batch = callbacks.Checkpoints._stop_if_alone

    def terminate(self):
        os.kill(os.getpid(), signal.SIGTERM)
        after_batch(self)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Checkpoints, "_stop_if_alone", terminate)
        assert train(tiny_run, tmp_path / "out") == 128 + signal.SIGTERM
    assert load_checkpoint(tmp_path / "out" / "last.ckpt").step == 2
    assert not (tmp_path / "out" / "validation.csv").exists()

    # The validation that was interrupted is made up for.
    assert train(tiny_run, tmp_path / "out", "--resume") == 0
    validation = [rows(out / "validation.csv") for out in (tiny_run.out, tmp_path / "out")]
    assert validation[0] == validation[1]


def test_a_finished_run_can_be_made_longer(tiny_run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(tiny_run.out, out)
    assert train(tiny_run, out, "--resume", steps=6) == 0
    losses = rows(out / "losses.csv")
    assert [int(row["step"]) for row in losses] == [1, 2, 3, 4, 5, 6]
    assert losses[:4] == rows(tiny_run.out / "losses.csv")
    assert [int(row["step"]) for row in rows(out / "validation.csv")] == [2, 4, 6]


def test_a_worse_validation_after_a_resume_does_not_replace_the_best(tiny_run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(tiny_run.out, out)
    last = torch.load(out / "last.ckpt", weights_only=True)
    last["rcnn_ext"]["state"]["best"] = 2.0  # Out of reach.
    torch.save(last, out / "last.ckpt")
    before = (out / "best.ckpt").read_bytes()
    assert train(tiny_run, out, "--resume", steps=5) == 0
    assert (out / "best.ckpt").read_bytes() == before
    assert load_checkpoint(out / "last.ckpt").state["best"] == 2.0


def test_progress_of_another_version_cannot_be_resumed(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(tiny_run.out, out)
    last = torch.load(out / "last.ckpt", weights_only=True)
    last["rcnn_ext"]["state"]["mood"] = 1
    torch.save(last, out / "last.ckpt")
    assert train(tiny_run, out, "--resume", steps=5) == 2
    assert "last.ckpt cannot be resumed, only loaded: " in capsys.readouterr().err


def test_an_earlier_run_is_not_overwritten_by_accident(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "losses.csv").write_text("step,loss\n1,0.5\n")
    assert train(tiny_run, out) == 2
    message = capsys.readouterr().err
    assert "holds a training run; replace it with --overwrite" in message
    assert "--resume" not in message, "there is no checkpoint"
    assert (out / "losses.csv").read_text() == "step,loss\n1,0.5\n"
    assert train(tiny_run, tiny_run.out) == 2
    assert "holds a training run; continue it with --resume" in capsys.readouterr().err
    assert train(tiny_run, out, "--resume") == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert train(tiny_run, out, "--overwrite", steps=1) == 0
    assert [row["step"] for row in rows(out / "losses.csv")] == ["1"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dropout=0.5", "a resumed run cannot change model.dropout"),
        ("data.batch_size=4", "a resumed run cannot change data.batch_size"),
        ("optimizer.name=sgd", "a resumed run cannot change optimizer.name"),
        ("data.classes=[circle]", "was trained for other classes: circle, square, triangle"),
        ("seed=0", "has 4 steps already"),
    ],
)
def test_what_does_not_fit_cannot_be_resumed(tiny_run, override, message, capsys):
    before = (tiny_run.out / "last.ckpt").stat().st_mtime_ns
    assert train(tiny_run, tiny_run.out, "--resume", override) == 2
    assert message in capsys.readouterr().err
    assert (tiny_run.out / "last.ckpt").stat().st_mtime_ns == before


def test_a_loss_that_is_not_finite_stops_with_its_name(tiny_run, tmp_path, capsys):
    overrides = ("optimizer.lr=1e12", "optimizer.clip_norm=null", "schedule.warmup_steps=0")
    assert train(tiny_run, tmp_path / "out", *overrides) == 2
    message = capsys.readouterr().err
    assert "the loss is not finite at step" in message
    assert "loss_classifier = " in message
    assert "Traceback" not in message
    for row in rows(tmp_path / "out" / "losses.csv"):
        assert float(row["loss"]) < float("inf")


@pytest.mark.parametrize(
    ("overrides", "code"), [(["runtime.precision=bf16"], 0), (["runtime.precision=16"], 2)]
)
def test_mixed_precision(tiny_run, tmp_path, capsys, overrides, code):
    assert train(tiny_run, tmp_path / "out", *overrides, "evaluation.val_every=0", steps=1) == code
    if code:
        assert "runtime.precision=16 needs a GPU" in capsys.readouterr().err
    else:
        (row,) = rows(tmp_path / "out" / "losses.csv")
        assert float(row["loss"]) > 0
        assert all(w.dtype != torch.bfloat16 for w in weights(tmp_path / "out/last.ckpt").values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tiny_run, tmp_path, capsys):
    assert train(tiny_run, tmp_path / "out", "runtime.device=cuda", steps=1) == 2
    assert "no CUDA device is available" in capsys.readouterr().err


def test_losses_fall(tiny_run, tmp_path):
    overrides = ("data.synthetic.train=2", "evaluation.val_every=0", "evaluation.max_images=1")
    run = dataclasses.replace(tiny_run, data=tmp_path / "data", steps=20)
    assert train(run, tmp_path / "out", *overrides) == 0
    losses = [float(row["loss"]) for row in rows(tmp_path / "out" / "losses.csv")]
    assert losses[-1] < 0.6 * losses[0]


def test_without_a_validation_split_there_is_no_best(tiny_run, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(tiny_run.data, data)
    (data / "annotations" / "instances_val.json").unlink()
    run = dataclasses.replace(tiny_run, data=data)
    assert train(run, tmp_path / "out", "data.format=coco", steps=1) == 0
    assert "no validation split" in capsys.readouterr().out
    assert not (tmp_path / "out" / "best.ckpt").exists()
    assert load_checkpoint(tmp_path / "out").path.name == "last.ckpt"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_stops_training_with_its_name(tiny_run, tmp_path, capsys, workers):
    data = tmp_path / "data"
    shutil.copytree(tiny_run.data, data)
    for image in (data / "train").iterdir():
        image.write_bytes(image.read_bytes()[:200])
    overrides = ("data.format=coco", f"data.workers={workers}")
    run = dataclasses.replace(tiny_run, data=data)
    assert train(run, tmp_path / "out", *overrides, steps=1) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"rcnn-ext: {data}/train/0000")
    assert error.endswith("truncated") or "damaged" in error


def test_chosen_classes_are_what_is_learned_and_stored(tiny_run, tmp_path):
    assert train(tiny_run, tmp_path / "out", "data.classes=[triangle, circle]", steps=1) == 0
    saved = load_checkpoint(tmp_path / "out")
    assert saved.classes.names == ("triangle", "circle")
    assert saved.classes.category_ids == (3, 1)
    assert main(["eval", str(tmp_path / "out"), "--data", str(tiny_run.data)]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["per_class"]) == ["triangle", "circle"]
