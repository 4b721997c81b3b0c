"""A small call of each operator, for tests of what all of them do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.samples import make_boxes, make_rois, make_scores


@dataclass(frozen=True)
class OperatorCall:
    """A call of an operator by its public function.

    Attributes:
        public: The function; it is what a traced graph names.
        function: The call, with options, of tensors.
        args: Tensors for the call, in float32 where they float.
    """

    public: Callable[..., Any]
    function: Callable[..., Any]
    args: tuple[Tensor, ...]


def operator_calls() -> dict[str, OperatorCall]:
    """Return a call by name of each operator that is no gradient and writes to no argument."""
    torch.manual_seed(0)
    # No two coordinates equal, where derivatives are one-sided.
    boxes, other = make_boxes(12) + torch.rand(12, 4) / 8, make_boxes(5, seed=1)
    scores, ids = make_scores(12), torch.arange(12) % 3
    maps, rois = torch.rand(2, 4, 16, 16), make_rois(5, 2, size=60)
    logits, deltas = torch.randn(12, 3), torch.randn(12, 12)
    sizes, anchors = torch.tensor([[64, 60], [50, 64], [64, 64]]), make_boxes(192)
    weight = torch.rand(8, 16, 3, 3)
    packed = ops.conv_winograd.pack(weight)
    conv = ops.conv_winograd.conv
    return {
        "nms": OperatorCall(ops.nms, lambda b, s: ops.nms(b, s, 0.4), (boxes, scores)),
        "batched_nms": OperatorCall(
            ops.batched_nms, lambda b, s, i: ops.batched_nms(b, s, i, 0.4), (boxes, scores, ids)
        ),
        "nms_padded": OperatorCall(
            ops.nms_padded, lambda b, s: ops.nms_padded(b, s, 0.4, 7), (boxes, scores)
        ),
        "batched_nms_padded": OperatorCall(
            ops.batched_nms_padded,
            lambda b, s, i: ops.batched_nms_padded(b, s, i, 0.4, 7),
            (boxes, scores, ids),
        ),
        "soft_nms": OperatorCall(ops.soft_nms, lambda b, s: ops.soft_nms(b, s), (boxes, scores)),
        "batched_soft_nms": OperatorCall(
            ops.batched_soft_nms,
            lambda b, s, i: ops.batched_soft_nms(b, s, i),
            (boxes, scores, ids),
        ),
        "non_max_merging": OperatorCall(
            ops.non_max_merging,
            lambda b, s: ops.non_max_merging(b, s, threshold=0.4)[:2],
            (boxes, scores),
        ),
        "box_iou": OperatorCall(ops.box_iou, lambda a, b: ops.box_iou(a, b), (boxes, other)),
        "match_boxes": OperatorCall(
            ops.match_boxes, lambda g, b: ops.match_boxes(g, b, 0.5, 0.3), (other, boxes)
        ),
        "roi_align": OperatorCall(
            ops.roi_align, lambda x, r: ops.roi_align(x, r, 2, 0.25, 2), (maps, rois)
        ),
        "roi_pool": OperatorCall(
            ops.roi_pool, lambda x, r: ops.roi_pool(x, r, 2, 0.25), (maps, rois)
        ),
        "multiscale_roi_align": OperatorCall(
            ops.multiscale_roi_align,
            lambda x, r: ops.multiscale_roi_align(
                [x, x[:, :, ::2, ::2]], r, 2, [1 / 4, 1 / 8], 2, canonical_scale=60.0
            ),
            (maps, rois),
        ),
        "generate_proposals": OperatorCall(
            ops.generate_proposals,
            lambda x, d, a, s: ops.generate_proposals([x], [d], a, s, post_nms_top_n=9),
            (torch.randn(3, 3, 8, 8), torch.randn(3, 12, 8, 8), anchors, sizes),
        ),
        "postprocess_detections": OperatorCall(
            ops.postprocess_detections,
            lambda x, d, r, i, s: ops.postprocess_detections(x, d, r, i, s),
            (logits, deltas, boxes, ids, sizes),
        ),
        "conv3x3_winograd": OperatorCall(
            conv, lambda x, p: conv(x, p, None, out_channels=8), (torch.rand(2, 16, 8, 8), packed)
        ),
    }
