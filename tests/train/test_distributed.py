"""Two processes, started by torchrun on one machine or on two, do what one process does."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rcnn_ext.cli import main
from tests.conftest import TINY

pytest.importorskip("lightning", reason="lightning comes with the extra train")

ROOT = Path(__file__).parents[2]
STEPS = 10
OVERRIDES = (
    *TINY,
    # Nothing may tie the images of a batch together but the losses.
    "model.norm_layer=frozen",
    # Some images have more anchors, so that it matters which are sampled, and others have fewer,
    # so that the processes have different numbers of samples.
    "model.rpn_batch_size_per_image=240",
    "model.box_batch_size_per_image=24",
    "data.batch_size=4",
    "data.augment.horizontal_flip=0.5",
    "optimizer.name=sgd",
    "optimizer.lr=0.01",
    "schedule.warmup_steps=0",
    "schedule.decay=constant",
    "evaluation.val_every=5",
    "runtime.log_every=1",
)


def arguments(data, out, *more, steps=STEPS):
    paths = ["--data", str(data), "--out", str(out), "--max-steps", str(steps)]
    return ["train", "faster_rcnn_synthetic", *paths, *OVERRIDES, *more]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun(machines, command, timeout=120):
    """Runs the command line in two processes, on one machine or as if on two."""
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launched = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run"),
                f"--nnodes={machines}",
                f"--node-rank={rank}",
                f"--nproc-per-node={2 // machines}",
                "--master-addr=127.0.0.1",
                f"--master-port={port}",
                *("-m", "rcnn_ext", *command),
            ],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(machines)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in launched]
    finally:
        for process in launched:
            process.kill()
    return [process.returncode for process in launched], outputs


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("one")
    assert main(arguments(folder / "data", folder / "out")) == 0
    return folder


def assert_same_run(one, two):
    first, second = (
        torch.load(out / "last.ckpt", weights_only=True)["state_dict"] for out in (one, two)
    )
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-5, atol=1e-5, msg=name)
    # The change in training is far larger than the tolerance.
    losses = [[float(row["loss"]) for row in rows(out / "losses.csv")] for out in (one, two)]
    assert len(losses[0]) == STEPS
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][-1] < losses[0][0] - 0.02
    validation = [rows(out / "validation.csv") for out in (one, two)]
    assert [row["step"] for row in validation[1]] == ["5", "10"]
    for mine, other in zip(*validation, strict=True):
        for name, value in mine.items():
            assert (value == "") == (other[name] == "")
            assert float(other[name] or 0) == pytest.approx(float(value or 0), abs=0.02), name


def test_two_processes_learn_what_one_does(one_process, tmp_path):
    codes, outputs = torchrun(1, arguments(one_process / "data", tmp_path / "two"))
    assert codes == [0], outputs
    assert_same_run(one_process / "out", tmp_path / "two")
    assert outputs[0][0].count("million parameters") <= 1, "one process talks"


def test_one_process_goes_on_where_two_machines_stopped(one_process, tmp_path):
    data, out = one_process / "data", tmp_path / "two"
    codes, outputs = torchrun(2, arguments(data, out, steps=STEPS // 2))
    assert codes == [0, 0], outputs
    assert main(arguments(data, out, "--resume")) == 0
    assert_same_run(one_process / "out", out)


def test_evaluation_is_divided_and_gathered(one_process, tmp_path):
    command = ["eval", str(one_process / "out"), "--data", str(one_process / "data")]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    codes, outputs = torchrun(1, [*command, "--out", str(tmp_path / "two")])
    assert codes == [0], outputs
    metrics, detections = (
        [json.loads((tmp_path / name / file).read_text()) for name in ("one", "two")]
        for file in ("metrics.json", "detections.json")
    )
    for values in metrics:
        del values["date"], values["seconds"]
    assert metrics[0]["images"] == 4
    assert metrics[0]["detections"] > 0
    assert metrics[1] == metrics[0]
    assert detections[1] == detections[0]


def test_images_that_cannot_be_divided_are_refused(one_process, tmp_path):
    command = arguments(
        one_process / "data", tmp_path / "out", "optimizer.accumulate_grad_batches=3"
    )
    assert main(command) == 2
