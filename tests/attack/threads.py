"""Calls from many threads at once, whose results are those of one thread, bit for bit."""

from __future__ import annotations

import itertools
import threading
import time

import torch
from torch import Tensor

from tests.attack.calls import Operator, public_operators, raw_operators


def attack(seconds: float, threads: int = 8) -> tuple[int, list[str]]:
    """Call all operators from several threads until time is over.

    Returns:
        The number of calls, and what differed or failed.
    """
    operators = [*raw_operators(), *public_operators()]
    expected = {operator.name: _results(operator) for operator in operators}
    counts, faults = [0] * threads, []
    end = time.monotonic() + seconds

    def work(thread: int) -> None:
        torch.set_num_threads(1 + thread % 2)
        # Each thread begins elsewhere, so that different operators run side by side.
        for operator in itertools.islice(itertools.cycle(operators), 5 * thread, None):
            if time.monotonic() > end:
                return
            counts[thread] += 1
            try:
                got = _results(operator)
            except Exception as error:  # noqa: BLE001
                faults.append(f"{operator.name} in a thread: {type(error).__name__}: {error}")
                continue
            if not _equal(got, expected[operator.name]):
                faults.append(f"{operator.name} in a thread: another result than alone")

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts), faults


def _results(operator: Operator) -> list[Tensor]:
    results = operator.function(**operator.arguments)
    pending, found = [results], []
    while pending:
        one = pending.pop()
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, list | tuple):
            pending += one
    return found


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
        for a, b in zip(one, other, strict=True)
    )
