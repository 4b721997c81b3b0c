"""Proposals from the maps of a region proposal network, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rcnn_ext.reference.box_coding import clip, decode, has_min_size
from rcnn_ext.reference.checks import (
    check,
    check_box_coding,
    check_floating,
    check_image_sizes,
    check_positive,
    check_same_device,
    name_of,
)
from rcnn_ext.reference.nms import pad_per_image, per_image_nms


def check_generate_proposals(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    image_sizes: Tensor,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    weights: Sequence[float],
    means: Sequence[float],
) -> list[int]:
    """Expect one pyramid; return the number of anchors of each level."""
    op = "generate_proposals"
    check(
        len(logits) > 0 and len(logits) == len(deltas),
        f"{op}: expected logits and deltas of the same levels, at least one, "
        f"got {len(logits)} and {len(deltas)}",
    )
    check_positive(pre_nms_top_n, op, "pre_nms_top_n")
    check_positive(post_nms_top_n, op, "post_nms_top_n")
    check_box_coding(weights, means, op)
    first = logits[0]
    for level, (in_level, delta) in enumerate(zip(logits, deltas, strict=True)):
        check_floating(in_level, op, "logits")
        check(
            in_level.dim() == 4,
            f"{op}: expected logits[{level}] of shape [N, K, H, W], got {list(in_level.shape)}",
        )
        n, k, h, w = in_level.shape
        check(
            n == first.shape[0],
            f"{op}: expected logits[{level}] of {first.shape[0]} images, as the first, got {n}",
        )
        check(
            delta.shape == (n, 4 * k, h, w),
            f"{op}: expected deltas[{level}] of shape {[n, 4 * k, h, w]}, got {list(delta.shape)}",
        )
        check(
            in_level.dtype == first.dtype and delta.dtype == first.dtype,
            f"{op}: expected logits and deltas of one dtype, got {name_of(first.dtype)}, "
            f"{name_of(in_level.dtype)} and {name_of(delta.dtype)}",
        )
        check_same_device(in_level, first, op, "all levels of logits", "the first")
        check_same_device(delta, first, op, "deltas", "logits")
        check(
            k * h * w <= 2**30,
            f"{op}: expected at most 2^30 anchors in a level, got {k * h * w}",
        )
    sizes = [math.prod(in_level.shape[1:]) for in_level in logits]
    images, total = first.shape[0], sum(sizes)
    check_floating(anchors, op, "anchors")
    check(
        anchors.shape == (total, 4) or anchors.shape == (images, total, 4),
        f"{op}: expected anchors of shape {[total, 4]} or {[images, total, 4]}, "
        f"got {list(anchors.shape)}",
    )
    check_same_device(anchors, first, op, "anchors", "logits")
    check_image_sizes(image_sizes, first, op)
    check(
        image_sizes.shape[0] == images,
        f"{op}: expected image_sizes of {images} images, got {image_sizes.shape[0]}",
    )
    return sizes


def generate_proposals(
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
    """Select the best boxes of a region proposal network.

    Args:
        logits: ``[N, K_l, H_l, W_l]`` for each level l.
        deltas: ``[N, 4 K_l, H_l, W_l]`` for each level l.
        anchors: ``[A, 4]`` or ``[N, A, 4]``.
        image_sizes: ``[N, 2]`` (height, width).
        pre_nms_top_n: Best anchors of a level that are decoded.
        post_nms_top_n: Maximum number of proposals per image.
        iou_threshold: IoU above which the worse of two boxes of a level is dropped.
        score_threshold: Minimum probability.
        min_size: Minimum width and height after clipping, in image pixels.
        weights: Factors that the deltas were multiplied by.
        means: Values that were subtracted from the deltas before that.
        max_log_ratio: dw and dh are clamped to this.

    Returns:
        boxes ``[N, P, 4]``, scores ``[N, P]`` and counts ``[N]`` int64, padded with zeros.
    """
    check_generate_proposals(
        logits,
        deltas,
        anchors,
        image_sizes,
        pre_nms_top_n,
        post_nms_top_n,
        weights,
        means,
    )
    dtype = torch.promote_types(logits[0].dtype, torch.float32)
    images = logits[0].shape[0]
    anchors = anchors.to(dtype).expand(images, -1, 4)  # [N, A, 4]
    # [N, K, H, W] -> [N, H * W * K], [N, 4 K, H, W] -> [N, H * W * K, 4]
    flat_logits = [in_level.permute(0, 2, 3, 1).flatten(1).to(dtype) for in_level in logits]
    flat_deltas = [
        in_level.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3).to(dtype)
        if in_level.shape[1] > 0
        else in_level.new_empty(images, 0, 4, dtype=dtype)
        for in_level in deltas
    ]
    sizes = [in_level.shape[1] for in_level in flat_logits]
    firsts = [sum(sizes[:level]) for level in range(len(sizes))]
    tops = [
        in_level.sort(dim=1, descending=True, stable=True).indices[:, :pre_nms_top_n]
        for in_level in flat_logits
    ]
    top = torch.cat([t + first for t, first in zip(tops, firsts, strict=True)], dim=1)  # [N, T]
    levels = torch.cat([torch.full_like(t, level) for level, t in enumerate(tops)], dim=1)
    scores = torch.cat(flat_logits, dim=1).gather(1, top).sigmoid()  # [N, T]
    corners = top[..., None].expand(-1, -1, 4)
    boxes = decode(
        torch.cat(flat_deltas, dim=1).gather(1, corners),
        anchors.gather(1, corners),
        weights,
        means,
        max_log_ratio,
    )
    boxes = clip(boxes, image_sizes.to(dtype)[:, None])  # [N, T, 4]
    valid = has_min_size(boxes, min_size) & (scores >= score_threshold)
    image_ids = valid.nonzero()[:, 0]
    boxes, scores, levels = boxes[valid], scores[valid], levels[valid]
    num_proposals = min(post_nms_top_n, top.shape[1])
    kept, positions, counts = per_image_nms(
        boxes, scores, image_ids, levels, iou_threshold, images, num_proposals
    )
    padded = [pad_per_image(v[kept], positions, images, num_proposals) for v in (boxes, scores)]
    return padded[0], padded[1], counts
