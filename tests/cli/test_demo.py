"""The demo, made small: what it writes and what it says. Its real size is run by make demo."""

from __future__ import annotations

import json

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


def test_mistakes_are_user_errors(demo):
    code, _, captured = demo("optimizer.lrr=1")
    assert code == 2
    assert "did you mean optimizer.lr?" in captured.err
