"""A process that answers orders, one line of JSON each, for as long as its caller lives."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


class OrderServer:
    """Starts a process and gives it orders on its standard input.

    Args:
        command: the process; it answers each line with one line of JSON.
        environment: variables; None means the present ones.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None):
        self._process = subprocess.Popen(
            command,
            env=dict(os.environ if environment is None else environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, order: Any) -> Any:
        """Give an order and return the answer.

        Raises:
            RuntimeError: the process has died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the process that answers orders has died")
        return json.loads(answer)

    def close(self) -> None:
        """Let the process end, as it does when there are no more orders."""
        self._process.communicate()
