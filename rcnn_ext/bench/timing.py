"""Clocks, and the interleaved timing of rivals."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

# Fewest runs that a median is taken of.
MIN_RUNS = 5


@dataclasses.dataclass(frozen=True)
class Timing:
    """The runs of one rival on one case.

    Attributes:
        seconds: time of one call, one number a run.
        calls: calls that a run's time is the mean of.
    """

    seconds: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        """The median of the runs, in seconds a call."""
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """Give median, spread and counts."""
        return {
            "median_s": self.median,
            "min_s": min(self.seconds),
            "max_s": max(self.seconds),
            "runs": len(self.seconds),
            "calls_a_run": self.calls,
        }


@dataclasses.dataclass(frozen=True)
class Rules:
    """How long to measure.

    Attributes:
        window: least time of one run, in seconds; shorter calls are repeated within a run.
        budget: time to spend on one case, in seconds, as far as ``MIN_RUNS`` allows.
        max_runs: most runs of one rival.
        patience: a rival that may be slow is timed in one run only when a call on each of its
            inputs takes longer than this, in seconds.
    """

    window: float = 0.002
    budget: float = 3.0
    max_runs: int = 25
    patience: float = 1.0


@dataclasses.dataclass(frozen=True)
class Rival:
    """Something to time.

    Attributes:
        name: its name in the results.
        calls: the same work on one or more sets of inputs, taken in turn.
        context: what has to be entered around a run (a backend, gradient mode).
        may_be_slow: whether ``Rules.patience`` applies to it.
    """

    name: str
    calls: Sequence[Callable[[], Any]]
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    may_be_slow: bool = False


class Clock(Protocol):
    """Measures a number of calls."""

    def measure(self, calls: Sequence[Callable[[], Any]], count: int) -> float:
        """Give the time of ``count`` calls, taken in turn, in seconds."""


class WallClock:
    """Measures synchronous work."""

    def measure(self, calls: Sequence[Callable[[], Any]], count: int) -> float:
        """Give the time of ``count`` calls, taken in turn, in seconds."""
        turn = list(itertools.islice(itertools.cycle(calls), count))
        start = time.perf_counter_ns()
        for call in turn:
            call()
        return (time.perf_counter_ns() - start) / 1e9


class EventClock:
    """Measures work on a CUDA device between two events of its stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def measure(self, calls: Sequence[Callable[[], Any]], count: int) -> float:
        """Give the time of ``count`` calls, taken in turn, in seconds."""
        turn = list(itertools.islice(itertools.cycle(calls), count))
        with torch.cuda.device(self._device):
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            for call in turn:
                call()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1e3


def clock_for(device: torch.device) -> Clock:
    """Give the clock that measures work on a device."""
    return EventClock(device) if device.type == "cuda" else WallClock()


def copy_bandwidth(device: torch.device, size: int = 1 << 30) -> float | None:
    """Measure how fast a CUDA device copies memory, the ceiling of what only moves bytes.

    Args:
        device: of any type; None comes back for a CPU.
        size: bytes to copy, more than the caches hold.

    Returns:
        Bytes read and written a second: the median of several copies of random data.
    """
    if device.type != "cuda":
        return None
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls = [lambda: target.copy_(source)]
    clock_for(device).measure(calls, 2)
    return 2 * size / statistics.median(clock_for(device).measure(calls, 1) for _ in range(9))


def time_interleaved(rivals: Sequence[Rival], clock: Clock, rules: Rules) -> dict[str, Timing]:
    """Time rivals in turns, so that what changes on the machine meanwhile meets all of them.

    Turns start with each rival in turn, and go both ways round: each rival follows each other
    equally often, so that none finds the caches as one certain other left them.

    Args:
        rivals: what to time; each was called before, so that nothing is loaded or compiled now.
        clock: the clock of the device that they run on.
        rules: how long to measure.

    Returns:
        The timing of each rival, by name.
    """
    with _collector_paused():
        estimates = {rival.name: _warm_up(rival, clock, rules) for rival in rivals}
        single = {r.name for r in rivals if _is_too_slow(r, estimates[r.name], rules)}
        # What a slow rival's only run gave. It was called before, when its result was compared.
        runs = {name: [seconds] if name in single else [] for name, seconds in estimates.items()}
        counts = {
            name: max(1, round(rules.window / max(estimate, 1e-9)))
            for name, estimate in estimates.items()
        }
        in_turns = [rival for rival in rivals if rival.name not in single]
        turn_time = sum(estimates[rival.name] * counts[rival.name] for rival in in_turns)
        turns = int(rules.budget / turn_time) if turn_time else 0
        for turn in range(min(max(turns, MIN_RUNS), rules.max_runs)):
            for rival in _in_turn(in_turns, turn):
                count = counts[rival.name]
                with rival.context():
                    runs[rival.name].append(clock.measure(rival.calls, count) / count)
    return {name: Timing(tuple(seconds), counts[name]) for name, seconds in runs.items()}


def _in_turn(rivals: Sequence[Rival], turn: int) -> list[Rival]:
    """Give the order of a turn: one start after the other, forwards and then backwards."""
    first = turn // 2 % max(1, len(rivals))
    order = [*rivals[first:], *rivals[:first]]
    return order if turn % 2 == 0 else order[::-1]


def _is_too_slow(rival: Rival, seconds: float, rules: Rules) -> bool:
    return rival.may_be_slow and seconds * len(rival.calls) > rules.patience


def _warm_up(rival: Rival, clock: Clock, rules: Rules) -> float:
    """Call a rival on all its inputs, unless it is too slow, and estimate the time of a call."""
    others = rival.calls[1:]
    with rival.context():
        first = clock.measure(rival.calls, 1)
        if _is_too_slow(rival, first, rules):
            return first
        if others:
            clock.measure(others, len(others))
        if first > rules.patience:
            return first
        again = clock.measure(rival.calls, 1)
        if again > 1e-3:
            return again
        # One short call is mostly the clock's own noise.
        return clock.measure(rival.calls, 10) / 10


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector out of the runs."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
