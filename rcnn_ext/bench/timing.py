"""Clocks, and the interleaved timing of contenders."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

# Minimum number of runs behind a median.
MIN_RUNS = 5


@dataclasses.dataclass(frozen=True)
class Timing:
    """The runs of one contender on one case.

    Attributes:
        seconds: Mean time per call of each run.
        calls: Number of calls per run.
        cpu_seconds: Mean processor time per call of each run, of all threads; empty where the clock
            does not take it.
    """

    seconds: tuple[float, ...]
    calls: int
    cpu_seconds: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """The median of the runs, in seconds per call."""
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """Return median, spread and counts."""
        cpu = {}
        if self.cpu_seconds:
            cpu = {
                "median_cpu_s": statistics.median(self.cpu_seconds),
                "min_cpu_s": min(self.cpu_seconds),
            }
        return {
            **cpu,
            "median_s": self.median,
            "min_s": min(self.seconds),
            "max_s": max(self.seconds),
            "runs": len(self.seconds),
            "calls_per_run": self.calls,
        }


@dataclasses.dataclass(frozen=True)
class TimingConfig:
    """How long to measure.

    Attributes:
        min_run_time: Minimum duration of one run, in seconds; shorter calls are repeated within it.
        budget: Time to spend on one case, in seconds, as far as ``min_runs`` allows.
        max_runs: Maximum number of runs per contender.
        min_runs: Minimum number of runs per contender, whatever the budget.
        slow_threshold: A contender that may be slow is timed in a single run when a call on each
            of its inputs takes longer than this, in seconds.
    """

    min_run_time: float = 0.002
    budget: float = 3.0
    max_runs: int = 25
    slow_threshold: float = 1.0
    min_runs: int = MIN_RUNS


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something to time: an implementation bound to the inputs of a case.

    Attributes:
        name: Name in the results.
        calls: The work on one or more sets of inputs, taken in turn.
        context: Makes the context manager of a run (a backend, gradient mode).
        may_be_slow: Whether ``TimingConfig.slow_threshold`` applies to it.
    """

    name: str
    calls: Sequence[Callable[[], Any]]
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    may_be_slow: bool = False


class Clock(Protocol):
    """Measures a number of calls."""

    def measure(self, calls: Sequence[Callable[[], Any]], count: int) -> float:
        """Return the time of ``count`` calls, taken in turn, in seconds."""


class WallClock:
    """Measures synchronous work."""

    def measure(self, calls: Sequence[Callable[[], Any]], count: int) -> float:
        """Return the time of ``count`` calls, taken in turn, in seconds."""
        turn = list(itertools.islice(itertools.cycle(calls), count))
        start = time.perf_counter_ns()
        for call in turn:
            call()
        return (time.perf_counter_ns() - start) / 1e9


class WallAndCpuClock:
    """Measures synchronous work by wall time, and keeps the processor time of each measurement.

    On a machine where others work too, processor time says more: waiting for a turn is no part of
    it, nor are threads that sleep.
    """

    def __init__(self) -> None:
        # Of the last measurement, in seconds, of all threads of the process.
        self.cpu_seconds = 0.0

    def measure(self, calls: Sequence[Callable[[], Any]], count: int) -> float:
        """Return the time of ``count`` calls, taken in turn, in seconds."""
        start = time.process_time_ns()
        seconds = WallClock().measure(calls, count)
        self.cpu_seconds = (time.process_time_ns() - start) / 1e9
        return seconds


