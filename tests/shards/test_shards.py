"""Dividing work among processes, and files of lines that survive them."""

from __future__ import annotations

import json
import os

import pytest

from rcnn_ext.errors import UserError
from rcnn_ext.shards import LineFile, Shard, ShardedRun, last_record, read_records

ARRAY = {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_MAX": "10"}


@pytest.mark.parametrize(
    ("text", "environment", "index", "count"),
    [
        ("2/4", {"RANK": "0", "WORLD_SIZE": "9"}, 1, 4),
        (None, {}, 0, 1),
        (None, {"RANK": "3"}, 0, 1),
        (None, {"RANK": "3", "WORLD_SIZE": "4"}, 3, 4),
        (None, {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}, 3, 4),
        # A batch script that asked for four tasks runs once.
        (None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, 0, 1),
        (None, {**ARRAY, "SLURM_ARRAY_TASK_ID": "6"}, 1, 3),
        (None, {**ARRAY, "SLURM_ARRAY_TASK_ID": "10", "RANK": "1", "WORLD_SIZE": "2"}, 5, 6),
        # One task of an array that is started again is alone, and does what is left.
        (
            None,
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_COUNT": "1",
                "SLURM_ARRAY_TASK_MIN": "7",
                "SLURM_ARRAY_TASK_MAX": "7",
            },
            0,
            1,
        ),
    ],
)
def test_shards_by_option_and_environment(text, environment, index, count):
    shard = Shard.of(text, environment)
    assert (shard.index, shard.count) == (index, count)
    assert bool(shard.origin) == (count > 1)


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("0/4", {}, "I from 1 to N, such as 2/4, not '0/4'"),
        ("5/4", {}, "not '5/4'"),
        ("two", {}, "not 'two'"),
        (None, {"RANK": "x", "WORLD_SIZE": "4"}, "RANK must be a whole number, not 'x'"),
        (None, {"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 and WORLD_SIZE=4"),
        (None, {**ARRAY, "SLURM_ARRAY_TASK_ID": "5"}, "not evenly spaced"),
    ],
)
def test_wrong_shards_are_named(text, environment, message):
    with pytest.raises(UserError, match=message):
        Shard.of(text, environment)


@pytest.mark.parametrize("total", [0, 1, 7, 12])
def test_whole_batches_are_divided_and_none_twice(total):
    parts = [Shard(index, 3).batches(total, 2) for index in range(3)]
    whole = Shard().batches(total, 2)
    assert sorted((batch for part in parts for batch in part), key=lambda batch: batch[0]) == whole
    assert [index for batch in whole for index in batch] == list(range(total))


def test_a_line_that_was_cut_is_dropped_and_written_again(tmp_path):
    path = tmp_path / "a.jsonl"
    with LineFile(path) as file:
        file.write({"a": 1})
        file.write({"b": "é" * 100_000})
    whole = path.read_bytes()
    for cut in (whole[:-1], whole[:10], whole[:20], whole + b'{"c": 3'):
        path.write_bytes(cut)
        kept = [record for _, record in read_records(path)]
        with LineFile(path) as file:
            file.write({"d": 4})
        records = dict(read_records(path))
        assert list(records.values()) == [*kept, {"d": 4}]
        for offset, record in records.items():
            assert json.loads(path.read_bytes()[offset:].splitlines()[0]) == record
        assert last_record(path) == {"d": 4}


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / "a.jsonl"
    with LineFile(path), pytest.raises(UserError, match=f"another process writes {path}"):
        LineFile(path)
    LineFile(path).close()  # The lock ends with its owner.


def test_a_line_that_cannot_be_written_leaves_the_others(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    write = os.write
    with LineFile(path) as file:
        file.write({"a": 1})
        with monkeypatch.context() as patch:

            def half(handle, content):
                if len(content) > 9:
                    return write(handle, content[:5])
                raise OSError(28, "No space left on device")

            patch.setattr(os, "write", half)
            with pytest.raises(UserError, match=f"cannot write {path}: No space left on device"):
                file.write({"long": "line"})
        file.write({"c": 3})
    assert [record for _, record in read_records(path)] == [{"a": 1}, {"c": 3}]


def test_states_of_shards(tmp_path):
    first = ShardedRun(tmp_path, "settings", Shard(0, 3), work="list")
    second = ShardedRun(tmp_path, "settings", Shard(1, 3), work="list")
    first.write({"path": "a"})
    states = [str(state) for state in first.finish(complete=False)]
    assert states[0].startswith("shard 2 of 3 is still running (")
    assert states[1] == "shard 3 of 3 has not begun"
    second.write({"path": "b"})
    second.close()
    states = [str(state) for state in first.finish()]
    assert states[0].startswith("shard 2 of 3 has stopped after 1 (")
    for index, left in ((1, [2]), (2, [])):
        with ShardedRun(tmp_path, "settings", Shard(index, 3), work="list") as run:
            assert [state.shard.index for state in run.finish()] == left
    first.close()
    # Another list of work, and other settings, are other runs.
    with ShardedRun(tmp_path, "settings", Shard(0, 3), work="longer list") as run:
        assert [state.shard.index for state in run.finish()] == [1, 2]
        assert [record for path in run.files() for _, record in run.results(path)] == [
            {"path": "a"},
            {"path": "b"},
        ]
    with ShardedRun(tmp_path, "other", Shard(0, 3), work="list") as run:
        assert [record for path in run.files() for _, record in run.results(path)] == []
