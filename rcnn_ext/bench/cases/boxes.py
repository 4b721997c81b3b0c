"""Cases of the IoU family."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from rcnn_ext.bench import inputs as draw
from rcnn_ext.bench.cases.base import Call, Case, Check, double_reference, worst_error

_ROWS_AT_A_TIME = 10_000


@dataclasses.dataclass(frozen=True)
class IouInputs:
    """Two sets of boxes and a gradient for their IoU matrix."""

    boxes1: Tensor  # [N, 4] (x1, y1, x2, y2), image pixels
    boxes2: Tensor  # [M, 4] (x1, y1, x2, y2), image pixels
    gradient: Tensor | None  # [N, M]; None for the forward cases


@dataclasses.dataclass(frozen=True)
class IouCase(Case):
    """An IoU matrix, or that and its gradient with respect to both sets of boxes.

    Attributes:
        rows: Number of boxes in the first set.
        columns: Number of boxes in the second set.
        backward: Whether the gradient belongs to the work.
    """

    rows: int = 0
    columns: int = 0
    backward: bool = False

    @property
    def name(self) -> str:
        """Operator and size."""
        return f"{self.operator}/{self.rows}x{self.columns}" + ("/fwd+bwd" if self.backward else "")

    @property
    def work(self) -> str:
        """Short description of the work."""
        passes = ", forward + backward" if self.backward else ""
        return f"{self.rows:,} x {self.columns:,} boxes{passes}"

    @property
    def has_counterpart(self) -> bool:
        """Whether torchvision has the measure, as it has those of IoU."""
        return self.operator != "box_ios"

    @property
    def differentiates(self) -> bool:
        """Whether the timed call runs autograd."""
        return self.backward

    def make(self, seed: int, device: torch.device, dtype: torch.dtype) -> IouInputs:
        """Draw two sets of boxes and, for a backward case, a gradient."""
        random = draw.generator(seed)
        boxes1 = draw.random_boxes(self.rows, random).to(device, dtype)
        boxes2 = draw.random_boxes(self.columns, random).to(device, dtype)
        gradient = None
        if self.backward:
            # The IoU of half-precision boxes is float32, as torchvision's is.
            gradient_dtype = torch.promote_types(dtype, torch.float32)
            gradient = torch.randn(self.rows, self.columns, generator=random)
            gradient = gradient.to(device, gradient_dtype)
        return IouInputs(boxes1, boxes2, gradient)

    def bind(self, ops: Any, inputs: IouInputs) -> Call:
        """Return the call of the IoU function, with its backward where that belongs to the work."""
        function = getattr(ops, self.operator)
        boxes1, boxes2, gradient = inputs.boxes1, inputs.boxes2, inputs.gradient
        if gradient is None:
            return lambda: function(boxes1, boxes2)
        boxes1 = boxes1.detach().requires_grad_()
        boxes2 = boxes2.detach().requires_grad_()
        return lambda: torch.autograd.grad(function(boxes1, boxes2), (boxes1, boxes2), gradient)

    def check(self, inputs: IouInputs) -> Check:
        """Compute matrix or gradients with the float64 reference."""
        boxes1, boxes2 = inputs.boxes1.double(), inputs.boxes2.double()
        with double_reference() as ops:
            if inputs.gradient is not None:
                exact = IouInputs(boxes1, boxes2, inputs.gradient.double())
                truths = self.bind(ops, exact)()
            else:
                # In parts: the reference holds some ten matrices on the way.
                parts = boxes1.split(_ROWS_AT_A_TIME)
                calls = [self.bind(ops, IouInputs(part, boxes2, None)) for part in parts]
                truths = (torch.cat([call() for call in calls]),)
        return lambda result: worst_error(result, truths)
