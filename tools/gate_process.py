"""Processes of the GPU gate: their output, and how they are stopped."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from gate_types import REPOSITORY, Command, Finished

# A log keeps its beginning and its end; a sanitizer that finds much writes gigabytes.
_LOG_HALF = 1 << 20
# A log is cut while it is written, too: a disk holds only so much.
_LOG_FLOOD = 64 << 20
# pytest, the comparison and the sanitizers write what they know when they are interrupted.
GRACE = 10.0
_POLL = 0.05


def run_command(command: Command, log: pathlib.Path, limit: float) -> Finished:
    """Run a process with its output in a log; stop it, and all it started, at its time limit.

    It is asked to stop by SIGINT before the limit, and killed at it. The whole lasts no longer than
    the limit, whatever the process does.

    Args:
        command: the process.
        log: the file for its output.
        limit: seconds.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **command.environment}
    # Of a short time, most is for the work.
    grace = min(GRACE, limit / 4)
    with log.open("w+b") as output:
        process = subprocess.Popen(
            command.arguments,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        start = time.monotonic()
        interrupted = flooded = False
        try:
            while process.poll() is None:
                used = time.monotonic() - start
                flooded = log.stat().st_size > _LOG_FLOOD
                interrupted |= used >= limit
                if used >= limit or flooded:
                    break
                if used >= limit - grace and not interrupted:
                    interrupted = True
                    _signal(process.pid, signal.SIGINT)
                time.sleep(_POLL)
        finally:
            # Also what the process left running when it ended.
            _signal(process.pid, signal.SIGKILL)
            process.wait()
        return Finished(process.returncode, interrupted, _shorten(log), flooded)


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _shorten(log: pathlib.Path) -> str:
    """Cut the middle out of a long log, and return what is left."""
    with log.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        kept = file.read(2 * _LOG_HALF)
        if size > 2 * _LOG_HALF:
            file.seek(-_LOG_HALF, os.SEEK_END)
            kept = kept[:_LOG_HALF] + b"\n[...]\n" + file.read()
            file.seek(0)
            file.truncate()
            file.write(kept)
    return kept.decode(errors="replace")


@contextlib.contextmanager
def no_core_files() -> Iterator[None]:
    """Let crashing processes leave no core files, which are as large as their memory."""
    if sys.platform == "win32":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
