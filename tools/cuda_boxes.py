"""The work of IoU, matching and suppression on CUDA, ours and torchvision's, for the model.

Instructions of inner loops are recorded from the machine code; what the kernels issue around them
was counted by hand in it.
"""

from __future__ import annotations

import collections
import dataclasses

from cuda_code import Code
from cuda_counting import make_inputs
from cuda_device import (
    BARRIER,
    L2_LATENCY,
    SHARED_LATENCY,
    SMALL_SORT_ROW,
    Kernel,
    Work,
)

from rcnn_ext import ops
from rcnn_ext.bench.cases import IouCase, MatchCase, NmsCase

CHUNK = 8192  # boxes of nms_chunk_cuda_kernels.cuh
WORD = 64
# Of torchvision: above so many boxes batched_nms loops over the classes on a device.
COORDINATE_TRICK = 25_000
# Fraction of the copy bandwidth that PyTorch's broadcasting kernels reach.
BROADCAST_EFFICIENCY = 0.85


def sort_calls(rows: int, length: int) -> str:
    """Return the name of a sort of rows in ``LAUNCHES_OF_CALL``."""
    return "aten::sort" if length <= SMALL_SORT_ROW else "aten::sort (radix)"


def sort_bytes(count: int) -> float:
    """Return the bytes that a radix sort of 32-bit keys with 64-bit indices moves."""
    # Each of four passes reads and writes keys and values; the indices are made and copied.
    return count * (4 * 2 * (4 + 8) + 4 * 8)


# --- IoU and matching -------------------------------------------------------------------------


