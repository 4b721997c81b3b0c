"""The work of proposals and detections on CUDA, ours and torchvision's, for the model."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import cuda_boxes
import torch
from cuda_code import Code
from cuda_counting import make_inputs
from cuda_device import BARRIER, L2_LATENCY, SHARED_LATENCY, Kernel, Work

from rcnn_ext import ops
from rcnn_ext.bench.cases import Case, DetectionCase, ProposalCase

TOP = 1000  # of each level
RADIX_PASSES = 4
WORD = 64


# --- proposals --------------------------------------------------------------------------------


def _block_nms(count: float, kept: float, code: Code, kernel: str) -> tuple[float, float]:
    """Return instructions and latencies of block_nms by 256 threads."""
    against_kept = code.loop(kernel, "global_loads", "reciprocals")
    masks = code.loop(kernel, "shared", "votes")
    words = -(-count // WORD)
    # Four threads per box share the boxes kept so far, half of all on average; then each of 8
    # warps tests 8 columns of the word's 64 x 64 pairs.
    trips = kept / 2 / 4
    instructions = words * 8 * (trips * against_kept.instructions + 8 * masks.instructions + 200)
    latencies = words * (4 * L2_LATENCY + 3 * BARRIER + 6 * SHARED_LATENCY)
    return instructions, latencies


def kept_per_level(case: ProposalCase, inputs: Any) -> list[int]:
    """Count the boxes that the suppression of each level of an image keeps."""
    first, counts = 0, []
    for logits, deltas in zip(inputs.logits, inputs.deltas, strict=True):
        anchors = logits[0].numel()
        level = dataclasses.replace(
            inputs,
            logits=[logits[:1]],
            deltas=[deltas[:1]],
            anchors=inputs.anchors[first : first + anchors],
            sizes=inputs.sizes[:1],
        )
        counts.append(int(case.run(ops, level).counts[0]))
        first += anchors
    return counts


def generate_proposals(case: ProposalCase, code: Code) -> Work:
    """Model select_top, sort, suppress, sort and gather.

    The first and the third have a block per level and image.
    """
    inputs = make_inputs(case)
    levels = [logits[0].numel() for logits in inputs.logits]
    kept = kept_per_level(case, inputs)
    tops = [min(TOP, anchors) for anchors in levels]
    rows = len(levels) * case.images
    name = "select_top_kernel<float>"
    radix = code.loop(name, "atomics", "votes")
    count, write = (
        max(
            (loop for loop in code.loops(name, "global_loads", "votes") if wanted(loop.kinds)),
            key=lambda loop: loop.instructions / loop.kinds["global_loads"],
        )
        for wanted in (
            lambda kinds: "atomics" not in kinds and "global_stores" not in kinds,
            lambda kinds: "atomics" not in kinds and "global_stores" in kinds,
        )
    )
    # The block of the finest level ends last. Its 32 warps share one multiprocessor.
    per_anchor = sum(
        sweeps * loop.instructions / loop.kinds["global_loads"]
        for sweeps, loop in ((RADIX_PASSES, radix), (1, count), (1, write))
    )
    largest = max(levels) / 32 * per_anchor
    trips = max(levels) / 1024
    latencies = trips * 6 / 4 * (L2_LATENCY + 4 * SHARED_LATENCY) + RADIX_PASSES * 256 * 20
    select = Kernel(
        "select_top",
        1,
        largest,
        warps=32,
        chain=latencies,
        hbm=4 * sum(levels) * case.images,
        inner=radix.instructions,
    )
    slowest = max(
        (
            _block_nms(top, k, code, "suppress_proposals_kernel<float>")
            for top, k in zip(tops, kept, strict=True)
        ),
        key=sum,
    )
    suppress_loop = code.loop("suppress_proposals_kernel<float>", "global_loads", "reciprocals")
    suppress = Kernel(
        "suppress",
        1,
        slowest[0],
        waits=True,
        chain=slowest[1],
        inner=suppress_loop.instructions,
    )
    total = sum(tops)
    gather = Kernel("gather", case.images * TOP / 256, case.images * TOP / 32 * 70, waits=True)
    calls = collections.Counter({"aten::empty": 8})
    for length in (max(tops), total):
        calls[cuda_boxes.sort_calls(rows, length)] += 1
    moved = cuda_boxes.sort_bytes(case.images * total)
    return Work([select, suppress, gather], calls, torch_bytes=moved)


def generate_proposals_torchvision(case: ProposalCase, code: Code) -> Work:
    """Model operators of Python code, and batched_nms per image over all levels."""
    eager, syncs = code.torchvision_calls[case.name]
    inputs = make_inputs(case)
    total = sum(min(TOP, logits[0].numel()) for logits in inputs.logits)
    kept = sum(kept_per_level(case, inputs))
    kernels = [
        dataclasses.replace(kernel, launches=case.images)
        for kernel in cuda_boxes.nms_torchvision_kernels(total, kept, code)
    ]
    anchors = case.images * len(inputs.anchors)
    # Logits and deltas are permuted, concatenated and decoded: some 40 passes over [A, 4].
    return Work(kernels, eager=eager, syncs=syncs, torch_bytes=40 * 16 * anchors, serial=True)


# --- detections -------------------------------------------------------------------------------


def candidates(case: DetectionCase, inputs: Any) -> torch.Tensor:
    """Count the candidates above the score threshold per image and class: ``[N, classes - 1]``."""
    above = inputs.logits.softmax(-1)[:, 1:] > 0.05
    return torch.stack([above[inputs.image_ids == i].sum(0) for i in range(case.images)])


def postprocess_detections(case: DetectionCase, code: Code) -> Work:
    """Model softmax, score, sort per class, suppress, sort of all, gather."""
    inputs = make_inputs(case)
    rois, classes = case.images * case.rois, case.classes - 1
    count = rois * classes
    score = code.loop("score_kernel<float>", "global_loads")
    most = float(candidates(case, inputs).max())
    instructions, latencies = _block_nms(most, most, code, "suppress_detections_kernel<float>")
    gather = code.loop("gather_detections_kernel<float>", "global_stores", "reciprocals")
    kernels = [
        Kernel(
            "score",
            count / 256,
            # Few candidates are above the threshold and decoded; the division of the index and the
            # stores are most of the rest.
            count / 32 * score.shortest,
            waits=True,
            hbm=4 * count * 3,
            l2=count * 32,  # by class: a sector for every value
            inner=score.shortest,
        ),
        Kernel(
            "suppress",
            1,
            instructions,
            waits=True,
            # A binary search for the end of the scores comes first.
            chain=latencies + 12 * L2_LATENCY,
        ),
        Kernel(
            "gather",
            case.images,
            8 * gather.instructions * 2,
            waits=True,
            chain=(18 + 6) * L2_LATENCY,
            inner=gather.instructions,
        ),
    ]
    calls = collections.Counter({"aten::empty": 8, "aten::_softmax": 1})
    calls[cuda_boxes.sort_calls(classes, rois)] += 1
    calls[cuda_boxes.sort_calls(1, count)] += 1
    moved = cuda_boxes.sort_bytes(count) + 2 * 12 * count + 8 * count
    return Work(kernels, calls, torch_bytes=moved)


def postprocess_detections_torchvision(case: DetectionCase, code: Code) -> Work:
    """Model operators of Python code, and batched_nms per image."""
    eager, syncs = code.torchvision_calls[case.name]
    inputs = make_inputs(case)
    found = int(candidates(case, inputs).sum() / case.images)
    kernels = [
        dataclasses.replace(kernel, launches=case.images)
        for kernel in cuda_boxes.nms_torchvision_kernels(found, found, code)
    ]
    boxes = case.images * case.rois * case.classes
    # Decoding and clipping of all boxes: some 40 passes over [R, K, 4].
    return Work(kernels, eager=eager, syncs=syncs, torch_bytes=40 * 16 * boxes, serial=True)


def compulsory_bytes(case: Case) -> float:
    """Return the bytes that have to be read at least once."""
    inputs = make_inputs(case)
    if isinstance(case, ProposalCase):
        # All logits, and deltas and anchors of the selected.
        selected = sum(min(TOP, logits[0].numel()) for logits in inputs.logits)
        return 4.0 * sum(m.numel() for m in inputs.logits) + 32.0 * selected * case.images
    return 4.0 * inputs.logits.numel()
