"""Boxes as regression targets: the parameterization of R-CNN."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rcnn_ext.reference.box_coding import MAX_LOG_RATIO, decode


def _centers_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split boxes [..., 4] into (center x, center y, width, height), each [...]."""
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


class BoxCoder:
    """Encode boxes relative to other boxes, and decode them again.

    ``encode`` gives (dx, dy, dw, dh): the shift of the center in units of the anchor's sides, and
    the logarithm of the ratio of the sides, each multiplied by its weight. The weights are
    1 / standard deviation of the targets, so that the four losses weigh alike.

    Args:
        weights: Weights of (dx, dy, dw, dh).
        means: Means of (dx, dy, dw, dh) before they are weighted, subtracted from the targets;
            R-CNN's normalized targets are (delta - mean) / std, so weights are 1 / std.
        max_log_ratio: dw and dh are clamped to this before the exponential, so that a wild
            prediction gives a large box and no overflow. The default lets 16 pixels grow to 1000.

    Source: Girshick et al., "Rich feature hierarchies", 2014, appendix C; with equal weights the
    results of torchvision's ``BoxCoder``.

    Example:
        >>> coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        >>> coder.decode(coder.encode(gt_boxes, proposals), proposals)  # equals gt_boxes
    """

    def __init__(
        self,
        weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
        max_log_ratio: float = MAX_LOG_RATIO,
        means: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    ) -> None:
        if len(weights) != 4 or any(not weight > 0 for weight in weights):
            raise ValueError(f"box coder weights must be four positive numbers, got {weights}")
        if len(means) != 4 or not all(math.isfinite(mean) for mean in means):
            raise ValueError(f"box target means must be four finite numbers, got {means}")
        self.weights = tuple(weights)
        self.means = tuple(means)
        self.max_log_ratio = max_log_ratio

    def encode(self, gt_boxes: Tensor, anchors: Tensor) -> Tensor:
        """Return the deltas that lead from ``anchors`` to ``gt_boxes``.

        Args:
            gt_boxes: [..., 4] (x1, y1, x2, y2), image pixels, with positive sides.
            anchors: [..., 4] anchors or proposals, with positive sides.

        Returns:
            Tensor [..., 4] (dx, dy, dw, dh).
        """
        gt_x, gt_y, gt_width, gt_height = _centers_and_sizes(gt_boxes)
        x, y, width, height = _centers_and_sizes(anchors)
        weight_x, weight_y, weight_w, weight_h = self.weights
        deltas = torch.stack(
            (
                weight_x * (gt_x - x) / width,
                weight_y * (gt_y - y) / height,
                weight_w * torch.log(gt_width / width),
                weight_h * torch.log(gt_height / height),
            ),
            dim=-1,
        )
        return deltas - self._shift(deltas) if any(self.means) else deltas

    def _shift(self, like: Tensor) -> Tensor:
        """Return the means in units of the weighted deltas, [4]."""
        shift = [mean * weight for mean, weight in zip(self.means, self.weights, strict=True)]
        return torch.tensor(shift, dtype=like.dtype, device=like.device)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes that ``deltas`` make of ``anchors``.

        Args:
            deltas: [..., 4] (dx, dy, dw, dh).
            anchors: [..., 4] (x1, y1, x2, y2), image pixels, broadcast against ``deltas``.

        Returns:
            Tensor [..., 4] (x1, y1, x2, y2), image pixels, not clipped.
        """
        return decode(deltas, anchors, self.weights, self.means, self.max_log_ratio)


def box_coder_for_targets(
    weights: tuple[float, float, float, float] | None,
    means: tuple[float, float, float, float] | None,
    stds: tuple[float, float, float, float] | None,
) -> BoxCoder:
    """Return the coder of a detector's second stage.

    Args:
        weights: Weights of (dx, dy, dw, dh), torchvision's parameter.
        means: Means of the targets (dx, dy, dw, dh); None means 0.
        stds: Standard deviations of the targets, 1 / weights; None means ``weights``, or (0.1, 0.1,
            0.2, 0.2).

    Raises:
        ValueError: ``weights`` and ``stds`` are both given, or are not four positive numbers.
    """
    if stds is not None:
        if weights is not None:
            raise ValueError(
                "bbox_reg_weights are 1 / bbox_target_stds: give one of them, "
                f"got {weights} and {stds}"
            )
        if any(not std > 0 for std in stds):
            raise ValueError(f"bbox_target_stds must be four positive numbers, got {stds}")
        weights = tuple(1 / std for std in stds)  # type: ignore[assignment]
    return BoxCoder(weights or (10.0, 10.0, 5.0, 5.0), means=means or (0.0, 0.0, 0.0, 0.0))
