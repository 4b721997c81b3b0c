"""The emulator itself: its schedules differ, and intrinsics give what CUDA documents."""

from __future__ import annotations

import struct

import pytest

from tests.helpers.emulation.build import why_not
from tests.helpers.emulation.toys import SEEDS, signed

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def is_set(mask, bit):
    return mask >> bit & 1


# --- Schedules ----------------------------------------------------------------------------------


def test_each_seed_has_its_order_of_threads(toys):
    orders = [tuple(toys("order", [0] * 96, seed=seed)[0]) for seed in SEEDS]
    assert all(sorted(order) == list(range(96)) for order in orders)
    assert len(set(orders)) >= 6
    assert orders == [tuple(toys("order", [0] * 96, seed=seed)[0]) for seed in SEEDS]


def test_every_block_runs_once_in_an_order_of_the_seed(toys):
    orders = set()
    for seed in SEEDS:
        out, order = toys("blocks", [0] * 61, grid=(3, 4, 5), block=(5, 2, 2), seed=seed)
        assert out[:60] == [20] * 60
        assert sorted(order[:60]) == list(range(60))
        orders.add(tuple(order))
    assert len(orders) >= 6


def test_a_missing_barrier_shows(toys):
    values = list(range(1, 65))
    results = [toys("no_barrier", values, seed=seed)[0] for seed in SEEDS]
    assert sum(result != values[::-1] for result in results) >= len(SEEDS) - 1


@pytest.mark.parametrize("kernel", ["unwritten_shared", "stale_dynamic_shared"])
def test_unwritten_shared_memory_is_poison_that_differs_between_seeds(toys, kernel):
    results = {
        tuple(toys(kernel, [0] * 64, block=(64, 1, 1), grid=(2, 1, 1), shared=256, seed=seed)[0])
        for seed in range(4)
    }
    assert len(results) > 1


# --- Intrinsics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers_and_dynamic_shared_memory(toys, seed):
    values = list(range(100))
    assert toys("reverse", values, shared=400, seed=seed)[0] == values[::-1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("values", [[1] * 64, [0] * 64, [i % 3 for i in range(64)]])
def test_votes(toys, seed, values):
    out, _ = toys("vote", values, [0] * 6 * 64, seed=seed)
    for thread in range(64):
        lanes = values[thread // 32 * 32 :][:32]
        ballot = sum((v > 0) << lane for lane, v in enumerate(lanes))
        warp = [signed(ballot), any(lanes), all(lanes)]
        block = [sum(v > 0 for v in values), all(values), any(values)]
        assert out[6 * thread :][:6] == [*warp, *block]


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffles(toys, seed):
    values = [lane * lane + 1 for lane in range(32)]
    out, _ = toys("shuffle", values, [0] * 7 * 32, seed=seed)
    for lane in range(32):
        assert out[7 * lane :][:7] == [
            values[3],
            values[lane // 4 * 4 + 5 % 4],
            values[lane - 2 if lane >= 2 else lane],
            values[lane + 2 if lane % 8 < 6 else lane],
            values[lane ^ 1],
            values[lane + 16 if lane < 16 else lane],
            values[31 - lane],
        ]


@pytest.mark.parametrize("seed", SEEDS)
def test_parts_of_a_warp_may_go_their_own_ways(toys, seed):
    values = [i * 7 % 50 for i in range(64)]
    out, _ = toys("halves", values, seed=seed)
    for first in (0, 32):
        low, high = values[first:][:16], values[first + 16 :][:16]
        assert out[first:][:32] == [sum(low)] * 16 + [max(high)] * 16


@pytest.mark.parametrize("values", [[5] * 32, [i % 3 for i in range(32)]])
def test_matches(toys, values):
    out, _ = toys("match", values, [0] * 3 * 32, seed=1)
    same = len(set(values)) == 1
    for lane in range(32):
        mask = sum((v == values[lane]) << i for i, v in enumerate(values))
        assert out[3 * lane :][:3] == [signed(mask), -1 if same else 0, int(same)]


def test_reductions(toys):
    values = [(i * 37) % 61 - 30 for i in range(32)]
    unsigned = [v & 0xFFFFFFFF for v in values]
    conjunction, disjunction, parity = 0xFFFFFFFF, 0, 0
    for v in unsigned:
        conjunction, disjunction, parity = conjunction & v, disjunction | v, parity ^ v
    expected = [
        sum(values), min(values), max(values), signed(min(unsigned)), signed(max(unsigned)),
        signed(conjunction), signed(disjunction), signed(parity),
    ]  # fmt: skip
    assert toys("reduce", values, [0] * 8 * 32, seed=2)[0] == expected * 32


def test_bits(toys):
    values = [0, 1, 2, 255, 65536, 2**31 - 1, -1, -(2**31)]
    out, _ = toys("bits", values, [0] * 6 * len(values))
    for i, value in enumerate(values):
        bits = value & 0xFFFFFFFF
        first = (bits & -bits).bit_length()
        wide = 64 - (value & 0xFFFFFFFFFFFFFFFF).bit_length()
        expected = [bin(bits).count("1"), first, 32 - bits.bit_length(), wide, value, 1]
        assert out[6 * i :][:6] == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_atomics(toys, seed):
    values = [(i * 29) % 97 - 40 for i in range(96)]
    start = [0, 1000, -1000, 0, 0, 0, 0, 0, 0, 0, -1000] + [0] * 85
    out, _ = toys("atomics", values, start, seed=seed)
    assert out[:5] == [sum(values), min(values), max(values), 2**31 - 1, 96]
    assert struct.unpack("f", struct.pack("i", out[5])) == (48.0,)
    assert out[6:8] == [96, 96]
    assert struct.unpack("2e", struct.pack("i", out[8])) == (96.0, 192.0)
    assert struct.unpack("f", b"\0\0" + struct.pack("i", out[9])[:2]) == (96.0,)
    assert out[10] == max(values)
    assert struct.unpack("4f", struct.pack("4i", *out[12:16])) == (96.0, 192.0, 288.0, 384.0)


def test_vectors(toys):
    out, _ = toys("vector", list(range(16)), block=(4, 1, 1))
    assert out == [i // 4 * 4 + 3 - i % 4 for i in range(16)]