def box_iou(case: IouCase, code: Code) -> Work:
    """Model one launch: a thread computes 4 columns of some rows and stores them at once."""
    kernel = "box_iou_kernel<true, float, IntersectionOverUnion>"
    pairs = case.rows * case.columns
    loop = code.loop(kernel, "global_stores")
    tiles = -(-case.rows // 64)
    # Around the loop: 16 loads and the terms of 4 boxes, by each of 8 warps of a tile.
    around = 200 * 8 * tiles
    moved = 4 * pairs + 16 * (case.rows + tiles * case.columns)
    instructions = pairs / 32 / 4 * loop.instructions + around
    return Work(
        [Kernel("box_iou", tiles, instructions, hbm=moved, inner=loop.instructions)],
        collections.Counter({"aten::empty": 1}),
    )


def iou_passes(pairs: int) -> tuple[int, float]:
    """Return the operators of torchvision's box_iou, and the bytes that they move."""
    # max and min of corners write [N, M, 2]; their difference reads both and writes one; clamp;
    # width times height; sum of areas; minus intersection; quotient.
    matrix = 4 * pairs
    passes = 2 * 2 + 6 + 4 + 3 + 1 + 3 + 3
    return 14, matrix * passes / BROADCAST_EFFICIENCY


def box_iou_torchvision(case: IouCase, code: Code) -> Work:
    """Model PyTorch's operators on the matrix of pairs."""
    eager, moved = iou_passes(case.rows * case.columns)
    return Work([], eager=eager, torch_bytes=moved)


def match_boxes(case: MatchCase, code: Code) -> Work:
    """Model two launches after one that clears the best IoU of each ground truth."""
    blocks = -(-case.boxes // 1024)
    match = code.loop("match_kernel<true, float>", "reciprocals", "atomics")
    low = code.loop("low_quality_kernel<float>", "reciprocals")
    rounds = blocks * 8 * case.gts
    written = case.boxes * (8 + 4)
    return Work(
        [
            Kernel(
                "match",
                blocks,
                rounds * match.instructions + 400 * 8 * blocks,
                hbm=16 * case.boxes + written,
                inner=match.instructions,
            ),
            # A box whose best IoU is below the ground truth's best takes the shortest way.
            Kernel(
                "low_quality",
                blocks,
                rounds * low.shortest + 400 * 8 * blocks,
                hbm=(16 + 4 + 8 + 8) * case.boxes,
                inner=low.shortest,
            ),
        ],
        collections.Counter({"aten::empty": 3, "aten::zero_": 1}),
    )


def match_boxes_torchvision(case: MatchCase, code: Code) -> Work:
    """Model box_iou, then the Matcher: two maxima, a comparison and nonzero on the matrix."""
    pairs = case.boxes * case.gts
    eager, moved = iou_passes(pairs)
    # Both maxima read the matrix; the comparison reads it and writes bytes that nonzero reads
    # twice.
    moved += pairs * (4 + 4 + 4 + 1 + 2)
    moved += 12 * 8 * case.boxes  # thresholds and indices, one value per box
    return Work([], eager=eager + 13, syncs=1, torch_bytes=moved)


# --- suppression ------------------------------------------------------------------------------


def kept_boxes(case: NmsCase) -> int:
    """Count the boxes that suppression keeps of the case's inputs."""
    return len(case.bind(ops, make_inputs(case))())


def nms_order(
    case: NmsCase, code: Code, one_chunk: bool
) -> tuple[list[Kernel], collections.Counter]:
    """Rank by counting up to a chunk, by PyTorch's sort above."""
    count, classes = case.count, bool(case.classes)
    calls: collections.Counter[str] = collections.Counter()
    if not one_chunk:
        calls["aten::empty"] += 1
        calls[sort_calls(1, count)] += 2 if classes else 1
        calls["aten::index_select"] += 3 if classes else 0
        # Scores in, keys out; and the boxes in, the order of the kept out, of later kernels.
        return [Kernel("key", -(-count // 256), count / 32 * 40, hbm=(4 + 4 + 24) * count)], calls
    calls["aten::empty"] += 4 if classes else 1
    loops = code.loops("rank_kernel<float>", "global_loads")
    # With classes an iteration looks at one score and its class, else at two scores.
    loop = loops[0] if classes else loops[-1]
    trips = count / 32 / (1 if classes else 2)
    instructions = -(-count // 4) * (trips * loop.instructions + 120)
    blocks = -(-count // 32)
    # Every warp waits for the cache once per iteration.
    chain = trips * (L2_LATENCY + 4 * 6)
    return [
        Kernel(
            "rank",
            blocks,
            instructions,
            waits=True,
            # Scores in, order out; and the boxes in, the order of the kept out, of later kernels.
            hbm=(4 + 8 + 24) * count,
            chain=chain,
            inner=loop.instructions,
        )
    ], calls


def nms(case: NmsCase, code: Code, chunk: int = CHUNK) -> Work:
    """Model ranking, then suppression, resolve and suppress_later for each chunk."""
    count, classes = case.count, case.classes
    kept = kept_boxes(case)
    chunks = -(-count // chunk)
    kernels, calls = nms_order(case, code, chunks == 1)
    matrix = code.loop("suppression_kernel<float>", "votes")
    segment = count / max(1, classes)  # boxes that may suppress each other
    for first in range(0, count, chunk):
        size = min(chunk, count - first)
        words = -(-size // WORD)
        # Tiles of 64 x 64 pairs that have boxes of one class.
        span = min(words, segment / WORD + 1)
        tiles = words * (words + 1) / 2 - (words - span) * (words - span + 1) / 2
        # 8 warps with 8 columns each; other tiles end after they compared classes.
        # Nearly all pairs overlap too little for the exact test.
        instructions = tiles * 8 * (8 * matrix.screened + 150) + words * words * 8 * 20
        kernels.append(
            Kernel(
                "suppression",
                words * words,
                instructions,
                l2=tiles * (2 * 64 * 24 + 64 * 8),
                inner=matrix.screened,
            )
        )
        # A block per word with classes: its segment's words, else all words of the chunk, each
        # with: rows of earlier words, a barrier, the diagonal, some rounds of votes, a barrier,
        # and the order of the kept boxes.
        steps = min(words, segment / WORD + 1) if classes else words
        step = 3 * L2_LATENCY + 2 * BARRIER + 4 * 40
        kernels.append(
            Kernel("resolve", words if classes else 1, chain=steps * step, warps=16, waits=True)
        )
        later = count - first - size
        if later:
            loop = code.loop("suppress_later_kernel<float>", "shared")
            carried = kept * size / count
            blocks = -(-later // 256)
            if classes:
                # Only the last segment goes on after the chunk, half of it on average.
                carried *= min(1, segment / size) / 2
                blocks = max(1, segment / 2 / 256)
            # A warp is through when all of its boxes are suppressed, which happens to few.
            work = blocks * 8 * carried * loop.screened
            kernels.append(Kernel("suppress_later", blocks, work, inner=loop.screened))
    # Of the chunks and the result; some of them are empty.
    calls["aten::empty"] += 7
    calls["aten::zero_"] += 1
    calls["aten::narrow"] += 1
    calls["aten::clone"] += 1
    calls["aten::item"] += 1
    if classes:
        # One block; each 1,024 boxes take two barriers, a load, a scan and a store.
        step = 2 * L2_LATENCY + 2 * BARRIER + 10 * SHARED_LATENCY
        kernels.append(Kernel("compact", 1, chain=count / 1024 * 2.5 * step, warps=32))
    sorted_bytes = 0.0 if chunks == 1 else sort_bytes(count) * (2 if classes else 1)
    return Work(kernels, calls, syncs=1, torch_bytes=sorted_bytes)


def nms_torchvision_kernels(count: int, kept: int, code: Code) -> list[Kernel]:
    """Model a matrix of all pairs, then one block that goes through the kept boxes."""
    matrix = code.torchvision_loop("nms_kernel_impl<float>", "reciprocals")
    words = -(-count // WORD)
    # 64 threads per tile; each compares its box with 64, some of them per iteration.
    per_trip = max(1, matrix.kinds["reciprocals"])
    tiles = words * (words + 1) / 2
    pairs = tiles * 2 * (64 / per_trip * matrix.instructions + 80)
    # Per kept box: a barrier, the load of its row's words, and the next barrier. A thread takes
    # another word for each 64 that there are.
    loop = code.torchvision_loop("gather_keep_from_mask", "global_loads")
    rounds = -(-words // 64)
    step = L2_LATENCY + 2 * BARRIER + 2 * SHARED_LATENCY + rounds * (loop.instructions * 2 + 20)
    if rounds > 1:
        step += (rounds - 1) * L2_LATENCY / 2  # two loads in flight
    scan = words * 64 * (SHARED_LATENCY + 12)  # every box is looked at
    return [
        Kernel("nms", tiles, pairs, warps=2, hbm=8 * count * words, inner=matrix.instructions),
        Kernel("gather_keep", 1, chain=kept * step + scan, warps=2, inner=loop.instructions),
    ]


def nms_torchvision(case: NmsCase, code: Code) -> Work:
    """Model a sort, index_select, matrix, zeros, gather and masked_select."""
    kept = kept_boxes(case)
    count = case.count
    calls = collections.Counter(
        {
            sort_calls(1, count): 1,
            "aten::index_select": 1,
            "aten::empty": 2,
            "aten::zero_": 1,
            "aten::masked_select": 1,
        }
    )
    moved = sort_bytes(count) if count > SMALL_SORT_ROW else 0.0
    if not case.classes:
        kernels = nms_torchvision_kernels(count, kept, code)
        return Work(kernels, calls, syncs=1, torch_bytes=moved)
    if count <= COORDINATE_TRICK:
        # The boxes are moved apart: maximum, two sums, product, conversion, indexing.
        kernels = nms_torchvision_kernels(count, kept, code)
        return Work(kernels, calls, eager=7, syncs=1, torch_bytes=moved)
    # A loop over the classes: where() and its wait, two gathers, nms, and a scatter of the kept.
    part, kept_part = count // case.classes, kept // case.classes
    kernels = [
        dataclasses.replace(kernel, launches=case.classes)
        for kernel in nms_torchvision_kernels(part, kept_part, code)
    ]
    each = collections.Counter({name: n * case.classes for name, n in calls.items()})
    return Work(kernels, each, eager=9 * case.classes, syncs=2 * case.classes, serial=True)
