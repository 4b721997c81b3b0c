"""The emulator itself: intrinsics give what CUDA documents, and each broken kernel is found out."""

from __future__ import annotations

import ctypes
import os
import re
import struct
from pathlib import Path

import pytest
from emulation.backend import SANITIZE, EmulationError, Library
from emulation.build import build, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

SANITIZED = bool(os.environ.get(SANITIZE))
TOYS = Path(__file__).with_name("toy_kernels.cu")
SEEDS = range(12)


class Toys:
    """Launches the toy kernels on guarded buffers."""

    def __init__(self, library: Path) -> None:
        self.library = Library(library)
        self._launch = self.library.functions["toy_launch"]
        self._launch.restype = ctypes.c_char_p
        self._launch.argtypes = [
            ctypes.c_char_p,
            ctypes.c_uint * 3,
            ctypes.c_uint * 3,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int,
        ]

    def __call__(self, name, values, out=None, *, grid=(1, 1, 1), block=None, shared=0, seed=0):
        """The numbers that a kernel leaves in its output (and, second, in its input)."""
        block = block or (len(values), 1, 1)
        out = [0] * len(values) if out is None else out
        assert len(out) >= len(values)
        self.library.set_seed(seed)
        addresses, arrays = [], []
        for numbers in (values, out):
            addresses.append(self.library.allocate(4 * len(numbers), 0))
            arrays.append((ctypes.c_int32 * len(numbers)).from_address(addresses[-1]))
            arrays[-1][:] = numbers
        try:
            message = self._launch(
                name.encode(), (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), shared,
                *addresses, len(values),
            ).decode()  # fmt: skip
            results = list(arrays[1]), list(arrays[0])
        finally:
            damage = []
            for address in addresses:
                try:
                    self.library.release(address)
                except EmulationError as error:
                    damage.append(str(error))
        if message or damage:
            raise EmulationError(message or damage[0])
        return results

    def error(self, name, values, *args, **kwargs) -> str:
        """The message of the error that a kernel ends with."""
        with pytest.raises(EmulationError) as caught:
            self(name, values, *args, **kwargs)
        return str(caught.value)


@pytest.fixture(scope="module", params=["native"] if SANITIZED else ["native", "ucontext"])
def toys(request):
    flags = ["-DRCNN_EMULATION_UCONTEXT"] if request.param == "ucontext" else []
    return Toys(
        build(f"toys-{request.param}", kernels=[TOYS], address_sanitizer=SANITIZED, flags=flags)
    )


def is_set(mask, bit):
    return mask >> bit & 1


def signed(bits):
    return struct.unpack("i", struct.pack("I", bits & 0xFFFFFFFF))[0]


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


# --- Errors -------------------------------------------------------------------------------------


def names_the_place(message, kernel, thread=r"\(\d+, 0, 0\)"):
    return re.match(rf"{kernel}, block \(0, 0, 0\), thread {thread}: ", message)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_barrier_that_a_thread_never_reaches(toys, seed):
    message = toys.error("divergent_barrier", [0] * 40, seed=seed)
    assert names_the_place(message, "divergent_barrier")
    assert re.search(r"__syncthreads\(\) in toy_kernels.cu:\d+, but thread \(7, 0, 0\)", message)
    assert f"[seed {seed}]" in message


@pytest.mark.parametrize("seed", SEEDS)
def test_two_barriers_for_one(toys, seed):
    message = toys.error("two_barriers", [0] * 64, seed=seed)
    assert names_the_place(message, "two_barriers")
    assert "not reached by all threads" in message


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", ["absent_lane", "exited_lane"])
def test_a_collective_that_names_a_lane_which_does_not_arrive(toys, kernel, seed):
    message = toys.error(kernel, [0] * 32, seed=seed)
    assert names_the_place(message, kernel)
    assert "lane 5" in message
    assert "0xffffffff" in message


def test_a_collective_that_names_a_lane_beyond_the_block(toys):
    message = toys.error("vote", [1] * 40, [0] * 240)
    assert names_the_place(message, "vote", r"\(3\d, 0, 0\)")
    assert "lane 8: the block has no such thread" in message


def test_a_collective_that_does_not_name_its_own_lane(toys):
    assert "does not name its own lane" in toys.error("unnamed_self", [0] * 32)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", ["masks_disagree", "collectives_disagree"])
def test_lanes_that_disagree_about_a_collective(toys, kernel, seed):
    message = toys.error(kernel, [0] * 32, seed=seed)
    assert names_the_place(message, kernel)
    assert "which names lane" in message


def test_a_shuffle_from_outside_of_its_mask_is_poison(toys):
    results = {tuple(toys("undefined_shuffle", [0] * 32, seed=seed)[0]) for seed in range(4)}
    assert len(results) == 4


def test_a_misaligned_vector(toys):
    message = toys.error("misaligned", [0] * 64, block=(32, 1, 1))
    assert names_the_place(message, "misaligned")
    assert "float4" in message
    assert "a multiple of 16" in message


def test_a_misaligned_atomic(toys):
    assert "not a multiple of 8" in toys.error("misaligned_atomic", [0] * 8)
    assert "not a multiple of 16" in toys.error("misaligned_vector_atomic", [0] * 8)


