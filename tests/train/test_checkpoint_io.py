"""A checkpoint is the old file or the new one, whatever happens while it is written."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.cli import main
from rcnn_ext.errors import UserError
from rcnn_ext.train.checkpoint_io import AtomicCheckpointIO

ROOT = Path(__file__).parents[2]


def test_what_is_saved_is_loaded(tmp_path):
    plugin = AtomicCheckpointIO()
    path = tmp_path / "made" / "a.ckpt"
    plugin.save_checkpoint({"weights": torch.arange(3)}, str(path))
    plugin.save_checkpoint({"weights": torch.arange(4)}, path)
    assert plugin.load_checkpoint(path, weights_only=True)["weights"].tolist() == [0, 1, 2, 3]
    assert os.listdir(path.parent) == ["a.ckpt"]
    with pytest.raises(TypeError, match="storage_options"):
        plugin.save_checkpoint({}, path, storage_options={})


def test_contents_are_on_disk_before_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    AtomicCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "a.ckpt")
    # The second is the folder's: it puts the new name on disk.
    assert calls == ["fsync", "replace", "fsync"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    plugin = AtomicCheckpointIO()
    plugin.save_checkpoint({"a": 1}, path)
    before = path.read_bytes()

    def half(content, file):
        file.write(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(UserError, match=r"cannot write .*a\.ckpt: no space"):
            plugin.save_checkpoint({"a": 2}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_a_kill_within_a_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    script = f"""
import time, torch
from rcnn_ext.train.checkpoint_io import AtomicCheckpointIO

def slow(content, file):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)

torch.save = slow
AtomicCheckpointIO().save_checkpoint({{"a": 2}}, {str(path)!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "writing\n"
        process.kill()
    assert process.returncode < 0
    assert torch.load(path, weights_only=True) == {"a": 1}


def test_a_run_writes_its_checkpoints_in_its_own_folder(tiny_run, tmp_path, monkeypatch):
    """Not by way of $TMPDIR, which may be full, or on another file system."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    arguments = ["--data", str(tiny_run.data), "--out", str(tmp_path / "out"), "--max-steps", "1"]
    options = ("evaluation.max_images=1", "data.format=coco")
    assert main(["train", "faster_rcnn_synthetic", *arguments, *tiny_run.overrides, *options]) == 0
    assert torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["rcnn_ext"]["step"] == 1
    assert (tmp_path / "out" / "best.ckpt").exists()
