"""Non-maximum suppression.

CPU: ``csrc/nms/nms_cpu.cpp``, kernels in ``csrc/nms/nms_cpu-inl.h``.
CUDA: ``csrc/nms/nms_cuda.cu``, kernels in
``csrc/nms/nms_chunk_cuda_kernels.cuh``, ``csrc/nms/nms_block_cuda_kernels.cuh`` and
``csrc/nms/nms_score_order_cuda_kernels.cuh``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rcnn_ext import reference
from rcnn_ext.ops._arguments import check_readable
from rcnn_ext.ops._boxes import corners
from rcnn_ext.ops._library import define_operator, refuse_vmap
from rcnn_ext.ops._public import public_operator
from rcnn_ext.reference.checks import name_of
from rcnn_ext.reference.nms import check_batched_nms, check_max_output, check_nms


@public_operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Suppress boxes that overlap a better one (greedy non-maximum suppression).

    Going through the boxes in order of score, a box is kept unless its IoU with a box kept before
    is above the threshold. Boxes with NaN or infinite coordinates are never kept and never suppress
    others.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), any unit; float16, bfloat16, float32 or float64. Half
            types are compared in float32.
        scores: ``[N]``, any dtype that sorts.
        iou_threshold: Between 0 and 1.

    Returns:
        int64 indices ``[K]`` in order of score, equal scores in order of index, on every
        device.

    Raises:
        RuntimeError: Wrong shape, dtype or device.

    Drop-in replacement for :func:`torchvision.ops.nms`, with exactly its indices for finite boxes.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
        >>> nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
        tensor([0, 2])
    """
    return _nms(corners(boxes, "nms"), scores, iou_threshold)


