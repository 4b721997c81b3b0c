"""What goes wrong while a run trains: other writers, changed data, numbers, workers, its folder."""

from __future__ import annotations

import csv
import multiprocessing
import os
import shutil
import signal

import pytest
import torch

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.cli import main
from rcnn_ext.errors import UserError
from rcnn_ext.locks import locked_folder
from rcnn_ext.predict.checkpoint import load_checkpoint
from rcnn_ext.train import callbacks, logs
from rcnn_ext.train.phases import RunState

OPTIONS = ("evaluation.val_every=0", "evaluation.max_images=1", "runtime.log_every=1")


def train(run, out, *more, steps=None):
    arguments = ["train", "faster_rcnn_synthetic", "--data", str(run.data), "--out", str(out)]
    overrides = (*run.overrides, *OPTIONS)
    return main([*arguments, "--max-steps", str(steps or run.steps), *overrides, *more])


def losses(out):
    with (out / "losses.csv").open(newline="") as file:
        return [{**row, "seconds_per_step": 0} for row in csv.DictReader(file)]


@pytest.fixture
def at_step(monkeypatch):
    """Call a function after a step."""

    def install(step, function):
        step_end = logs.Logs.on_train_batch_end

        def end(self, trainer, module, *arguments):
            step_end(self, trainer, module, *arguments)
            if module.steps_done == step:
                function(module)

        monkeypatch.setattr(logs.Logs, "on_train_batch_end", end)

    return install


