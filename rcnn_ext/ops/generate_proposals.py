"""Proposals from the maps of a region proposal network, a whole batch in one call.

CPU: ``csrc/generate_proposals/generate_proposals_cpu.cpp``, kernels in
``csrc/generate_proposals/generate_proposals_cpu-inl.h``.
CUDA: ``csrc/generate_proposals/generate_proposals_cuda.cu``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcnn_ext import reference
from rcnn_ext.ops._library import define_operator, detached
from rcnn_ext.ops._public import public_operator
from rcnn_ext.ops._rois import folded
from rcnn_ext.reference.box_coding import MAX_LOG_RATIO
from rcnn_ext.reference.generate_proposals import check_generate_proposals


class Proposals(NamedTuple):
    """Proposals of a batch, padded with zeros to the same number for each image.

    Attributes:
        boxes: ``[N, P, 4]`` (x1, y1, x2, y2), image pixels, by descending score.
        scores: ``[N, P]``, probabilities.
        counts: int64 ``[N]``, how many of an image's P are proposals.
    """

    boxes: Tensor
    scores: Tensor
    counts: Tensor


@public_operator
def generate_proposals(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    image_sizes: Tensor,
    *,
    pre_nms_top_n: int = 1000,
    post_nms_top_n: int = 1000,
    iou_threshold: float = 0.7,
    score_threshold: float = 0.0,
    min_size: float = 1e-3,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Proposals:
    """Turn the maps of a region proposal network into proposals.

    In each image the best ``pre_nms_top_n`` anchors of each level are decoded and clipped; boxes
    too small or of too low a score are dropped; suppression works within a level of an image; the
    best ``post_nms_top_n`` that remain are the proposals. The size of the result does not depend on
    the data, so nothing synchronizes with a GPU, and the call can be captured in a CUDA graph.

    Args:
        logits: ``[N, K_l, H_l, W_l]`` for each level l, from the head; float16, bfloat16,
            float32 or float64. Half types are computed in float32.
        deltas: ``[N, 4 K_l, H_l, W_l]`` (dx, dy, dw, dh) for each of K_l, same dtype.
        anchors: ``[A, 4]`` (x1, y1, x2, y2), image pixels, for all images, or ``[N, A, 4]``; by
            level, row, column and k. A is the sum of ``K_l * H_l * W_l``.
        image_sizes: ``[N, 2]`` (height, width), image pixels, on the device of the logits.
        pre_nms_top_n: Anchors of a level that are decoded. NaN counts as the highest logit, as in
            ``torch.topk``; no such box is a proposal.
        post_nms_top_n: Maximum number of proposals per image.
        iou_threshold: Boxes that overlap a better one of their level by more are dropped.
        score_threshold: Minimum probability, the sigmoid of the logit.
        min_size: Minimum width and height after clipping, in image pixels.
        weights: Factors that the deltas were multiplied by.
        means: Values that were subtracted from the deltas before that.
        max_log_ratio: dw and dh are clamped to this.

    Returns:
        :class:`Proposals` with P the smaller of ``post_nms_top_n`` and the number of anchors that
        go into suppression; float64 for float64 maps, else float32. Equal scores are in the order
        of level, logit and index of the anchor.

    Raises:
        RuntimeError: Wrong shape, dtype, device or option.

    Not differentiable: proposals are constants, as in approximate joint training.

    Replaces torchvision's ``RegionProposalNetwork.filter_proposals`` with the flattening and the
    decoding before it, with its boxes, scores and order.

    Example:
        >>> logits, deltas = torch.randn(1, 3, 8, 8), torch.randn(1, 12, 8, 8)
        >>> anchors = torch.tensor([[0.0, 0, 16, 16]]).repeat(192, 1)
        >>> proposals = generate_proposals([logits], [deltas], anchors, torch.tensor([[64, 64]]))
        >>> proposals.boxes[0, : proposals.counts[0]].shape[1]
        4
    """
    result = _generate_proposals(
        [detached(level) for level in logits],
        [detached(level) for level in deltas],
        detached(anchors),
        image_sizes,
        pre_nms_top_n,
        post_nms_top_n,
        iou_threshold,
        score_threshold,
        min_size,
        list(weights),
        list(means),
        max_log_ratio,
    )
    return Proposals(*result)


def _fake(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    image_sizes: Tensor,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    iou_threshold: float,
    score_threshold: float,
    min_size: float,
    weights: Sequence[float],
    means: Sequence[float],
    max_log_ratio: float,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = check_generate_proposals(
        logits, deltas, anchors, image_sizes, pre_nms_top_n, post_nms_top_n, weights, means
    )
    top = sum(torch.sym_min(pre_nms_top_n, size) for size in sizes)
    count = torch.sym_min(post_nms_top_n, top)
    images = logits[0].shape[0]
    dtype = torch.promote_types(logits[0].dtype, torch.float32)
    return (
        logits[0].new_empty(images, count, 4, dtype=dtype),
        logits[0].new_empty(images, count, dtype=dtype),
        logits[0].new_empty(images, dtype=torch.int64),
    )


def _vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    image_sizes: Tensor,
    *options: Any,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Take the images of all members of the batch in one call."""
    size, (logit_dims, delta_dims, anchors_dim, sizes_dim, *_) = info.batch_size, in_dims
    maps = [folded(m, dim, size) for m, dim in zip(logits, logit_dims, strict=True)]
    images = maps[0].shape[0] // size
    if anchors_dim is not None:
        anchors = anchors.movedim(anchors_dim, 0)
        if anchors.dim() == 3:  # [V, A, 4]: each member has its own for all of its images
            anchors = anchors[:, None].expand(-1, images, -1, -1)
        anchors = anchors.flatten(0, 1)  # [V * N, A, 4]
    elif anchors.dim() == 3:
        anchors = folded(anchors, None, size)
    results = _generate_proposals(
        maps,
        [folded(m, dim, size) for m, dim in zip(deltas, delta_dims, strict=True)],
        anchors,
        folded(image_sizes, sizes_dim, size),
        *options,
    )
    return tuple(r.unflatten(0, (size, images)) for r in results), (0, 0, 0)


_generate_proposals = define_operator(
    "generate_proposals",
    "(Tensor[] logits, Tensor[] deltas, Tensor anchors, Tensor image_sizes, int pre_nms_top_n, "
    "int post_nms_top_n, float iou_threshold, float score_threshold, float min_size, "
    "float[] weights, float[] means, float max_log_ratio) -> (Tensor, Tensor, Tensor)",
    reference=reference.generate_proposals,
    fake=_fake,
    vmap=_vmap,
)
