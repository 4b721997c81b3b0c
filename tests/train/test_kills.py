"""Runs that are killed, stopped, crowded or starved, each in a process of its own.

The short forms run with all tests, the long ones with ``make test-long``.
"""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.predict.checkpoint import load_checkpoint
from tests.helpers.fork_server import Child, running_server
from tests.helpers.run_python import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

OPTIONS = ("evaluation.max_images=1", "runtime.checkpoint_every=1")


@pytest.fixture(scope="module")
def server():
    with running_server() as running:
        yield running


@pytest.fixture
def start(server, tiny_run):
    """Start a training run in a process of its own."""

    def start(out, *more, steps=None, before=""):
        words = ["train", "faster_rcnn_synthetic", "--data", str(tiny_run.data), "--out", str(out)]
        words += ["--max-steps", str(steps or tiny_run.steps)]
        words += [*tiny_run.overrides, *OPTIONS, *more]
        output = out.with_name(f"{out.name}-{time.monotonic_ns()}.txt")
        return Child(server, words, output, before)

    return start


def losses(out):
    with (out / "losses.csv").open(newline="") as file:
        return [{**row, "seconds_per_step": 0} for row in csv.DictReader(file)]


def assert_equal_runs(out, run):
    assert losses(out) == losses(run.out)
    one, other = (load_checkpoint(of / "last.ckpt").weights for of in (out, run.out))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_a_run_that_is_killed_at_random_moments_is_as_if_it_had_not_been(
    tiny_run, start, tmp_path, kills
):
    out, draw = tmp_path / "out", random.Random(kills)
    for _ in range(kills):
        resumable = (out / "last.ckpt").exists()
        child = start(out, "--resume" if resumable else "--overwrite")
        if child.until(lambda child=child: "model:" in child.text):
            time.sleep(draw.uniform(0, 2))
        child.send(signal.SIGKILL)
        code = child.end()
        assert code in (-signal.SIGKILL, 0, 2), child.text
        if code == 2:
            assert "has 4 steps already" in child.text
    resumable = (out / "last.ckpt").exists()
    child = start(out, "--resume" if resumable else "--overwrite")
    if child.end() == 2:
        assert "has 4 steps already" in child.text
    assert_equal_runs(out, tiny_run)
    assert not [name for name in os.listdir(out) if name.startswith(".last-")]


def test_of_two_runs_at_the_same_moment_one_has_the_folder(tiny_run, start, tmp_path):
    out = tmp_path / "out"
    children = [start(out) for _ in range(3)]
    codes = [child.end() for child in children]
    assert sorted(codes) == [0, 2, 2], [child.text for child in children]
    for child, code in zip(children, codes, strict=True):
        if code == 2:
            line = child.text.strip().splitlines()[-1]
            assert "writes here" in line or "holds a training run" in line
    assert_equal_runs(out, tiny_run)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("signals", "codes"),
    [((signal.SIGTERM,), (143,)), ((signal.SIGINT, signal.SIGINT), (130,))],
    ids=["SIGTERM", "Ctrl-C twice"],
)
def test_a_signal_to_the_group_leaves_a_run_that_goes_on(start, tmp_path, signals, codes, workers):
    out = tmp_path / "out"
    child = start(out, f"data.workers={workers}", steps=400)
    assert child.until(lambda: (out / "last.ckpt").exists()), child.text
    for number in signals:
        child.send(number, group=True)
        time.sleep(0.02)
    code = child.end()
    assert code in codes, child.text
    assert "Traceback" not in child.text
    step = load_checkpoint(out / "last.ckpt").step
    again = start(out, "--resume", steps=step + 1)
    assert again.end() == 0, again.text
    rows = losses(out)
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))
    assert load_checkpoint(out / "last.ckpt").step == step + 1


@pytest.mark.parametrize(
    "limit",
    [0, 1 << 20, *(pytest.param(size, marks=pytest.mark.long) for size in (200, 30 << 20))],
)
def test_a_full_disk_is_named_and_leaves_what_was_there(tiny_run, start, tmp_path, limit):
    out = tmp_path / "out"
    first = start(out, steps=1)
    assert first.end() == 0, first.text
    before = {path.name: path.read_bytes() for path in out.glob("*.ckpt")}

    fill = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    child = start(out, "--resume", before=fill)
    # Where what it says cannot be written either, only the code tells.
    assert child.end() != 0, child.text
    assert {path.name: path.read_bytes() for path in out.glob("*.ckpt")} == before
    assert {path.name for path in out.glob(".*")} == set()
    again = start(out, "--resume")
    assert again.end() == 0, again.text
    assert_equal_runs(out, tiny_run)


def test_a_clock_that_jumps_changes_nothing(tiny_run, start, tmp_path):
    jump = """
import itertools, time
now, jumps = time.time, itertools.cycle((-1e6, 1e6))
time.time = lambda: now() + next(jumps)
"""
    child = start(tmp_path / "out", before=jump)
    assert child.end() == 0, child.text
    assert_equal_runs(tmp_path / "out", tiny_run)


@pytest.mark.long
def test_the_death_of_a_rank_ends_the_others(tiny_run, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "rcnn_ext", "train", "faster_rcnn_synthetic"]
    command += ["--data", str(tiny_run.data), "--out", str(out), "--max-steps", "500"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *tiny_run.overrides, *OPTIONS],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as launcher:
        end = time.monotonic() + 200
        while not (out / "last.ckpt").exists():
            assert time.monotonic() < end
            assert launcher.poll() is None
            time.sleep(0.1)
        listed = subprocess.run(
            ["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True
        )
        ranks = [int(pid) for pid in listed.stdout.split()]
        assert len(ranks) == 2
        os.kill(ranks[-1], signal.SIGKILL)
        text, _ = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert "rank" in text
    assert load_checkpoint(out / "last.ckpt").step >= 1
    for pid in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
