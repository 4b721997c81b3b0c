"""Cases of NMS, hard and soft, and the check that kept boxes are what greedy suppression gives."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from rcnn_ext.bench import inputs as draw
from rcnn_ext.bench.cases.base import TOLERANCES, Call, Case, Check, double_reference

# An IoU this near the threshold may be decided either way: a decision that hangs on rounding is not
# wrong. Float32 areas round at 6e-8 of their value; half boxes at their own precision.
_BANDS = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 5e-2,
}
# torchvision's batched_nms moves each class to coordinates of its own, up to 80 * 1,500 pixels,
# where float32 has steps of 1/128 pixel; on a box of 8 pixels that shifts the IoU by some 1e-3.
_OFFSET_BAND = 1e-2
# Boxes whose overlaps are computed at a time.
_BOXES_AT_A_TIME = 128


@dataclasses.dataclass(frozen=True)
class NmsInputs:
    """Scored boxes, with classes for the batched form."""

    boxes: Tensor  # [N, 4] (x1, y1, x2, y2), image pixels
    scores: Tensor  # [N]
    classes: Tensor | None  # [N] int64; None for plain NMS


@dataclasses.dataclass(frozen=True)
class NmsCase(Case):
    """Plain or class-wise NMS.

    Attributes:
        count: Number of boxes.
        classes: Number of classes; 0 for plain NMS.
        threshold: IoU above which the lower score goes.
    """

    count: int = 0
    classes: int = 0
    threshold: float = 0.5

    @property
    def name(self) -> str:
        """Operator and size."""
        return f"{self.operator}/{self.count}"

    @property
    def work(self) -> str:
        """Short description of the work."""
        classes = f", {self.classes} classes" if self.classes else ""
        return f"{self.count:,} boxes{classes}, IoU {self.threshold:g}"

    @property
    def size(self) -> int | None:
        """Boxes of plain NMS; a call on one box measures overhead, not growth."""
        return self.count if self.count > 1 and not self.classes else None

    def make(self, seed: int, device: torch.device, dtype: torch.dtype) -> NmsInputs:
        """Draw boxes, scores and, for the batched form, classes."""
        random = draw.generator(seed)
        boxes = draw.random_boxes(self.count, random).to(device, dtype)
        scores = draw.random_scores(self.count, random).to(device, dtype)
        classes = None
        if self.classes:
            classes = torch.randint(self.classes, (self.count,), generator=random).to(device)
        return NmsInputs(boxes, scores, classes)

    def bind(self, ops: Any, inputs: NmsInputs) -> Call:
        """Return the call of ``nms`` or ``batched_nms``."""
        boxes, scores, threshold = inputs.boxes, inputs.scores, self.threshold
        if inputs.classes is None:
            function = ops.nms
            return lambda: function(boxes, scores, threshold)
        classes, function = inputs.classes, ops.batched_nms
        return lambda: function(boxes, scores, classes, threshold)

    @property
    def measure(self) -> str:
        """Name of the error measure."""
        return "IoU beyond the threshold"

    def tolerance(self, dtype: torch.dtype, other_library: bool) -> float:
        """Return the band of IoU around the threshold in which either decision is right."""
        return max(_BANDS[dtype], _OFFSET_BAND) if other_library and self.classes else _BANDS[dtype]

    def check(self, inputs: NmsInputs) -> Check:
        """Return the check of the greedy property, which defines the result up to rounding."""
        boxes, scores = inputs.boxes.double(), inputs.scores.double()
        classes = inputs.classes if inputs.classes is not None else torch.zeros_like(scores).long()
        known: list[tuple[Tensor, float]] = []

        def check(kept: Tensor) -> float:
            # Contenders mostly agree, and at 50,000 boxes the check takes seconds.
            for seen, error in known:
                if torch.equal(seen, kept):
                    return error
            error = greedy_violation(boxes, scores, classes, kept, self.threshold)
            known.append((kept, error))
            return error

        return check


@dataclasses.dataclass(frozen=True)
class OneClassCase(Case):
    """Scored boxes of one class, for an operator that torchvision does not have.

    Attributes:
        count: Number of boxes.
    """

    count: int = 0

    @property
    def has_counterpart(self) -> bool:
        """False: torchvision has none."""
        return False

    def make(self, seed: int, device: torch.device, dtype: torch.dtype) -> NmsInputs:
        """Draw boxes and scores."""
        return NmsCase("nms", count=self.count).make(seed, device, dtype)

    def tolerance(self, dtype: torch.dtype, other_library: bool) -> float:
        """Return the fraction of boxes that rounding may decide: at the threshold, or in a tie."""
        return 1e-3


@dataclasses.dataclass(frozen=True)
class SoftNmsCase(OneClassCase):
    """Soft NMS.

    Attributes:
        count: Number of boxes.
        method: ``linear`` or ``gaussian``.
    """

    method: str = "linear"

    @property
    def name(self) -> str:
        """Operator, size and method."""
        return f"{self.operator}/{self.count}/{self.method}"

    @property
    def work(self) -> str:
        """Short description of the work."""
        return f"{self.count:,} boxes, {self.method}"

    def bind(self, ops: Any, inputs: NmsInputs) -> Call:
        """Return the call of ``soft_nms``."""
        boxes, scores, method, function = inputs.boxes, inputs.scores, self.method, ops.soft_nms
        return lambda: function(boxes, scores, method=method)

    @property
    def measure(self) -> str:
        """Name of the error measure."""
        return "fraction of boxes scored differently"

    def check(self, inputs: NmsInputs) -> Check:
        """Run the reference in float64; 0 is the score of a box that was dropped."""
        count, allowed = self.count, TOLERANCES[inputs.scores.dtype]
        with double_reference() as ops:
            kept, lowered = ops.soft_nms(
                inputs.boxes.double(), inputs.scores.double(), method=self.method
            )
        truth = torch.zeros_like(inputs.scores, dtype=torch.float64).index_copy_(0, kept, lowered)

        def check(result: tuple[Tensor, Tensor]) -> float:
            kept, lowered = result
            if not _are_distinct(kept, count) or kept.shape != lowered.shape:
                return math.inf
            if (lowered.diff() > 0).any():
                return math.inf
            scores = torch.zeros_like(truth).index_copy_(0, kept, lowered.double())
            # NaN is not right, so those that are right are counted.
            return 1 - ((scores - truth).abs() <= allowed).double().mean().item()

        return check


def _are_distinct(kept: Tensor, count: int) -> bool:
    """Return whether a result is a list of different boxes out of ``count``."""
    if kept.dim() != 1 or kept.dtype != torch.int64:
        return False
    if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= count):
        return False
    return kept.unique().numel() == kept.numel()


def greedy_violation(
    boxes: Tensor, scores: Tensor, classes: Tensor, kept: Tensor, threshold: float
) -> float:
    """Measure by how much IoU a set of kept boxes violates greedy suppression.

    The rule has three parts, and together they leave one answer: kept boxes come in falling order
    of score; no two of a class overlap by more than the threshold; every other box overlaps a
    kept one of its class, with at least its score, by more than the threshold.

    Args:
        boxes: [N, 4] (x1, y1, x2, y2), image pixels, float64.
        scores: [N] float64.
        classes: [N] int64; boxes of different classes ignore each other.
        kept: [K] int64, indices of the kept boxes.
        threshold: The IoU threshold.

    Returns:
        The largest distance of a deciding IoU beyond the threshold: 0 for an exact answer, infinity
        where ``kept`` is out of order, out of range or names a box twice.
    """
    count = boxes.shape[0]
    if not _are_distinct(kept, count) or (scores[kept].diff() > 0).any():
        return math.inf
    # Position of a box in the order of suppression, kept boxes first among equal scores: an order
    # among ties that each library may choose for itself.
    is_kept = torch.zeros(count, dtype=torch.bool, device=boxes.device)
    is_kept[kept] = True
    kept_rank = torch.full((count,), kept.numel(), device=boxes.device)
    kept_rank[kept] = torch.arange(kept.numel(), device=boxes.device)

    violation = 0.0
    for label in classes.unique().tolist():
        members = (classes == label).nonzero()[:, 0]  # [n]
        members = members[boxes[members, 0].argsort()]
        winners = members[is_kept[members]]  # [k]
        for part in members.split(_BOXES_AT_A_TIME):
            # Boxes from left to right: only the winners of a strip of the image can overlap these.
            right, left = boxes[part, 2].max(), boxes[part, 0].min()
            near = winners[(boxes[winners, 0] < right) & (boxes[winners, 2] > left)]  # [m]
            overlap = _iou(boxes[part], boxes[near])  # [part, m]
            kept_part = is_kept[part]
            later = kept_rank[part][:, None] > kept_rank[near][None]  # [part, m]
            may_suppress = torch.where(
                kept_part[:, None], later, scores[near][None] >= scores[part][:, None]
            )
            overlap = torch.nn.functional.pad(overlap.masked_fill(~may_suppress, 0), (0, 1))
            strongest = overlap.amax(dim=1)  # [part], 0 where nothing may suppress
            excess = torch.where(kept_part, strongest - threshold, threshold - strongest)
            worst = float(excess.max())
            violation = math.inf if math.isnan(worst) else max(violation, worst)
    return violation


def _iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU matrix, written out so that the check leans on no operator that it checks.

    Args:
        boxes1: [N, 4] (x1, y1, x2, y2), image pixels.
        boxes2: [M, 4] (x1, y1, x2, y2), image pixels.

    Returns:
        [N, M].
    """
    low = torch.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    high = torch.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=2)
    area1 = (boxes1[:, 2:] - boxes1[:, :2]).prod(dim=1)
    area2 = (boxes2[:, 2:] - boxes2[:, :2]).prod(dim=1)
    return intersection / (area1[:, None] + area2[None] - intersection)
