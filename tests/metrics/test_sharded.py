"""Evaluation in shards, and started again, has the numbers of one process exactly."""

from __future__ import annotations

import json

import pytest

from rcnn_ext.cli import main
from rcnn_ext.metrics import sharded

SCORES = ("metrics.json", "detections.json")


def evaluate(run, out, *more):
    arguments = ["eval", str(run.out), "--data", str(run.data), "--out", str(out)]
    return main([*arguments, "--batch-size", "1", *more])


def scores(out):
    values = {name: json.loads((out / name).read_text()) for name in SCORES}
    for name in ("date", "seconds"):
        del values["metrics.json"][name]
    return values


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert evaluate(tiny_run, out) == 0
    assert not (out / "eval-shards").exists()
    return scores(out)


def test_shards_have_the_numbers_of_one_process(tiny_run, whole, tmp_path, capsys):
    for index in (3, 1):
        assert evaluate(tiny_run, tmp_path, "--shard", f"{index}/3") == 0
    said = capsys.readouterr().out
    assert "shard 1 of 3 (by --shard): 2 of 4 images" in said
    assert "shard 2 of 3 has not begun" in said
    assert not (tmp_path / "metrics.json").exists()
    assert evaluate(tiny_run, tmp_path, "--shard", "2/3") == 0
    assert scores(tmp_path) == whole
    assert not (tmp_path / "eval-shards").exists()


def test_an_evaluation_that_was_killed_goes_on(tiny_run, whole, tmp_path, monkeypatch, capsys):
    write = sharded.ShardedEvaluation._write

    def die_at_third(self, run, index, *rows):
        if index == 2:
            raise KeyboardInterrupt
        write(self, run, index, *rows)

    with monkeypatch.context() as patch:
        patch.setattr(sharded.ShardedEvaluation, "_write", die_at_third)
        assert evaluate(tiny_run, tmp_path) == 130
    lines = tmp_path / "eval-shards" / "00001-of-00001.jsonl"
    lines.write_bytes(lines.read_bytes()[:-7])
    capsys.readouterr()
    assert evaluate(tiny_run, tmp_path) == 0
    assert "1 of 4 batches are done already" in capsys.readouterr().out
    assert scores(tmp_path) == whole


def test_results_with_other_settings_do_not_count(tiny_run, tmp_path, capsys):
    assert evaluate(tiny_run, tmp_path, "--shard", "1/2") == 0
    assert evaluate(tiny_run, tmp_path, "--max-detections", "3") == 0
    assert "done already" not in capsys.readouterr().out
    assert (tmp_path / "metrics.json").exists()