@public_operator
def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppress boxes within each class, image or level (non-maximum suppression).

    The classes are segments of one pass: no coordinate is offset, so a result does not depend on
    where other classes lie.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), any unit; float16, bfloat16, float32 or float64.
        scores: ``[N]``, any dtype that sorts.
        idxs: ``[N]``, the class of each box; any dtype. Boxes of different classes never suppress
            one another.
        iou_threshold: Between 0 and 1.

    Returns:
        int64 indices ``[K]`` in order of score over all classes, equal scores in order of
        index. Without boxes of whatever shape, also ``torch.tensor([])``, an empty one.

    Raises:
        RuntimeError: Wrong shape, dtype or device.

    Drop-in replacement for :func:`torchvision.ops.batched_nms`.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
        >>> batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), 0.5)
        tensor([0, 1])
    """
    shaped = boxes.dim() == 2 and boxes.shape[1] == 4
    if (not shaped or scores is None or idxs is None) and boxes.numel() == 0:
        # As torchvision, which looks at nothing else: `torch.tensor([])` is no boxes as well.
        return boxes.new_empty(0, dtype=torch.int64)
    idxs = _integers(idxs, "batched_nms")
    return _batched_nms(corners(boxes, "batched_nms"), scores, idxs, iou_threshold)


@public_operator
def nms_padded(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """Return the best ``max_output`` boxes that :func:`nms` keeps, in a result of fixed size.

    The size of the result does not depend on the data, so the CUDA kernel does not synchronize: the
    call can be captured in a CUDA graph, and is compiled and exported with static shapes. The
    reference, which other devices run, does synchronize.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), any unit; float16, bfloat16, float32 or float64.
        scores: ``[N]``, any dtype that sorts.
        iou_threshold: Between 0 and 1.
        max_output: Size of the result, 0 or more; may exceed N.

    Returns:
        int64 indices ``[max_output]``: those that :func:`nms` gives, as many as there is room for,
        then -1; and how many they are, int64 ``[]``. Both on the device of the boxes.

    Raises:
        RuntimeError: Wrong shape, dtype or device, or a negative ``max_output``.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
        >>> nms_padded(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5, max_output=4)
        (tensor([ 0,  2, -1, -1]), tensor(2))
    """
    boxes = corners(boxes, "nms_padded")
    return _nms_padded(boxes, scores, iou_threshold, max_output)


@public_operator
def batched_nms_padded(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """Return the best ``max_output`` boxes that :func:`batched_nms` keeps, as :func:`nms_padded`.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), any unit; float16, bfloat16, float32 or float64.
        scores: ``[N]``, any dtype that sorts.
        idxs: ``[N]``, the class of each box; any dtype.
        iou_threshold: Between 0 and 1.
        max_output: Size of the result, over all classes; 0 or more.

    Returns:
        int64 indices ``[max_output]``: those that :func:`batched_nms` gives, as many as there is
        room for, then -1; and how many they are, int64 ``[]``. Both on the device of the boxes.

    Raises:
        RuntimeError: Wrong shape, dtype or device, or a negative ``max_output``.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
        >>> idxs = torch.tensor([0, 1])
        >>> batched_nms_padded(boxes, torch.tensor([0.9, 0.8]), idxs, 0.5, max_output=3)
        (tensor([ 0,  1, -1]), tensor(2))
    """
    idxs = _integers(idxs, "batched_nms_padded")
    boxes = corners(boxes, "batched_nms_padded")
    return _batched_nms_padded(boxes, scores, idxs, iou_threshold, max_output)


# The integer dtype with as many bits as a floating dtype.
_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def _integers(idxs: Tensor, op: str, argument: str = "idxs") -> Tensor:
    """Return classes as int64 that are equal where the given ones are, whatever their dtype."""
    if idxs.dtype == torch.int64:
        return idxs
    check_readable(idxs, op, argument)
    if idxs.is_complex():
        raise RuntimeError(
            f"{op}: expected {argument} to be real numbers, got {name_of(idxs.dtype)}"
        )
    if idxs.is_floating_point():
        if idxs.dtype not in _BITS:
            idxs = idxs.to(torch.float32)  # the 8-bit types
        # The bits tell numbers apart exactly, but for the two zeros.
        idxs = torch.where(idxs == 0, 0, idxs).view(_BITS[idxs.dtype])
    return idxs.to(torch.int64)


def _fake_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    check_nms(boxes, scores, "nms")
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _fake_batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    check_batched_nms(boxes, scores, idxs)
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _fake_nms_padded(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    check_nms(boxes, scores, "nms_padded")
    return _fake_padded(boxes, max_output, "nms_padded")


def _fake_batched_nms_padded(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    check_batched_nms(boxes, scores, idxs, "batched_nms_padded")
    return _fake_padded(boxes, max_output, "batched_nms_padded")


def _fake_padded(boxes: Tensor, max_output: int, op: str) -> tuple[Tensor, Tensor]:
    check_max_output(max_output, op)
    indices = boxes.new_empty((max_output,), dtype=torch.int64)
    return indices, boxes.new_empty((), dtype=torch.int64)


def _vmap_padded(operator: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """Return a batching rule that calls the operator per member of the batch, without waiting."""

    def rule(
        info: Any, in_dims: tuple[int | None, ...], *args: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        results = [
            operator(
                *(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))
            )
            for i in range(info.batch_size)
        ]
        return tuple(map(torch.stack, zip(*results, strict=True))), (0, 0)

    return rule


_no_vmap = refuse_vmap(
    "nms: vmap can't stack results of different sizes; "
    "flatten the batch and give batched_nms the position in the batch as idxs, "
    "or take nms_padded"
)


_nms = define_operator(
    "nms",
    "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor",
    reference=reference.nms,
    fake=_fake_nms,
    vmap=_no_vmap,
)
_batched_nms = define_operator(
    "batched_nms",
    "(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor",
    reference=reference.batched_nms,
    fake=_fake_batched_nms,
    vmap=_no_vmap,
)
_nms_padded: Any = define_operator(
    "nms_padded",
    "(Tensor boxes, Tensor scores, float iou_threshold, SymInt max_output) -> (Tensor, Tensor)",
    reference=reference.nms_padded,
    fake=_fake_nms_padded,
    vmap=_vmap_padded(lambda *args: _nms_padded(*args)),
)
_batched_nms_padded: Any = define_operator(
    "batched_nms_padded",
    "(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold, SymInt max_output) "
    "-> (Tensor, Tensor)",
    reference=reference.batched_nms_padded,
    fake=_fake_batched_nms_padded,
    vmap=_vmap_padded(lambda *args: _batched_nms_padded(*args)),
)
