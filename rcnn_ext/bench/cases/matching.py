"""Cases of matching boxes to ground truth."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from rcnn_ext.bench import inputs as draw
from rcnn_ext.bench.cases.base import Call, Case, Check, double_reference

# Thresholds of the region proposal network.
_HIGH, _LOW = 0.7, 0.3
_BOXES_AT_A_TIME = 10_000


@dataclasses.dataclass(frozen=True)
class MatchInputs:
    """Ground truth, and boxes to match to it."""

    gt_boxes: Tensor  # [G, 4] (x1, y1, x2, y2), image pixels
    boxes: Tensor  # [P, 4] (x1, y1, x2, y2), image pixels


@dataclasses.dataclass(frozen=True)
class MatchCase(Case):
    """IoU, the best ground truth and thresholds, with low-quality matches.

    A library without such an operator runs its ``box_iou`` and torchvision's ``Matcher``.

    Attributes:
        boxes: Number of boxes to match.
        gts: Number of ground-truth boxes.
        grid: Whether the boxes are anchors of a feature pyramid in its order; otherwise random.
    """

    boxes: int = 0
    gts: int = 0
    grid: bool = True

    @property
    def name(self) -> str:
        """Operator and size."""
        kind = "anchors" if self.grid else "random"
        return f"{self.operator}/{self.boxes}x{self.gts}/{kind}"

    @property
    def work(self) -> str:
        """Short description of the work."""
        kind = "anchors in grid order" if self.grid else "random boxes"
        return f"{self.boxes:,} {kind}, {self.gts} ground truths"

    def make(self, seed: int, device: torch.device, dtype: torch.dtype) -> MatchInputs:
        """Draw ground truth, and boxes unless they are anchors."""
        random = draw.generator(seed)
        gt_boxes = draw.random_boxes(self.gts, random)
        boxes = pyramid_anchors(self.boxes) if self.grid else draw.random_boxes(self.boxes, random)
        return MatchInputs(gt_boxes.to(device, dtype), boxes.to(device, dtype))

    def bind(self, ops: Any, inputs: MatchInputs) -> Call:
        """Return the call that matches."""
        gt_boxes, boxes = inputs.gt_boxes, inputs.boxes
        # Not of torchvision.ops, which refuses the name, nor of what only re-exports it.
        match_boxes = getattr(ops, "match_boxes", None)
        if match_boxes is not None:
            return lambda: match_boxes(gt_boxes, boxes, _HIGH, _LOW, True)[0]
        from torchvision.models.detection._utils import Matcher

        matcher = Matcher(_HIGH, _LOW, allow_low_quality_matches=True)
        return lambda: matcher(ops.box_iou(gt_boxes, boxes))

    @property
    def measure(self) -> str:
        """Name of the error measure."""
        return "fraction of boxes matched differently"

    def tolerance(self, dtype: torch.dtype, other_library: bool) -> float:
        """Return the fraction of boxes whose match rounding may decide: ties, and thresholds."""
        return 1e-3

    def check(self, inputs: MatchInputs) -> Check:
        """Match in float64, box_iou by box_iou of some boxes at a time."""
        gt_boxes = inputs.gt_boxes.double()
        parts = inputs.boxes.double().split(_BOXES_AT_A_TIME)
        with double_reference() as ops:
            bests = torch.stack([ops.box_iou(gt_boxes, part).amax(dim=1) for part in parts])
            best_per_gt = bests.amax(dim=0)[:, None]  # [G, 1]
            truth = torch.cat(
                [_matches(ops.box_iou(gt_boxes, part), best_per_gt) for part in parts]
            )

        def check(matches: Tensor) -> float:
            if matches.shape != truth.shape:
                return math.inf
            return (matches != truth).double().mean().item()

        return check


def _matches(iou: Tensor, best_per_gt: Tensor) -> Tensor:
    """Torchvision's rule; iou ``[G, P]``, best_per_gt ``[G, 1]`` the best of each ground truth."""
    best, index = iou.max(dim=0)
    matches = index.masked_fill(best < _HIGH, -2).masked_fill(best < _LOW, -1)
    return torch.where((iou == best_per_gt).any(dim=0), index, matches)


def pyramid_anchors(count: int) -> Tensor:
    """Return anchors of a feature pyramid on the usual image, level by level, row by row.

    Args:
        count: Number of anchors. The last ones are returned, so that all levels are among them.

    Returns:
        [count, 4] (x1, y1, x2, y2), image pixels, float32, CPU.
    """
    width, height = draw.IMAGE_SIZE
    levels = []
    for stride, side in ((4, 32.0), (8, 64.0), (16, 128.0), (32, 256.0), (64, 512.0)):
        y, x = torch.meshgrid(
            torch.arange(0, height, stride), torch.arange(0, width, stride), indexing="ij"
        )
        centers = torch.stack([x, y], dim=-1).view(-1, 1, 2).float()  # [H * W, 1, 2]
        aspects = torch.tensor([0.5, 1.0, 2.0]).sqrt()  # of height to width
        halves = (side / 2 * torch.stack([1 / aspects, aspects], dim=1)).round()  # [3, 2]
        levels.append(torch.cat([centers - halves, centers + halves], dim=-1).view(-1, 4))
    anchors = torch.cat(levels)
    if count > len(anchors):
        raise ValueError(f"expected at most {len(anchors)} anchors, got {count}")
    return anchors[len(anchors) - count :].clone()