class EventClock:
    """Measures work on a CUDA device between two events of its stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def measure(self, calls: Sequence[Callable[[], Any]], count: int) -> float:
        """Return the time of ``count`` calls, taken in turn, in seconds."""
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
    """Return the clock that measures work on a device."""
    return EventClock(device) if device.type == "cuda" else WallClock()


def copy_bandwidth(device: torch.device, size: int = 1 << 30) -> float | None:
    """Measure how fast a CUDA device copies memory, the ceiling of what only moves bytes.

    Args:
        device: A device; the result is None unless it is a CUDA device.
        size: Bytes to copy, more than the caches hold.

    Returns:
        Bytes read and written per second: the median of several copies of random data.
    """
    if device.type != "cuda":
        return None
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls = [lambda: target.copy_(source)]
    clock_for(device).measure(calls, 2)
    return 2 * size / statistics.median(clock_for(device).measure(calls, 1) for _ in range(9))


def time_interleaved(
    contenders: Sequence[Contender], clock: Clock, config: TimingConfig
) -> dict[str, Timing]:
    """Time contenders in turns, so that a change on the machine meanwhile affects all alike.

    Turns start with each contender in turn and run in both directions: each contender follows each
    other equally often, so that none always finds the caches as one certain other left them.

    Args:
        contenders: What to time; each was called before, so that nothing is loaded or compiled now.
        clock: The clock of the device that they run on.
        config: How long to measure.

    Returns:
        The timing of each contender, by name.
    """
    with collector_paused():
        estimates = {contender.name: _warm_up(contender, clock, config) for contender in contenders}
        single = {r.name for r in contenders if _is_too_slow(r, estimates[r.name], config)}
        # The single run of a slow contender. It was called before, when its result was compared.
        runs = {name: [seconds] if name in single else [] for name, seconds in estimates.items()}
        counts = {
            name: max(1, round(config.min_run_time / max(estimate, 1e-9)))
            for name, estimate in estimates.items()
        }
        cpu: dict[str, list[float]] = {name: [] for name in estimates}
        in_turns = [contender for contender in contenders if contender.name not in single]
        turn_time = sum(
            estimates[contender.name] * counts[contender.name] for contender in in_turns
        )
        turns = int(config.budget / turn_time) if turn_time else 0
        for turn in range(min(max(turns, config.min_runs), config.max_runs)):
            for contender in _in_turn(in_turns, turn):
                count = counts[contender.name]
                with contender.context():
                    runs[contender.name].append(clock.measure(contender.calls, count) / count)
                if isinstance(clock, WallAndCpuClock):
                    cpu[contender.name].append(clock.cpu_seconds / count)
    return {
        name: Timing(tuple(seconds), counts[name], tuple(cpu[name]))
        for name, seconds in runs.items()
    }


def _in_turn(contenders: Sequence[Contender], turn: int) -> list[Contender]:
    """Return the order of a turn: each start in turn, forwards and then backwards."""
    first = turn // 2 % max(1, len(contenders))
    order = [*contenders[first:], *contenders[:first]]
    return order if turn % 2 == 0 else order[::-1]


def _is_too_slow(contender: Contender, seconds: float, config: TimingConfig) -> bool:
    return contender.may_be_slow and seconds * len(contender.calls) > config.slow_threshold


def _warm_up(contender: Contender, clock: Clock, config: TimingConfig) -> float:
    """Call a contender on all its inputs, unless it is too slow, and estimate a call's time."""
    others = contender.calls[1:]
    with contender.context():
        first = clock.measure(contender.calls, 1)
        if _is_too_slow(contender, first, config):
            return first
        if others:
            clock.measure(others, len(others))
        if first > config.slow_threshold:
            return first
        again = clock.measure(contender.calls, 1)
        if again > 1e-3:
            return again
        # One short call is mostly the clock's own noise.
        return clock.measure(contender.calls, 10) / 10


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Disable the garbage collector during the runs."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def least_cpu_time(
    calls: Mapping[str, Callable[[], Any]],
    seconds: float,
    min_runs: int,
    counts: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """Run calls in turns for some CPU time, so that other work on the machine counts little.

    Args:
        calls: The contenders, by name.
        seconds: CPU time to spend, as far as ``min_runs`` allows.
        min_runs: Minimum number of runs of each contender.
        counts: Calls per run, by name; one where it is None.

    Returns:
        CPU seconds per call of each contender's fastest run, by name.
    """
    best = dict.fromkeys(calls, math.inf)
    start = time.process_time()
    turn = 0
    while turn < min_runs or time.process_time() - start < seconds:
        for name in list(calls) if turn % 2 else list(calls)[::-1]:
            count = 1 if counts is None else counts[name]
            before = time.process_time_ns()
            for _ in range(count):
                calls[name]()
            elapsed = (time.process_time_ns() - before) / 1e9 / count
            best[name] = min(best[name], elapsed)
        turn += 1
    return best
