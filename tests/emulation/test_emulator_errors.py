"""The emulator itself: each broken kernel is found out, and the message names the place."""

from __future__ import annotations

import re

import pytest

from tests.helpers.emulation.build import why_not
from tests.helpers.emulation.toys import SANITIZED, SEEDS, signed

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


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
def test_undefined_behavior(toys, kernel, value, what):
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