@pytest.mark.parametrize(
    ("kernel", "where"),
    [
        ("read_before", "4 bytes before the beginning"),
        ("write_before", "4 bytes before the beginning"),
        ("read_behind", "0 bytes after the end"),
        ("write_behind", "0 bytes after the end"),
        ("read_far", "16384 bytes after the end"),
    ],
)
@pytest.mark.parametrize("count", [1024, 33])
def test_global_memory_out_of_bounds(toys, kernel, where, count):
    # 33 numbers leave a gap before the next multiple of 16, and 1024 fill a page.
    in_gap = (count == 33 and "behind" in kernel) or ("before" in kernel and count == 33)
    if in_gap and "read" in kernel and not SANITIZED:
        # Unprotected bytes of the page: their sentinel value is read, and only AddressSanitizer
        # (and a comparison of results) sees it.
        assert toys(kernel, [0] * count, block=(1, 1, 1))[0][0] == signed(0xC3C3C3C3)
        return
    message = toys.error(kernel, [0] * count, block=(1, 1, 1))
    if in_gap and not SANITIZED:
        assert "of a buffer of 132 bytes" in message
        return
    assert names_the_place(message, kernel)
    assert ("AddressSanitizer: use-after-poison" if SANITIZED else where) in message
    if SANITIZED:
        assert ("WRITE" if "write" in kernel else "READ") in message


def test_a_row_of_shared_memory_out_of_bounds(toys):
    message = toys.error("shared_index", [8] * 32, block=(1, 1, 1))
    assert names_the_place(message, "shared_index")
    assert "index 8 is out of bounds" in message


@pytest.mark.skipif(not SANITIZED, reason="only AddressSanitizer sees the ends of an array")
@pytest.mark.parametrize("index", [-1, 32, 33])
@pytest.mark.parametrize("which", [0, 1])
def test_static_shared_memory_out_of_bounds(toys, index, which):
    message = toys.error("shared_pointer", [index, which], block=(1, 1, 1))
    assert names_the_place(message, "shared_pointer")
    assert "global-buffer-overflow" in message


@pytest.mark.parametrize("index", [25, 26, 4000, -2000])
def test_dynamic_shared_memory_out_of_bounds(toys, index):
    message = toys.error("dynamic_shared_end", [index], block=(1, 1, 1), shared=100)
    assert message.startswith("dynamic_shared_end")
    assert ("AddressSanitizer" in message) == SANITIZED


@pytest.mark.parametrize(
    ("kernel", "shared", "message"),
    [
        ("static_shared", 0, "49153 bytes of static shared memory, of at most 49152"),
        ("reverse", 227 * 1024 + 4, "232452 of dynamic shared memory, of at most 232448"),
        ("some_static_shared", 226 * 1024 + 4, "1024 bytes of static and 231428 of dynamic"),
    ],
)
def test_too_much_shared_memory(toys, kernel, shared, message):
    assert f"{kernel}: " in (found := toys.error(kernel, [0] * 32, shared=shared))
    assert message in found


def test_all_shared_memory_there_is(toys):
    toys("some_static_shared", [0] * 32, shared=226 * 1024)


@pytest.mark.parametrize(
    "grid", [(0, 1, 1), (1, 0, 1), (1, 65536, 1), (1, 1, 65536), (2**31, 1, 1)]
)
def test_an_impossible_grid(toys, grid):
    message = toys.error("bits", [0] * 6, block=(1, 1, 1), grid=grid)
    assert f"bits: a grid of {' x '.join(map(str, grid))} blocks cannot be launched" in message


@pytest.mark.parametrize("block", [(0, 1, 1), (1025, 1, 1), (32, 33, 1), (1, 1, 65)])
def test_an_impossible_block(toys, block):
    message = toys.error("bits", [0] * 6, block=block)
    assert f"bits: a block of {' x '.join(map(str, block))} threads cannot be launched" in message


@pytest.mark.parametrize(
    ("kernel", "value", "what"),
    [
        ("divide", 0, "division by zero"),
        ("shift", 32, "a shift by"),
        ("overflow", 1, "addition overflows"),
        ("cast", 5, "does not fit the integer"),
        ("trap", 0, "__trap()"),
        pytest.param("null", 0, "out of bounds: address 0x10", marks=pytest.mark.skipif(
            SANITIZED, reason="AddressSanitizer ends the process at a wild address"
        )),
        pytest.param("recursive", 0, "its stack is exhausted", marks=pytest.mark.skipif(
            SANITIZED, reason="AddressSanitizer ends the process at the end of a stack"
        )),
    ],
)  # fmt: skip
def test_undefined_behaviour(toys, kernel, value, what):
    message = toys.error(kernel, [value] * 8, block=(1, 1, 1))
    assert names_the_place(message, kernel, r"\(0, 0, 0\)")
    assert what in message


def test_a_bool_that_nobody_has_written(toys):
    message = toys.error("unwritten_bool", [0] * 64, seed=0)
    assert names_the_place(message, "unwritten_bool")
    assert "reads 255 as" in message


def test_an_error_leaves_the_next_launch_alone(toys):
    for _ in range(3):
        toys.error("divergent_barrier", [0] * 40)
        values = list(range(100))
        assert toys("reverse", values, shared=400)[0] == values[::-1]
