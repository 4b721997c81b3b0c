from __future__ import annotations

import io
import sys

import pytest

from rcnn_ext import progress
from rcnn_ext.progress import Progress, tracked


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_in_a_file_it_is_a_line_now_and_then_and_one_at_the_end(clock, capsys):
    with Progress("Training", 100, initial=40) as shown:
        for step in range(60):
            clock.now += 0.5
            shown.advance(note=f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Training: 60/100, 0.50 s/step, 20 s left, loss 19",
        "Training: 80/100, 0.50 s/step, 10 s left, loss 39",
        "Training: 100/100, 0.50 s/step, done, loss 59",
    ]


def test_a_long_run_gets_few_lines(clock, capsys):
    with Progress("Training", 100_000) as shown:
        for _ in range(100_000):
            clock.now += 1
            shown.advance()
    assert 40 < len(capsys.readouterr().err.splitlines()) < 100


def test_a_long_wait_is_told_in_minutes(clock, capsys):
    shown = Progress("Training", 100)
    clock.now += 11
    shown.advance()
    assert capsys.readouterr().err == "Training: 1/100, 11.00 s/step, 18 min 09 s left\n"


def test_short_work_prints_nothing(clock, capsys):
    assert list(tracked([1, 2, 3], "Reading", 3)) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_on_a_terminal_it_is_a_bar(monkeypatch):
    pytest.importorskip("tqdm", reason="tqdm comes with the extra train")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("Training", 4, unit="step") as shown:
        shown.message("half way")
        shown.advance(4, note="loss 1.5")
    text = terminal.getvalue()
    assert "half way\n" in text
    assert "4/4" in text
    assert "loss 1.5" in text


def test_on_a_terminal_without_tqdm_it_is_lines(clock, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with Progress("Training", 1) as shown:
        clock.now += 20
        shown.advance()
    assert terminal.getvalue() == "Training: 1/1, 20.00 s/step, done\n"
