"""Command lines in processes of their own, forked from one that has imported everything.

A test's own process can't be forked: once it has run autograd, PyTorch refuses to in a child, and
its other threads may hold locks. Starting Python and importing PyTorch for each takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.helpers.order_server import OrderServer
from tests.helpers.run_python import ROOT

_SERVER = """
import json, os, signal, sys
import torch
import lightning
import rcnn_ext.train.run
from rcnn_ext.cli import main

torch.set_num_threads(1)

def child(order):
    code = 1
    try:
        os.setpgid(0, 0)
        handle = os.open(order["output"], os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(0)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        exec(order["before"], {})
        code = main(order["words"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)

for line in iter(sys.stdin.readline, ""):
    order = json.loads(line)
    if "words" in order:
        answer = os.fork()
        if answer == 0:
            child(order)
    elif "lives" in order:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        answer = os.waitid(os.P_PID, order["lives"], options) is None
    else:
        answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
    print(json.dumps(answer), flush=True)
"""


@contextlib.contextmanager
def running_server() -> Iterator[OrderServer]:
    """Run a server; nothing of it is left behind."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = OrderServer([sys.executable, "-c", _SERVER], environment)
    try:
        yield server
    finally:
        server.close()


class Child:
    """A process, which is a group of its own.

    Args:
        server: forks it.
        words: arguments of ``rcnn-ext``.
        output: file for what it prints.
        before: code to run first.
    """

    def __init__(
        self, server: OrderServer, words: list[str], output: Path, before: str = ""
    ) -> None:
        self.output = output
        self._server = server
        self.pid: int = server.ask({"words": words, "output": str(output), "before": before})

    @property
    def text(self) -> str:
        """What it printed."""
        return self.output.read_text() if self.output.exists() else ""

    def until(self, condition: Callable[[], bool], seconds: float = 120) -> bool:
        """Wait for something; return whether the process lives on."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.text
            if not self._server.ask({"lives": self.pid}):
                return False
            time.sleep(0.01)
        return True

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def end(self) -> int:
        """Wait for its end and return its exit status, negative for a signal."""
        return int(self._server.ask({"wait": self.pid}))
