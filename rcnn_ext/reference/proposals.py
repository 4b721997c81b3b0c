"""Proposals and detections from the predictions of a detector, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rcnn_ext.reference.checks import check, check_floating, check_same_device, name_of
from rcnn_ext.reference.nms import batched_nms


def _check_decoding(weights: Sequence[float], means: Sequence[float], op: str) -> None:
    check(
        len(weights) == 4 and len(means) == 4,
        f"{op}: expected four weights and four means, got {len(weights)} and {len(means)}",
    )
    for weight in weights:
        check(weight > 0, f"{op}: expected positive weights, got {weight:g}")


def _check_most(most: int, op: str, argument: str) -> None:
    check(most > 0, f"{op}: expected a positive {argument}, got {most}")


def _check_image_sizes(image_sizes: Tensor, like: Tensor, op: str) -> None:
    check(
        image_sizes.dim() == 2 and image_sizes.shape[1] == 2,
        f"{op}: expected image_sizes of shape [N, 2] (height, width), "
        f"got {list(image_sizes.shape)}",
    )
    check(
        not image_sizes.is_complex(),
        f"{op}: expected image_sizes to be real numbers, got {name_of(image_sizes.dtype)}",
    )
    check_same_device(image_sizes, like, op, "image_sizes", "logits")


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
    """Expect one pyramid; give the number of anchors of each level."""
    op = "generate_proposals"
    check(
        len(logits) > 0 and len(logits) == len(deltas),
        f"{op}: expected logits and deltas of the same levels, at least one, "
        f"got {len(logits)} and {len(deltas)}",
    )
    _check_most(pre_nms_top_n, op, "pre_nms_top_n")
    _check_most(post_nms_top_n, op, "post_nms_top_n")
    _check_decoding(weights, means, op)
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
    sizes = [in_level.shape[1:].numel() for in_level in logits]
    images, total = first.shape[0], sum(sizes)
    check_floating(anchors, op, "anchors")
    check(
        anchors.shape == (total, 4) or anchors.shape == (images, total, 4),
        f"{op}: expected anchors of shape {[total, 4]} or {[images, total, 4]}, "
        f"got {list(anchors.shape)}",
    )
    check_same_device(anchors, first, op, "anchors", "logits")
    _check_image_sizes(image_sizes, first, op)
    check(
        image_sizes.shape[0] == images,
        f"{op}: expected image_sizes of {images} images, got {image_sizes.shape[0]}",
    )
    return sizes


def check_postprocess_detections(
    logits: Tensor,
    deltas: Tensor,
    rois: Tensor,
    image_ids: Tensor,
    image_sizes: Tensor,
    detections_per_image: int,
    weights: Sequence[float],
    means: Sequence[float],
) -> None:
    """Expect predictions of one set of RoIs."""
    op = "postprocess_detections"
    check_floating(logits, op, "logits")
    check(
        logits.dim() == 2 and logits.shape[1] > 0,
        f"{op}: expected logits of shape [R, K], got {list(logits.shape)}",
    )
    count, classes = logits.shape
    check(
        deltas.shape == (count, 4 * classes) or deltas.shape == (count, 4),
        f"{op}: expected deltas of shape {[count, 4 * classes]} or {[count, 4]}, "
        f"got {list(deltas.shape)}",
    )
    check(
        deltas.dtype == logits.dtype,
        f"{op}: expected logits and deltas of one dtype, got {name_of(logits.dtype)} "
        f"and {name_of(deltas.dtype)}",
    )
    check_floating(rois, op, "rois")
    check(
        rois.shape == (count, 4),
        f"{op}: expected rois of shape {[count, 4]}, got {list(rois.shape)}",
    )
    check(
        image_ids.shape == (count,),
        f"{op}: expected image_ids of shape {[count]}, got {list(image_ids.shape)}",
    )
    check(
        image_ids.dtype == torch.int64,
        f"{op}: expected image_ids to be int64, got {name_of(image_ids.dtype)}",
    )
    check_same_device(deltas, logits, op, "deltas", "logits")
    check_same_device(rois, logits, op, "rois", "logits")
    check_same_device(image_ids, logits, op, "image_ids", "logits")
    _check_image_sizes(image_sizes, logits, op)
    _check_most(detections_per_image, op, "detections_per_image")
    _check_decoding(weights, means, op)


def decode(
    deltas: Tensor,
    anchors: Tensor,
    weights: Sequence[float],
    means: Sequence[float],
    max_log_ratio: float,
) -> Tensor:
    """Boxes ``[..., 4]`` of deltas and anchors ``[..., 4]``.

    The counterpart of ``csrc/core/box_coding.h``, in its order of operations.
    """
    # As tensors: by a Python number, a GPU would multiply with the rounded inverse.
    weight = torch.tensor(weights, dtype=deltas.dtype, device=deltas.device)
    shifts = [mean * weight for mean, weight in zip(means, weights, strict=True)]
    shift = torch.tensor(shifts, dtype=deltas.dtype, device=deltas.device)
    changes = (deltas + shift) / weight
    sides = anchors[..., 2:] - anchors[..., :2]
    centres = changes[..., :2] * sides + (anchors[..., :2] + 0.5 * sides)
    ratios = changes[..., 2:].clamp(max=max_log_ratio).contiguous().exp()
    halves = 0.5 * (ratios * sides)
    return torch.cat([centres - halves, centres + halves], dim=-1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes ``[..., 4]`` clipped to images of ``[..., 2]`` (height, width); NaN stays NaN."""
    return torch.minimum(boxes.clamp(min=0), sizes[..., [1, 0, 1, 0]])


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
    """The best boxes of a region proposal network.

    Args:
        logits: ``[N, K_l, H_l, W_l]`` for each level l.
        deltas: ``[N, 4 K_l, H_l, W_l]`` for each level l.
        anchors: ``[A, 4]`` or ``[N, A, 4]``.
        image_sizes: ``[N, 2]`` (height, width).
        pre_nms_top_n: best anchors of a level that are decoded.
        post_nms_top_n: most proposals of an image.
        iou_threshold: of the suppression within a level.
        score_threshold: least probability.
        min_size: least side, image pixels.
        weights: of the deltas.
        means: of the deltas, before they are weighted.
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
    valid = _has_sides(boxes, min_size) & (scores >= score_threshold)
    image_ids = valid.nonzero()[:, 0]
    boxes, scores, levels = boxes[valid], scores[valid], levels[valid]
    most = min(post_nms_top_n, top.shape[1])
    kept, slots, counts = _best_of_images(
        boxes, scores, image_ids, levels, iou_threshold, images, most
    )
    padded = [_padded(v[kept], slots, images, most) for v in (boxes, scores)]
    return padded[0], padded[1], counts


def postprocess_detections(
    logits: Tensor,
    deltas: Tensor,
    rois: Tensor,
    image_ids: Tensor,
    image_sizes: Tensor,
    score_threshold: float,
    iou_threshold: float,
    detections_per_image: int,
    min_size: float,
    weights: Sequence[float],
    means: Sequence[float],
    max_log_ratio: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The best detections of each image.

    Args:
        logits: ``[R, K]``, background first.
        deltas: ``[R, 4 K]``, or ``[R, 4]`` for class-agnostic boxes.
        rois: ``[R, 4]``.
        image_ids: ``[R]`` int64; RoIs of no image of the batch are left out.
        image_sizes: ``[N, 2]`` (height, width).
        score_threshold: a probability has to be above it.
        iou_threshold: of the suppression within a class.
        detections_per_image: most detections of an image.
        min_size: least side, image pixels.
        weights: of the deltas.
        means: of the deltas, before they are weighted.
        max_log_ratio: dw and dh are clamped to this.

    Returns:
        boxes ``[N, D, 4]``, scores ``[N, D]``, labels ``[N, D]``, RoIs ``[N, D]`` and counts
        ``[N]``, the last three int64; padded with zeros.
    """
    check_postprocess_detections(
        logits,
        deltas,
        rois,
        image_ids,
        image_sizes,
        detections_per_image,
        weights,
        means,
    )
    dtype = torch.promote_types(logits.dtype, torch.float32)
    images, (count, classes) = image_sizes.shape[0], logits.shape
    probabilities = logits.to(dtype).softmax(dim=1)[:, 1:]  # [R, K - 1]
    in_batch = (image_ids >= 0) & (image_ids < images)
    above = (probabilities > score_threshold) & in_batch[:, None]
    roi_ids, labels = above.nonzero(as_tuple=True)  # [M]
    scores, labels = probabilities[roi_ids, labels], labels + 1
    per_class = deltas.to(dtype).reshape(count, deltas.shape[1] // 4, 4)
    box_of = labels if deltas.shape[1] == 4 * classes else torch.zeros_like(labels)
    boxes = decode(
        per_class[roi_ids, box_of], rois.to(dtype)[roi_ids], weights, means, max_log_ratio
    )
    boxes = clip(boxes, image_sizes.to(dtype)[image_ids[roi_ids]])  # [M, 4]
    valid = _has_sides(boxes, min_size)
    boxes, scores, labels, roi_ids = (v[valid] for v in (boxes, scores, labels, roi_ids))
    size = min(detections_per_image, count * (classes - 1))
    kept, slots, counts = _best_of_images(
        boxes, scores, image_ids[roi_ids], labels, iou_threshold, images, size
    )
    padded = [_padded(v[kept], slots, images, size) for v in (boxes, scores, labels, roi_ids)]
    return padded[0], padded[1], padded[2], padded[3], counts


def _has_sides(boxes: Tensor, min_size: float) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2] >= min_size).all(dim=-1)


