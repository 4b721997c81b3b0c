"""Some seconds of each part; ``make attack`` runs them for an hour."""

from __future__ import annotations

import random
import sys

import pytest

from tests.attack import memory, operators, threads

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and /proc")


def test_every_operator_has_a_right_call(one_thread):
    found = [*operators.raw_operators(), *operators.public_operators()]
    assert len(found) >= 37
    cases = [(index, ()) for index in range(len(found))]
    report = operators.attack(iter(cases), 60)
    assert report.faults == {}
    # Native and reference, and torchvision where it has the operator.
    assert report.calls >= 2 * len(found)


def test_wrong_arguments_end_in_a_clear_error(one_thread):
    found = [*operators.raw_operators(), *operators.public_operators()]
    cases = operators.single_cases(found)
    assert len(cases) > 10_000
    random.Random(0).shuffle(cases)
    report = operators.attack(iter(cases[:300]), 120)
    assert report.faults == {}


def test_a_crash_and_a_hang_are_seen(monkeypatch, one_thread):
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
    monkeypatch.setattr(operators, "SECONDS", 1)
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


def test_threads(one_thread):
    count, faults = threads.attack(2)
    assert count > 0
    assert faults == []


def test_little_memory(one_thread):
    count, faults = memory.attack(30)
    assert count > 0
    assert faults == []
