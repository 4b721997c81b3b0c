"""Matching of anchors and proposals to ground-truth boxes."""

from __future__ import annotations

from torch import Tensor

from rcnn_ext import ops
from rcnn_ext.reference.match_boxes import BELOW_LOW_THRESHOLD, BETWEEN_THRESHOLDS


class Matcher:
    """Match each box to the ground-truth box that it overlaps most.

    Args:
        high_threshold: A box with an IoU of at least this is matched.
        low_threshold: A box below it is background; between the two it is ignored.
        allow_low_quality_matches: Also match, below the thresholds, the boxes with the highest IoU
            of each ground truth (all of them on ties). Such a box is matched to the ground truth
            that it overlaps most itself, which may be another one. The RPN needs this: small
            objects may reach the high threshold with no anchor.

    Source: Ren et al., "Faster R-CNN", 2015, section 3.1.2; the rules of torchvision's ``Matcher``,
    including its case of a ground truth that overlaps nothing: then its best IoU is 0, and every
    box with an IoU of 0 counts as best.
    """

    BELOW_LOW_THRESHOLD = BELOW_LOW_THRESHOLD
    BETWEEN_THRESHOLDS = BETWEEN_THRESHOLDS

    def __init__(
        self,
        high_threshold: float,
        low_threshold: float,
        allow_low_quality_matches: bool = False,
    ) -> None:
        if not low_threshold <= high_threshold:
            raise ValueError(
                f"the background IoU threshold ({low_threshold}) must not exceed the foreground "
                f"IoU threshold ({high_threshold})"
            )
        self.high_threshold = high_threshold
        self.low_threshold = low_threshold
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, gt_boxes: Tensor, boxes: Tensor) -> Tensor:
        """Match ``boxes`` to ``gt_boxes``.

        Args:
            gt_boxes: [G, 4] (x1, y1, x2, y2), image pixels. G may be 0: then all is background.
            boxes: [P, 4] anchors or proposals of the same image.

        Returns:
            Tensor [P] int64: the index of a ground-truth box, ``BELOW_LOW_THRESHOLD`` or
            ``BETWEEN_THRESHOLDS``.
        """
        thresholds = self.high_threshold, self.low_threshold
        return ops.match_boxes(gt_boxes, boxes, *thresholds, self.allow_low_quality_matches)[0]

    def match_images(
        self, gt_boxes: list[Tensor], boxes: Tensor | list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Match the boxes of a batch in one call.

        Args:
            gt_boxes: [G_i, 4] for each of N images, image pixels.
            boxes: [N, P, 4] anchors or proposals, or a list of [P_i, 4].

        Returns:
            Matches as from a call for each image, and the best IoU of each box, 0 without ground
            truth: [N, P] each, or [sum of P_i] for a list.
        """
        thresholds = self.high_threshold, self.low_threshold
        return ops.batched_match_boxes(gt_boxes, boxes, *thresholds, self.allow_low_quality_matches)
