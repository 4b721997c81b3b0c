"""The operators as leaves of torch.fx.symbolic_trace."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rcnn_ext import ops
from tests.helpers.samples import make_boxes, make_scores


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.align = ops.RoIAlign(3, 0.5, 2, aligned=True)

    def forward(self, x: Tensor, boxes: Tensor, scores: Tensor, idxs: Tensor) -> list[Tensor]:
        return [
            self.align(x, [boxes]),
            ops.roi_pool(x, [boxes], (3, 3), spatial_scale=0.5),
            ops.multiscale_roi_align([x, x[:, :, ::2, ::2]], [boxes], 2, [1 / 2, 1 / 4]),
            ops.nms(boxes, scores, 0.5),
            ops.batched_nms(boxes, scores, idxs, 0.5),
            ops.nms_padded(boxes, scores, 0.5, 4)[0],
            ops.box_iou(boxes, boxes, fmt="xywh"),
            ops.generalized_box_iou(boxes, boxes),
        ]


def test_symbolic_trace_keeps_the_operators() -> None:
    traced = torch.fx.symbolic_trace(_Head())
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    for operator in (ops.roi_align, ops.roi_pool, ops.nms, ops.batched_nms, ops.box_iou):
        assert targets.count(operator) == 1
    inputs = torch.rand(1, 2, 32, 32), make_boxes(20), make_scores(20), torch.arange(20) % 3
    for result, expected in zip(traced(*inputs), _Head()(*inputs), strict=True):
        assert torch.equal(result, expected)
