"""Greedy non-maximum merging.

CPU: ``csrc/non_max_merging/non_max_merging_cpu.cpp``, kernels in
``csrc/non_max_merging/non_max_merging_cpu-inl.h``.
CUDA: ``csrc/non_max_merging/non_max_merging_cuda.cu``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rcnn_ext import reference
from rcnn_ext.ops._arguments import check_readable
from rcnn_ext.ops._boxes import corners
from rcnn_ext.ops._library import define_operator, detached, refuse_vmap
from rcnn_ext.ops._public import public_operator
from rcnn_ext.ops.nms import _integers
from rcnn_ext.reference.checks import check_boxes, check_per_box
from rcnn_ext.reference.non_max_merging import check_non_max_merging

Metric = Literal["iou", "ios"]

_METRICS = {"iou": 0, "ios": 1}


class MergedBoxes(NamedTuple):
    """Boxes that :func:`non_max_merging` made of N, by falling score, equal ones by index.

    Attributes:
        boxes: ``[K, 4]`` (x1, y1, x2, y2), in the unit and the dtype of the input.
        scores: ``[K]``, the highest score of each group, in the dtype of the input.
        labels: ``[K]``, the label of the box with that score; None without labels.
        indices: int64 ``[K]``, the index of that box among the N. ``idxs[indices]`` is the image of
            each result.
        groups: int64 ``[N]``, the result that each box went into: a number below K, or -1 for a box
            with NaN or infinite coordinates.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor | None
    indices: Tensor
    groups: Tensor


@public_operator
def non_max_merging(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    threshold: float = 0.5,
    metric: Metric = "iou",
    class_agnostic: bool = False,
    idxs: Tensor | None = None,
) -> MergedBoxes:
    """Merge overlapping boxes instead of removing all but one (greedy NMM).

    For detections in the tiles of a large image, where an object on a border is found in parts:
    NMS would keep one part, merging keeps the extent of all. By falling score, each box that no
    better box has claimed claims all remaining boxes whose overlap with it is at least
    ``threshold``. Then it grows, by the claimed boxes in order of score, to the extent of both,
    whenever their overlap is at least ``threshold`` for the box as it has grown so far; a claimed
    box that no longer matches leaves the box as it is and still belongs to its group. This is the
    rule of SAHI's ``GreedyNMMPostprocess``, but that equal scores count in order of index.

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), any unit; float16, bfloat16, float32 or float64.
            Inverted and empty boxes have no overlap with others and stay; those with NaN or
            infinite coordinates are dropped.
        scores: ``[N]``, any dtype that sorts; NaN counts as the highest score.
        labels: ``[N]``, the class of each box, any dtype; boxes of different classes don't merge
            unless ``class_agnostic``. None for one class.
        threshold: Overlap from which on two boxes match; all boxes of a class match at 0.
        metric: ``"iou"``, or ``"ios"`` for the intersection over the smaller of the two areas
            (:func:`box_ios`), which finds the parts of an object in the whole.
        class_agnostic: Merge boxes of different classes, too; the label of the best one remains.
        idxs: ``[N]``, the image of each box in a batch, any dtype; boxes of different images never
            merge. None for one image.

    Returns:
        Merged boxes, scores, labels, indices and groups. No gradient flows through them.

    Raises:
        ValueError: Unknown metric.
        RuntimeError: Wrong shape, dtype or device, or a threshold of NaN.

    Source: Akyon, Altinuc and Temizel, "Slicing Aided Hyper Inference and Fine-tuning for Small
    Object Detection", ICIP 2022.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [40, 0, 50, 10]])
        >>> merged = non_max_merging(boxes, torch.tensor([0.9, 0.8, 0.7]), threshold=0.4)
        >>> merged.boxes, merged.groups
        (tensor([[ 0.,  0., 14., 10.],
                [40.,  0., 50., 10.]]), tensor([0, 0, 1]))
    """
    op = "non_max_merging"
    if metric not in _METRICS:
        raise ValueError(f"{op}: expected metric 'iou' or 'ios', got {metric!r}")
    boxes = corners(boxes, op)
    check_boxes(boxes, op)
    for name, values in (("labels", labels), ("idxs", idxs)):
        if values is not None:
            check_per_box(values, boxes, op, name)
            check_readable(values, op, name)
    parts = [] if class_agnostic or labels is None else [_integers(labels, op, "labels")]
    parts += [] if idxs is None else [_integers(idxs, op)]
    boxes, scores = detached(boxes), detached(scores)
    merged, indices, groups = _non_max_merging(
        boxes, scores, _segments(parts, boxes), threshold, _METRICS[metric]
    )
    kept_labels = None if labels is None else detached(labels)[indices]
    return MergedBoxes(merged, scores[indices], kept_labels, indices, groups)


def _segments(parts: list[Tensor], boxes: Tensor) -> Tensor:
    """Return int64 ``[N]``, equal where all of the parts are."""
    if not parts:
        return torch.zeros(boxes.shape[:1], dtype=torch.int64, device=boxes.device)
    if len(parts) == 1:
        return parts[0]
    # By ranks, so that the product of two counts can't overflow.
    labels, idxs = (part.unique(return_inverse=True)[1] for part in parts)
    return labels * len(idxs) + idxs


def _fake(
    boxes: Tensor, scores: Tensor, idxs: Tensor, threshold: float, metric: int
) -> tuple[Tensor, Tensor, Tensor]:
    check_non_max_merging(boxes, scores, idxs, threshold, metric)
    kept = torch.library.get_ctx().new_dynamic_size()
    return (
        boxes.new_empty(kept, 4),
        boxes.new_empty(kept, dtype=torch.int64),
        boxes.new_empty(boxes.shape[0], dtype=torch.int64),
    )


_non_max_merging = define_operator(
    "non_max_merging",
    "(Tensor boxes, Tensor scores, Tensor idxs, float threshold, int metric) "
    "-> (Tensor, Tensor, Tensor)",
    reference=reference.non_max_merging,
    fake=_fake,
    vmap=refuse_vmap(
        "non_max_merging: vmap can't stack results of different sizes; "
        "flatten the batch and give the position in the batch as idxs"
    ),
)
