"""Cases of greedy non-maximum merging, which torchvision does not have."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor

from rcnn_ext.bench.cases.base import TOLERANCES, Call, Check, double_reference
from rcnn_ext.bench.cases.suppression import NmsInputs, OneClassCase


@dataclasses.dataclass(frozen=True)
class MergingCase(OneClassCase):
    """Merging of boxes of one class.

    Attributes:
        count: Number of boxes.
        metric: ``iou`` or ``ios``.
    """

    metric: str = "iou"

    @property
    def name(self) -> str:
        """Operator, size and metric."""
        return f"{self.operator}/{self.count}/{self.metric}"

    @property
    def work(self) -> str:
        """Short description of the work."""
        return f"{self.count:,} boxes, {'IoU' if self.metric == 'iou' else 'IoS'} 0.5"

    def bind(self, ops: Any, inputs: NmsInputs) -> Call:
        """Return the call of ``non_max_merging``: the boxes, their indices and the groups."""
        boxes, scores, metric = inputs.boxes, inputs.scores, self.metric
        function = ops.non_max_merging

        def call() -> tuple[Tensor, Tensor, Tensor]:
            merged = function(boxes, scores, metric=metric)
            return merged.boxes, merged.indices, merged.groups

        return call

    @property
    def measure(self) -> str:
        """Name of the error measure."""
        return "fraction of boxes merged differently"

    def check(self, inputs: NmsInputs) -> Check:
        """Run the reference in float64."""
        allowed = TOLERANCES[inputs.boxes.dtype]
        exact = dataclasses.replace(inputs, boxes=inputs.boxes.double())
        with double_reference() as ops:
            true_boxes, true_indices, true_groups = self.bind(ops, exact)()

        def check(result: tuple[Tensor, Tensor, Tensor]) -> float:
            boxes, indices, groups = result
            if groups.shape != true_groups.shape or len(boxes) != len(indices):
                return math.inf
            if len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < len(boxes):
                return math.inf
            # A box is right with the best box of its group and the extent of what became of it.
            extent, wanted = boxes[groups].double(), true_boxes[true_groups]
            right = indices[groups] == true_indices[true_groups]
            right &= ((extent - wanted).abs() <= allowed * (1 + wanted.abs())).all(dim=1)
            return 1 - right.double().mean().item()

        return check
