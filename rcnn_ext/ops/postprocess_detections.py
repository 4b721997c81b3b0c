"""Detections from the predictions of a detector's second stage, a whole batch in one call.

CPU: ``csrc/postprocess_detections/postprocess_detections_cpu.cpp``, kernels in
``csrc/postprocess_detections/postprocess_detections_cpu-inl.h``.
CUDA: ``csrc/postprocess_detections/postprocess_detections_cuda.cu``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rcnn_ext import reference
from rcnn_ext.ops._library import define_operator, detached
from rcnn_ext.ops._public import public_operator
from rcnn_ext.ops._rois import folded
from rcnn_ext.reference.box_coding import MAX_LOG_RATIO, clip, decode
from rcnn_ext.reference.postprocess_detections import check_postprocess_detections


class Detections(NamedTuple):
    """Detections of a batch, padded with zeros to the same number for each image.

    Attributes:
        boxes: ``[N, D, 4]`` (x1, y1, x2, y2), image pixels, by descending score.
        scores: ``[N, D]``, probabilities.
        labels: int64 ``[N, D]``, classes from 1.
        roi_ids: int64 ``[N, D]``, the RoI that each was predicted from.
        counts: int64 ``[N]``, how many of an image's D are detections.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    roi_ids: Tensor
    counts: Tensor