@pytest.mark.parametrize("option", ["--resume", "--overwrite", "runtime.log_every=2"])
def test_a_folder_that_another_run_writes_is_left_alone(tiny_run, tmp_path, capsys, option):
    out = tmp_path / "out"
    shutil.copytree(tiny_run.out, out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with locked_folder(out, "a training run"):
        assert train(tiny_run, out, option) == 2
        assert f"{out}: a training run of another process writes here" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_worker_that_dies_while_the_death_of_another_is_told(
    tiny_run, tmp_path, capsys, at_step, monkeypatch
):
    """As where memory is short: those of training and of validation are killed one by one."""
    out, save = tmp_path / "out", callbacks.Checkpoints._save
    others = multiprocessing.active_children()
    loader = torch.utils.data.DataLoader([0, 1, 2, 3], num_workers=1, persistent_workers=True)
    batches = iter(loader)
    (other,) = (child for child in multiprocessing.active_children() if child not in others)

    def kill(module):
        for worker in multiprocessing.active_children():
            if worker not in (other, *others):
                os.kill(worker.pid, signal.SIGKILL)

    def save_and_kill(self, *arguments):
        os.kill(other.pid, signal.SIGKILL)
        other.join(5)
        save(self, *arguments)

    at_step(2, kill)
    monkeypatch.setattr(callbacks.Checkpoints, "_save", save_and_kill)
    assert train(tiny_run, out, "data.workers=1") == 2
    assert "; continue with: rcnn-ext train --data " in capsys.readouterr().err
    assert load_checkpoint(out / "last.ckpt").step >= 2
    del batches


def test_a_worker_that_is_killed_costs_no_step(tiny_run, tmp_path, capsys, at_step):
    out = tmp_path / "out"

    def kill(module):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

    at_step(2, kill)
    assert train(tiny_run, out, "data.workers=1") == 2
    error = capsys.readouterr().err
    assert "a process that reads images was killed" in error
    assert "; continue with: rcnn-ext train --data " in error
    # Batches that were read before are trained on.
    assert load_checkpoint(out / "last.ckpt").step >= 2
    at_step(2, lambda module: None)
    assert train(tiny_run, out, "--resume") == 0
    assert losses(out) == losses(tiny_run.out)


def test_a_folder_that_is_removed_is_made_anew(tiny_run, tmp_path, at_step):
    out = tmp_path / "out"
    at_step(2, lambda module: shutil.rmtree(out))
    assert train(tiny_run, out) == 0
    assert {"last.ckpt", "recipe.yaml", "losses.csv"} <= set(os.listdir(out))
    assert losses(out) == losses(tiny_run.out)[2:]
    assert load_checkpoint(out / "last.ckpt").step == tiny_run.steps


@pytest.mark.parametrize("part", ["weight", "statistic"])
def test_weights_that_are_not_finite_are_not_saved(tiny_run, tmp_path, capsys, at_step, part):
    out = tmp_path / "out"

    def spoil(module):
        of = module.model.parameters() if part == "weight" else module.model.buffers()
        value = [tensor for tensor in of if tensor.is_floating_point()][-1]
        value.data.view(-1)[0] = torch.nan

    at_step(3, spoil)
    assert train(tiny_run, out, "runtime.checkpoint_every=1", "runtime.on_nan=skip") == 2
    assert "is not finite after step 3, so that nothing is saved" in capsys.readouterr().err
    saved = load_checkpoint(out / "last.ckpt")
    assert saved.step == 2
    assert all(weight.isfinite().all() for weight in saved.weights.values())
    assert not (out / "best.ckpt").exists()


def test_data_that_changed_are_named(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(tiny_run.out, out)
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_run.data, moved)
    command = ["train", "--out", str(out), "--resume", "evaluation.max_images=1"]
    assert main([*command, "--data", str(moved), "schedule.steps=5"]) == 0
    assert "have changed" not in capsys.readouterr().out
    again = ("data.synthetic.train=6", "data.synthetic.seed=7")
    other = tmp_path / "other"
    assert main([*command, "--data", str(other), "schedule.steps=6", *again]) == 0
    said = capsys.readouterr().out
    assert "the training data have changed since the checkpoint (8 images, " in said
    assert "before, 6 images, " in said


def test_a_state_tells_changed_data_from_none_and_from_equal_ones():
    state = RunState()
    data = {"images": 2, "objects": 3, "sha256": "a"}
    assert state.see_data(data) == []
    assert state.see_data(dict(data)) == []
    (line,) = state.see_data({**data, "sha256": "b"})
    assert "(still 2 images, 3 objects, but others)" in line
    assert RunState(**state.as_dict()).see_data({**data, "sha256": "b"}) == []
    state.next_phase(5)
    assert state.data["sha256"] == "b"


def test_a_flipped_bit_of_a_checkpoint_is_noticed(tiny_run, tmp_path):
    content = bytearray((tiny_run.out / "last.ckpt").read_bytes())
    path = tmp_path / "last.ckpt"
    for place in (len(content) // 3, len(content) // 2, len(content) * 2 // 3):
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"last\.ckpt is damaged: its entry .* another checks"):
            load_checkpoint(path)
        content[place] ^= 1
    path.write_bytes(content)
    assert load_checkpoint(path).step == tiny_run.steps


def test_progress_is_kept_where_the_next_image_cannot_be_read(
    tiny_run, tmp_path, capsys, monkeypatch
):
    from rcnn_ext.data.dataset import TrainingStream

    out = tmp_path / "out"
    read = TrainingStream.__getitem__

    def fail(self, position):
        if position >= 6:
            raise UserError("the image is damaged")
        return read(self, position)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStream, "__getitem__", fail)
        assert train(tiny_run, out) == 2
    assert "the image is damaged" in capsys.readouterr().err
    # The batch of step 4 is read while step 3 is still to be done.
    assert load_checkpoint(out / "last.ckpt").step == 2
    assert train(tiny_run, out, "--resume") == 0
    assert losses(out) == losses(tiny_run.out)


def test_a_full_disk_at_that_moment_does_not_hide_the_first_error(
    tiny_run, tmp_path, capsys, monkeypatch
):
    from rcnn_ext.data.dataset import TrainingStream

    def fail(self, position):
        raise UserError("the image is damaged")

    def full(self, *arguments):
        raise UserError("the disk is full")

    monkeypatch.setattr(callbacks.Checkpoints, "_save", full)
    monkeypatch.setattr(TrainingStream, "__getitem__", fail)
    assert train(tiny_run, tmp_path / "out") == 2
    assert "the image is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError()])
def test_a_connection_to_a_worker_that_is_cut_is_a_death(error):
    from rcnn_ext.data.workers import named_worker_death

    # Where an exception comes from is what tells.
    names = {"__name__": "torch.utils.data.dataloader", "error": error}
    exec("def receive():\n    raise error", names)
    with (
        pytest.raises(UserError, match=r"reads images was killed.*; continue so"),
        named_worker_death(lambda: "; continue so"),
    ):
        names["receive"]()


def test_other_connections_are_not_taken_for_workers():
    from rcnn_ext.data.workers import named_worker_death

    with pytest.raises(ConnectionResetError), named_worker_death():
        raise ConnectionResetError("a logger's")
