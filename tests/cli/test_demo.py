"""The demo, made small: what it writes and what it says. Its real size is run by make demo."""

from __future__ import annotations

import json
import os
import shlex
import signal

import pytest
from PIL import Image

from rcnn_ext.cli import main

pytest.importorskip("lightning", reason="lightning comes with the extra train")


@pytest.fixture
def demo(tiny_run, tmp_path, capsys):
    def demo(*more):
        overrides = [*tiny_run.overrides, "schedule.steps=2", "evaluation.val_every=0"]
        code = main(["demo", "--out", str(tmp_path / "out"), *overrides, *more])
        return code, tmp_path / "out", capsys.readouterr()

    return demo


def test_a_poor_detector_fails_the_demo_but_everything_is_written(demo):
    code, out, captured = demo("--no-bench")
    assert code == 1
    assert "below the 0.9 that this recipe should reach" in captured.out
    for place in ("data", "run", "run/losses.png", "metrics.json", "truth_and_detections.png"):
        assert (out / place).exists(), place
        assert str(out / place) in captured.out
    assert not (out / "operators").exists()
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["images"] == 4
    with Image.open(out / "truth_and_detections.png") as sheet:
        assert sheet.width > 6 * 320

    data = out / "data" / "train" / "000001.png"
    before = data.stat().st_mtime_ns
    assert demo("--no-bench")[0] == 1, "a second run replaces the first"
    assert data.stat().st_mtime_ns == before, "but keeps the data"


def test_the_exit_code_follows_ap50_and_the_operators_are_compared(demo, monkeypatch):
    from rcnn_ext.bench import comparison
    from rcnn_ext.metrics import tasks

    def run_quick(folder):
        folder.mkdir()
        (folder / "operators.txt").write_text("nms 1.0\n")
        return folder / "operators.txt"

    compute_metrics = tasks.compute_metrics

    def good(*arguments):
        result = compute_metrics(*arguments)
        result.summary["AP50"] = 0.93
        return result

    monkeypatch.setattr(comparison, "run_quick", run_quick)
    monkeypatch.setattr(tasks, "compute_metrics", good)
    code, out, captured = demo()
    assert code == 0
    assert captured.out.splitlines()[-1] == "AP50 is 0.930"
    assert str(out / "operators" / "operators.txt") in captured.out


def test_an_interrupted_demo_says_how_it_goes_on_and_does(demo, tmp_path, monkeypatch, capsys):
    from rcnn_ext.train.module import DetectionModule

    step = DetectionModule.on_train_batch_start

    def interrupt(self, *arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments, **options)

    code, _, captured = demo("--resume", "--no-bench")
    assert code == 2
    assert f"nothing to resume: {tmp_path / 'out' / 'run' / 'last.ckpt'}" in captured.err
    with monkeypatch.context() as patch:
        patch.setattr(DetectionModule, "on_train_batch_start", interrupt)
        code, out, captured = demo("--no-bench")
    assert code == 128 + signal.SIGINT
    command = captured.err.partition("continue with: ")[2].strip()
    words = shlex.split(command)
    assert words[:6] == ["rcnn-ext", "demo", "--out", str(out), "--resume", "--no-bench"]
    assert "schedule.steps=2" in words
    assert main(words[1:]) == 1
    printed = capsys.readouterr().out
    assert "step 1 of 2 is done" in printed
    assert (out / "metrics.json").exists()
    assert main(words[1:]) == 2
    assert "has 2 steps already" in capsys.readouterr().err


def test_mistakes_are_user_errors(demo):
    code, _, captured = demo("optimizer.lrr=1")
    assert code == 2
    assert "did you mean optimizer.lr?" in captured.err