@public_operator
def postprocess_detections(
    logits: Tensor,
    deltas: Tensor,
    rois: Tensor,
    image_ids: Tensor,
    image_sizes: Tensor,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    detections_per_image: int = 100,
    min_size: float = 1e-2,
    weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Detections:
    """Turn the predictions of a detector's second stage into detections.

    Every class but the background (class 0) of a RoI whose softmax is above the threshold is
    decoded and clipped; boxes too small are dropped; suppression works within a class of an image;
    the best ``detections_per_image`` over all classes remain. The size of the result does not
    depend on the data, so nothing synchronizes with a GPU, and the call can be captured in a CUDA
    graph.

    Args:
        logits: ``[R, K]``, background first; float16, bfloat16, float32 or float64. Half types are
            computed in float32.
        deltas: ``[R, 4 K]`` (dx, dy, dw, dh) for each class, or ``[R, 4]`` for class-agnostic
            boxes; same dtype.
        rois: ``[R, 4]`` (x1, y1, x2, y2), image pixels.
        image_ids: int64 ``[R]``, the image of each RoI, in any order. A RoI of no image of the
            batch, such as -1 for padding, is left out.
        image_sizes: ``[N, 2]`` (height, width), image pixels, on the device of the logits.
        score_threshold: A probability has to be above it.
        iou_threshold: Boxes that overlap a better one of their class by more are dropped.
        detections_per_image: Maximum number of detections per image.
        min_size: Minimum width and height after clipping, in image pixels.
        weights: Factors that the deltas were multiplied by.
        means: Values that were subtracted from the deltas before that.
        max_log_ratio: dw and dh are clamped to this.

    Returns:
        :class:`Detections` with D the smaller of ``detections_per_image`` and ``R * (K - 1)``;
        float64 for float64 logits, else float32. Equal scores are in the order of RoI and class.

    Raises:
        RuntimeError: Wrong shape, dtype, device or option.

    Boxes and scores have derivatives with respect to logits, deltas and RoIs, in reverse and in
    forward mode.

    Replaces torchvision's ``RoIHeads.postprocess_detections``, with its boxes, scores, labels and
    order.

    Example:
        >>> rois = torch.tensor([[0.0, 0, 8, 8], [8, 8, 16, 16]])
        >>> logits = torch.tensor([[0.0, 4.0], [3.0, 0.0]])
        >>> found = postprocess_detections(
        ...     logits, torch.zeros(2, 8), rois, torch.tensor([0, 0]), torch.tensor([[16, 16]])
        ... )
        >>> found.counts.tolist(), found.boxes[0, 0].tolist(), found.labels[0, 0].item()
        ([1], [0.0, 0.0, 8.0, 8.0], 1)
    """
    inputs = (logits, deltas, rois)
    result = Detections(
        *_postprocess_detections(
            *map(detached, inputs),
            image_ids,
            image_sizes,
            score_threshold,
            iou_threshold,
            detections_per_image,
            min_size,
            list(weights),
            list(means),
            max_log_ratio,
        )
    )
    backward = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    forward = not torch.compiler.is_compiling() and forward_ad._current_level >= 0
    if not (backward or forward):
        return result
    return _differentiable(
        result, logits, deltas, rois, image_ids, image_sizes, weights, means, max_log_ratio
    )


def _differentiable(
    found: Detections,
    logits: Tensor,
    deltas: Tensor,
    rois: Tensor,
    image_ids: Tensor,
    image_sizes: Tensor,
    weights: Sequence[float],
    means: Sequence[float],
    max_log_ratio: float,
) -> Detections:
    """Compute the detections again from their RoIs and labels, with derivatives."""
    size = found.labels.shape[1]
    real = torch.arange(size, device=found.labels.device) < found.counts[:, None]  # [N, D]
    if size == 0:
        return found
    dtype = found.boxes.dtype
    ids, labels = found.roi_ids, found.labels
    scores = logits[ids].to(dtype).softmax(dim=-1)  # [N, D, K]
    scores = scores.gather(2, labels[..., None])[..., 0]
    per_class = deltas.unflatten(1, (-1, 4))  # [R, K or 1, 4]
    box_of = labels if deltas.shape[1] == 4 * logits.shape[1] else torch.zeros_like(labels)
    boxes = decode(
        per_class[ids, box_of].to(dtype), rois[ids].to(dtype), weights, means, max_log_ratio
    )
    boxes = clip(boxes, image_sizes.to(dtype)[:, None])
    # torch.where, and not a product: nothing that is NaN in the padding reaches a gradient's value.
    return found._replace(
        boxes=torch.where(real[..., None], boxes, 0.0), scores=torch.where(real, scores, 0.0)
    )


def _fake(
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
    check_postprocess_detections(
        logits, deltas, rois, image_ids, image_sizes, detections_per_image, weights, means
    )
    images = image_sizes.shape[0]
    count = torch.sym_min(detections_per_image, logits.shape[0] * (logits.shape[1] - 1))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return (
        logits.new_empty(images, count, 4, dtype=dtype),
        logits.new_empty(images, count, dtype=dtype),
        logits.new_empty(images, count, dtype=torch.int64),
        logits.new_empty(images, count, dtype=torch.int64),
        logits.new_empty(images, dtype=torch.int64),
    )


def _vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    logits: Tensor,
    deltas: Tensor,
    rois: Tensor,
    image_ids: Tensor,
    image_sizes: Tensor,
    score_threshold: float,
    iou_threshold: float,
    detections_per_image: int,
    *options: Any,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Take the images of all members of the batch in one call."""
    size = info.batch_size
    logits, deltas, rois, ids, image_sizes = (
        folded(tensor, dim, size)
        for tensor, dim in zip(
            (logits, deltas, rois, image_ids, image_sizes), in_dims[:5], strict=True
        )
    )
    count, images = logits.shape[0] // size, image_sizes.shape[0] // size
    members = torch.arange(size, device=ids.device).repeat_interleave(count)  # [V * R]
    # An id of no image stays that, instead of reaching into another member.
    ids = torch.where((ids >= 0) & (ids < images), ids + images * members, -1)
    results = _postprocess_detections(
        logits,
        deltas,
        rois,
        ids,
        image_sizes,
        score_threshold,
        iou_threshold,
        detections_per_image,
        *options,
    )
    boxes, scores, labels, roi_ids, counts = (r.unflatten(0, (size, images)) for r in results)
    # There is room for as many as the RoIs of all members allow, which no image has.
    room = min(detections_per_image, count * (logits.shape[1] - 1))
    boxes, scores, labels, roi_ids = (
        padded[:, :, :room] for padded in (boxes, scores, labels, roi_ids)
    )
    firsts = count * torch.arange(size, device=ids.device)[:, None, None]
    real = torch.arange(room, device=ids.device) < counts[..., None]  # [V, N, D]
    roi_ids = torch.where(real, roi_ids - firsts, 0)
    return (boxes, scores, labels, roi_ids, counts), (0,) * 5


_postprocess_detections = define_operator(
    "postprocess_detections",
    "(Tensor logits, Tensor deltas, Tensor rois, Tensor image_ids, Tensor image_sizes, "
    "float score_threshold, float iou_threshold, int detections_per_image, float min_size, "
    "float[] weights, float[] means, float max_log_ratio) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.postprocess_detections,
    fake=_fake,
    vmap=_vmap,
)