def _best_of_images(
    boxes: Tensor,
    scores: Tensor,
    image_ids: Tensor,
    groups: Tensor,
    iou_threshold: float,
    images: int,
    most: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """What suppression within each (image, group) keeps, the best ``most`` of each image.

    Returns:
        indices ``[K]`` into the boxes, their places ``[K]`` in a result ``[images * most]``, and
        the number of each image ``[images]``.
    """
    if boxes.shape[0] == 0:
        nothing = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return nothing, nothing, nothing.new_zeros(images)
    kept = batched_nms(boxes, scores, image_ids * (groups.max() + 1) + groups, iou_threshold)
    kept = kept[image_ids[kept].sort(stable=True).indices]  # by image, then by score
    of_image = torch.bincount(image_ids[kept], minlength=images)
    firsts = of_image.cumsum(0) - of_image
    place = torch.arange(kept.shape[0], device=kept.device) - firsts[image_ids[kept]]
    kept, place = kept[place < most], place[place < most]
    return kept, image_ids[kept] * most + place, of_image.clamp(max=most)


def _padded(values: Tensor, slots: Tensor, images: int, most: int) -> Tensor:
    result = values.new_zeros(images * most, *values.shape[1:])
    result[slots] = values
    return result.view(images, most, *values.shape[1:])
