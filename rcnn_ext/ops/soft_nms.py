"""Soft non-maximum suppression.

CPU: ``csrc/soft_nms/soft_nms_cpu.cpp``, kernels in ``csrc/soft_nms/soft_nms_cpu-inl.h``.
CUDA: ``csrc/soft_nms/soft_nms_cuda.cu``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rcnn_ext import reference
from rcnn_ext.ops._boxes import corners
from rcnn_ext.ops._library import define_operator, detached, refuse_vmap
from rcnn_ext.ops._public import public_operator
from rcnn_ext.ops.nms import _integers
from rcnn_ext.reference.nms import check_segments
from rcnn_ext.reference.soft_nms import GAUSSIAN, LINEAR, check_soft_nms

Method = Literal["linear", "gaussian"]

_METHODS = {"linear": LINEAR, "gaussian": GAUSSIAN}


@public_operator
def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    method: Method = "linear",
) -> tuple[Tensor, Tensor]:
    """Lower the scores of overlapping boxes instead of removing them (soft NMS).

    The box with the highest score is selected, and the score of every other box is multiplied by a
    weight that falls with its IoU with the selected one: ``1 - IoU`` from ``iou_threshold`` on
    (linear), or ``exp(-IoU^2 / sigma)`` (gaussian). This repeats with the lowered scores until no
    box is left; a box whose score falls below ``score_threshold`` is dropped. Boxes with NaN or
    infinite coordinates are dropped and lower no score.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), any unit; float16, bfloat16, float32 or float64.
        scores: ``[N]``, floating; those below ``score_threshold``, and NaN, are dropped.
            Computed in float64 where boxes or scores are, else in float32.
        iou_threshold: IoU from which on linear decay lowers scores; gaussian decay ignores it.
        sigma: Width of the gaussian decay, above 0; linear decay ignores it.
        score_threshold: Minimum score that a box may end with; at least 0.
        method: ``"linear"`` or ``"gaussian"``.

    Returns:
        int64 indices ``[K]`` and their lowered scores in the dtype of ``scores``, by
        falling lowered score, equal ones in order of index. No gradient flows through either.

    Raises:
        ValueError: Unknown method.
        RuntimeError: Wrong shape, dtype or device, or a number out of range.

    Source: Bodla, Singh, Chellappa and Davis, "Soft-NMS: Improving Object Detection With One Line
    of Code", ICCV 2017.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
        >>> soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]))
        (tensor([0, 2, 1]), tensor([0.9000, 0.7000, 0.4000]))
    """
    method_id = _method_id(method, "soft_nms")
    boxes, scores = detached(corners(boxes, "soft_nms")), detached(scores)
    return _soft_nms(boxes, scores, iou_threshold, sigma, score_threshold, method_id)


@public_operator
def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    method: Method = "linear",
) -> tuple[Tensor, Tensor]:
    """Lower the scores of overlapping boxes within each class, image or level (soft NMS).

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), any unit.
        scores: ``[N]``, floating.
        idxs: ``[N]``, the class of each box; any dtype. Boxes of different classes leave each
            other's scores alone.
        iou_threshold: As in :func:`soft_nms`.
        sigma: As in :func:`soft_nms`.
        score_threshold: As in :func:`soft_nms`.
        method: As in :func:`soft_nms`.

    Returns:
        As :func:`soft_nms`, by falling lowered score over all classes.

    Raises:
        ValueError: Unknown method.
        RuntimeError: Wrong shape, dtype or device, or a number out of range.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
        >>> batched_soft_nms(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]))
        (tensor([0, 1]), tensor([0.9000, 0.8000]))
    """
    method_id = _method_id(method, "batched_soft_nms")
    boxes, scores = detached(corners(boxes, "batched_soft_nms")), detached(scores)
    classes = _integers(idxs, "batched_soft_nms")
    return _batched_soft_nms(
        boxes, scores, classes, iou_threshold, sigma, score_threshold, method_id
    )


def _method_id(method: str, op: str) -> int:
    if method not in _METHODS:
        raise ValueError(f"{op}: expected method 'linear' or 'gaussian', got {method!r}")
    return _METHODS[method]


def _fake_results(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64), scores.new_empty(kept)


def _fake_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    method: int,
) -> tuple[Tensor, Tensor]:
    check_soft_nms(boxes, scores, iou_threshold, sigma, score_threshold, method, "soft_nms")
    return _fake_results(boxes, scores)


def _fake_batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    method: int,
) -> tuple[Tensor, Tensor]:
    op = "batched_soft_nms"
    check_soft_nms(boxes, scores, iou_threshold, sigma, score_threshold, method, op)
    check_segments(idxs, boxes, op)
    return _fake_results(boxes, scores)


_no_vmap = refuse_vmap(
    "soft_nms: vmap can't stack results of different sizes; "
    "flatten the batch and give batched_soft_nms the position in the batch as idxs"
)


_NUMBERS = "float iou_threshold, float sigma, float score_threshold, int method"

_soft_nms = define_operator(
    "soft_nms",
    f"(Tensor boxes, Tensor scores, {_NUMBERS}) -> (Tensor, Tensor)",
    reference=reference.soft_nms,
    fake=_fake_soft_nms,
    vmap=_no_vmap,
)
_batched_soft_nms = define_operator(
    "batched_soft_nms",
    f"(Tensor boxes, Tensor scores, Tensor idxs, {_NUMBERS}) -> (Tensor, Tensor)",
    reference=reference.batched_soft_nms,
    fake=_fake_batched_soft_nms,
    vmap=_no_vmap,
)
