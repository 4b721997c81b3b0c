"""Interleaving, repetition and patience, on a clock that only counts."""

from __future__ import annotations

import contextlib
import gc
import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from rcnn_ext.bench import memory
from rcnn_ext.bench.timing import (
    MIN_RUNS,
    Contender,
    Timing,
    TimingConfig,
    WallClock,
    time_interleaved,
)


class FakeClock:
    """A call takes as long as it says."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, int]] = []

    def measure(self, calls: Sequence[Callable[[], Any]], count: int) -> float:
        name, seconds = calls[0]()
        self.runs.append((name, count))
        return seconds * count


def _contender(name: str, seconds: float, may_be_slow: bool = False) -> Contender:
    return Contender(name, [lambda: (name, seconds)], may_be_slow=may_be_slow)


def test_contenders_take_turns_and_each_comes_first() -> None:
    clock = FakeClock()
    config = TimingConfig(min_run_time=0.1, budget=1, max_runs=6)
    timings = time_interleaved([_contender("a", 0.1), _contender("b", 0.1)], clock, config)
    timed = [name for name, _ in clock.runs[4:]]  # after the warm-up of both
    assert timed == ["a", "b", "b", "a", "b", "a", "a", "b", "a", "b"]
    assert len(timings["a"].seconds) == len(timings["b"].seconds) == 5


def test_each_contender_follows_each_other_equally_often() -> None:
    clock = FakeClock()
    names = ["a", "b", "c"]
    time_interleaved(
        [_contender(name, 0.1) for name in names],
        clock,
        TimingConfig(min_run_time=0.1, budget=2, max_runs=6),
    )
    timed = [name for name, _ in clock.runs[-18:]]
    pairs = Counter(
        pair for turn in range(6) for pair in itertools.pairwise(timed[3 * turn : 3 * turn + 3])
    )
    assert pairs == dict.fromkeys(itertools.permutations(names, 2), 2)


def test_short_calls_are_repeated_within_a_run() -> None:
    timings = time_interleaved(
        [_contender("a", 1e-5)], FakeClock(), TimingConfig(min_run_time=0.002)
    )
    assert timings["a"].calls == 200
    assert timings["a"].median == pytest.approx(1e-5)


def test_budget_and_max_runs_bound_the_runs() -> None:
    config = TimingConfig(min_run_time=0.01, budget=0.2, max_runs=12)
    assert len(time_interleaved([_contender("a", 0.001)], FakeClock(), config)["a"].seconds) == 12
    assert len(time_interleaved([_contender("a", 0.02)], FakeClock(), config)["a"].seconds) == 10
    slow = time_interleaved([_contender("a", 3.0)], FakeClock(), config)["a"]
    assert len(slow.seconds) == MIN_RUNS


def test_a_slow_contender_runs_once() -> None:
    config = TimingConfig(slow_threshold=1.0, budget=1.0)
    timings = time_interleaved(
        [_contender("a", 0.1), _contender("b", 5.0, may_be_slow=True)], FakeClock(), config
    )
    assert len(timings["b"].seconds) == 1
    assert len(timings["a"].seconds) >= MIN_RUNS


def test_patience_counts_all_inputs() -> None:
    clock = FakeClock()
    calls = [lambda: ("a", 0.1)] * 20
    slow = Contender("a", calls, may_be_slow=True)
    assert len(time_interleaved([slow], clock, TimingConfig(slow_threshold=1.0))["a"].seconds) == 1
    assert clock.runs == [("a", 1)]
    few = Contender("a", calls[:5], may_be_slow=True)
    assert (
        len(time_interleaved([few], clock, TimingConfig(slow_threshold=1.0))["a"].seconds)
        >= MIN_RUNS
    )


def test_every_input_is_warm_before_the_first_run() -> None:
    called: list[int] = []
    calls = [lambda i=i: called.append(i) for i in range(3)]
    time_interleaved([Contender("a", calls)], WallClock(), TimingConfig(min_run_time=0, budget=0))
    assert called[:3] == [0, 1, 2]


def test_context_is_entered_around_every_run() -> None:
    depth = 0

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        nonlocal depth
        depth += 1
        yield
        depth -= 1

    seen = set()

    def call() -> tuple[str, float]:
        seen.add(depth)
        return "a", 0.01

    time_interleaved([Contender("a", [call], context)], FakeClock(), TimingConfig())
    assert seen == {1}


def test_collector_is_back_on_after_a_failure() -> None:
    def fail() -> None:
        assert not gc.isenabled()
        raise RuntimeError("no kernel")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="no kernel"):
        time_interleaved([Contender("a", [fail])], WallClock(), TimingConfig())
    assert gc.isenabled()


def test_wall_clock_takes_inputs_in_turn() -> None:
    seen: list[int] = []
    calls = [lambda i=i: seen.append(i) for i in range(3)]
    assert WallClock().measure(calls, 7) > 0
    assert seen == [0, 1, 2, 0, 1, 2, 0]


def test_median_of_a_timing() -> None:
    timing = Timing((3.0, 1.0, 2.0), calls=4)
    assert timing.median == 2.0
    assert timing.as_json() == {
        "median_s": 2.0,
        "min_s": 1.0,
        "max_s": 3.0,
        "runs": 3,
        "calls_per_run": 4,
    }


def test_extra_memory_is_what_the_result_does_not_hold() -> None:
    size = 64 << 20

    def lean() -> torch.Tensor:
        return torch.ones(size // 4)

    def wasteful() -> torch.Tensor:
        return torch.ones(size // 4) * 2

    cpu = torch.device("cpu")
    lean(), wasteful()
    extra = memory.extra_bytes(lean, cpu)
    if extra is None:
        pytest.skip("the peak of memory is known on Linux only")
    assert extra < size // 4
    assert abs((memory.extra_bytes(wasteful, cpu) or 0) - size) < size // 4


def test_kernels_are_counted_on_cuda_only() -> None:
    assert memory.kernel_times(lambda: None, torch.device("cpu")) is None


_TAKE_AND_TAKE_AGAIN = """
import resource, torch
from rcnn_ext.bench.memory import keep_freed_memory
print(keep_freed_memory() is not None)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(6):
    before = faults()
    taken = [torch.ones(5 << 20) for _ in range(4)]
    print(faults() - before)
    del taken
"""


def test_freed_memory_is_kept() -> None:
    command = [sys.executable, "-c", _TAKE_AND_TAKE_AGAIN]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    kept, *counts = done.stdout.split()
    if kept != "True":
        pytest.skip("the C library is not glibc")
    # Of 20,000 pages of 4 KiB, once there has been enough to keep.
    assert max(map(int, counts[-2:])) < 1000
