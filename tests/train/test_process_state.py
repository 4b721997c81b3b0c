"""A run leaves the process as it was: nothing of it stays in memory, signals do what they did."""

from __future__ import annotations

import gc
import signal

import pytest

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.cli import main
from rcnn_ext.models import Detector


def num_detectors() -> int:
    gc.collect()
    # Not isinstance, which asks lazy objects of other packages for their class.
    return sum(issubclass(type(found), Detector) for found in gc.get_objects())


def test_a_run_leaves_no_model_and_no_signal_handler(tiny_run, tmp_path):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    before = num_detectors()
    for name in ("first", "second"):
        arguments = ["train", "faster_rcnn_synthetic", "--data", str(tiny_run.data)]
        arguments += ["--out", str(tmp_path / name), "--max-steps", "1", *tiny_run.overrides]
        assert main(arguments) == 0
    assert num_detectors() == before
    assert [signal.getsignal(number) for number in numbers] == handlers
