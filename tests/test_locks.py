"""A folder has one writer, and a dead one leaves no lock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from rcnn_ext import locks
from rcnn_ext.errors import UserError
from rcnn_ext.locks import locked_folder
from tests.helpers.run_python import ROOT

pytestmark = pytest.mark.skipif(locks.fcntl is None, reason="this system has no flock")

HOLD = """
import os, sys, time
from pathlib import Path
from rcnn_ext.locks import locked_folder

with locked_folder(Path(sys.argv[1]), "a run"):
    if "fork" in sys.argv and os.fork() == 0:
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder, *options):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("options", [(), ("fork",)])
def test_a_lock_names_its_holder_and_ends_with_it(tmp_path, options):
    """Also where a child of the holder, such as a worker that reads images, lives on."""
    process = holder(tmp_path, *options)
    try:
        with (
            pytest.raises(UserError, match=rf"a run of another .*process {process.pid}\): wait"),
            locked_folder(tmp_path, "a run"),
        ):
            pass
        process.kill()
        process.wait()
        with locked_folder(tmp_path, "a run"):
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    finally:
        os.killpg(process.pid, 9) if options else process.kill()
        process.stdout.close()
    assert os.listdir(tmp_path) == []


def test_one_of_many_threads_has_the_lock_at_a_time(tmp_path):
    inside, most, entered = [], [], []

    def enter():
        for _ in range(50):
            try:
                with locked_folder(tmp_path, "a thread"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    entered.append(1)
            except UserError:
                pass

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert entered
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_removed_meanwhile_is_no_error(tmp_path):
    with locked_folder(tmp_path / "out", "a run"):
        os.remove(tmp_path / "out" / ".lock")
        os.rmdir(tmp_path / "out")
    assert os.listdir(tmp_path) == []
