"""The arithmetic of the model of a device, on cases that were computed by hand."""

from __future__ import annotations

import collections

import pytest
from cuda_device import Kernel, Work


def test_a_copy_is_bound_by_memory():
    kernel = Kernel("copy", blocks=10_000, instructions=1e6, hbm=4.3e9)
    assert kernel.bound == "memory"
    assert kernel.seconds == pytest.approx(1e-3 + 2e-6)


def test_arithmetic_is_bound_by_the_issue_rate():
    # 132 multiprocessors, 3 instructions per cycle, 1.9e9 cycles: 7.524e11 per second.
    kernel = Kernel("iou", blocks=1320, instructions=7.524e8)
    assert kernel.bound == "issue"
    assert kernel.seconds == pytest.approx(1e-3 + 2e-6)


def test_loops_that_wait_for_loads_issue_less():
    busy, waiting = (
        Kernel("k", blocks=1320, instructions=7.524e8, waits=waits) for waits in (False, True)
    )
    assert waiting.limits["issue"] / busy.limits["issue"] == pytest.approx(3.0 / 2.2)


def test_one_block_has_one_multiprocessor_and_its_warps():
    # 8 warps at 0.3 instructions per cycle: 2.4; 32 warps reach 3.0.
    few = Kernel("k", blocks=1, instructions=2.4 * 1.9e6)
    many = Kernel("k", blocks=1, instructions=3.0 * 1.9e6, warps=32)
    assert few.limits["issue"] == pytest.approx(1e-3)
    assert many.limits["issue"] == pytest.approx(1e-3)


def test_a_chain_of_waits_takes_its_cycles_however_little_else_there_is():
    kernel = Kernel("resolve", blocks=1, instructions=10, chain=1.9e6)
    assert kernel.bound == "latency"
    assert kernel.seconds == pytest.approx(1e-3 + 2e-6)


def test_small_kernels_are_bound_by_their_launch():
    kernel = Kernel("fill", blocks=1, instructions=10, launches=3)
    assert kernel.bound == "launch"
    assert kernel.seconds == pytest.approx(6e-6, rel=1e-2)


def test_a_call_takes_the_longer_of_host_and_device():
    short = Work([Kernel("a", 1)], collections.Counter({"aten::empty": 4}))
    # One operator, four allocations from C++, one launch.
    assert short.host_seconds == pytest.approx(8e-6 + 4 * 2e-6 + 2.5e-6)
    assert short.seconds == short.host_seconds
    assert short.bound == "host"
    long = Work([Kernel("a", 1, chain=1.9e6)])
    assert long.seconds == long.device_seconds == pytest.approx(1e-3 + 2e-6)


def test_waits_and_serial_calls_add_up():
    kernels = [Kernel("a", 1, chain=1.9e5)]  # 100 us
    overlapping = Work(kernels, eager=4, syncs=1)
    serial = Work(kernels, eager=4, syncs=3, serial=True)
    device_time = 102e-6 + 4 * 3.5e-6
    host_time = 8e-6 + 4 * 5e-6 + 2.5e-6
    assert overlapping.seconds == pytest.approx(device_time + 10e-6)
    assert serial.seconds == pytest.approx(device_time + host_time + 30e-6)


def test_launches_of_pytorch_are_counted_by_call():
    calls = collections.Counter(
        {"aten::empty": 5, "aten::sort": 2, "aten::sort (radix)": 1, "aten::clone": 1}
    )
    work = Work([Kernel("a", 1, launches=3), Kernel("b", 1)], calls, eager=2)
    assert work.launches == 4
    assert work.torch_launches == 2 * 3 + 9 + 1 + 2
