"""Some seconds of each part of the attack, for processes that have run nothing before.

What is forked from a process with threads could wait for their locks for good, and PyTorch refuses
derivatives in it.
"""

from __future__ import annotations

import random

from tests.attack import memory, operators, threads


def every_operator_has_a_right_call():
    found = [*operators.raw_operators(), *operators.public_operators()]
    assert len(found) >= 37
    cases = [(index, ()) for index in range(len(found))]
    report = operators.attack(iter(cases), 60)
    assert report.faults == {}
    # Native and reference, and torchvision where it has the operator.
    assert report.calls >= 2 * len(found)


def wrong_arguments_end_in_a_clear_error():
    found = [*operators.raw_operators(), *operators.public_operators()]
    cases = operators.single_cases(found)
    assert len(cases) > 10_000
    random.Random(0).shuffle(cases)
    report = operators.attack(iter(cases[:300]), 120)
    assert report.faults == {}


def a_crash_and_a_hang_are_seen():
    """The attack itself can fail."""
    import os
    import signal
    import time

    from tests.attack.calls import Operator

    def crash(boxes):
        os.kill(os.getpid(), signal.SIGSEGV)

    def hang(boxes):
        time.sleep(60)

    def unclear(boxes):
        raise AttributeError("'str' object has no attribute 'dim'")

    made = [
        Operator(f.__name__, f, {"boxes": "Tensor"}, {"boxes": 1}) for f in (crash, hang, unclear)
    ]
    operators.SECONDS = 1
    report = operators.Report()
    batch = [(index, ()) for index in range(3)]
    end = time.monotonic() + 30
    while batch:
        batch = batch[operators._run_batch(made, batch, report, end) :]
    assert {kind: len(texts) for kind, texts in report.faults.items()} == {
        "crash": 1,
        "hang": 1,
        "unclear": 2,
    }


def operators_in_threads():
    count, faults = threads.attack(2)
    assert count > 0
    assert faults == []


def little_memory():
    count, faults = memory.attack(30)
    assert count > 0
    assert faults == []
