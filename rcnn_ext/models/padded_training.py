"""Losses from samples of a fixed size, so that a training step can be one graph.

The eager losses cut samples to their number in each image, which ``torch.compile`` cannot follow
without breaking its graph. Here every image has as many samples as it can have at most, and a mask
says which count. Which boxes are drawn differs from the eager sampler's, whose permutations need
the numbers of positives and negatives; the distribution is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from rcnn_ext.models.matcher import Matcher

if TYPE_CHECKING:
    from rcnn_ext.models.graph_inputs import PaddedTargets
    from rcnn_ext.models.loss_normalizer import LossNormalizer
    from rcnn_ext.models.roi_heads import RoIHeads
    from rcnn_ext.models.rpn import RegionProposalNetwork


def rpn_losses(
    rpn: RegionProposalNetwork,
    objectness: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    targets: PaddedTargets,
    normalizer: LossNormalizer,
) -> dict[str, Tensor]:
    """Compute the losses of an RPN; see ``RegionProposalNetwork.compute_loss``.

    Args:
        rpn: The RPN.
        objectness: [N, A].
        deltas: [N, A, 4].
        anchors: [N, A, 4] (x1, y1, x2, y2), image pixels.
        targets: The objects.
        normalizer: Divisor of the losses, from the number of samples.
    """
    with torch.no_grad():
        matches, _ = _match(rpn.proposal_matcher, targets, anchors)  # [N, A]
        # 1 positive, 0 negative, -1 between the thresholds, not sampled: [N, A]
        labels = (matches >= 0).long() - (matches == Matcher.BETWEEN_THRESHOLDS).long()
        indices, is_sampled = rpn.fg_bg_sampler.sample_padded(labels)  # [N, S]
        is_positive = is_sampled & (labels.gather(1, indices) > 0)
        chosen_anchors = _rows(anchors, indices)
        matched = _rows(targets.boxes, matches.gather(1, indices).clamp(min=0))
        # An anchor as its own target where there is none: deltas of 0, and never infinity.
        matched = torch.where(is_positive[..., None], matched, chosen_anchors)
        delta_targets = rpn.box_coder.encode(matched, chosen_anchors)  # [N, S, 4]
    num_sampled = normalizer(is_sampled.sum(), objectness.device)
    chosen = objectness.gather(1, indices)
    losses = F.binary_cross_entropy_with_logits(
        chosen, is_positive.to(chosen.dtype), reduction="none"
    )
    box_losses = F.smooth_l1_loss(
        _rows(deltas, indices), delta_targets, beta=1 / 9, reduction="none"
    )
    return {
        "loss_objectness": torch.where(is_sampled, losses, 0.0).sum() / num_sampled,
        "loss_rpn_box_reg": torch.where(is_positive[..., None], box_losses, 0.0).sum()
        / num_sampled,
    }


@torch.no_grad()
def sample_rois(
    heads: RoIHeads, proposals: Tensor, is_real: Tensor, targets: PaddedTargets
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample proposals and compute their targets; see ``RoIHeads.select_training_samples``.

    Args:
        heads: The RoI heads.
        proposals: [N, P, 4] (x1, y1, x2, y2), image pixels.
        is_real: [N, P] bool; the others only fill the tensor up.
        targets: The objects.

    Returns:
        Boxes [N, S, 4]; labels [N, S], 0 for background and -1 for what only fills the tensor up;
        deltas [N, S, 4] to the matched objects, 0 for the others.
    """
    gt_boxes = targets.boxes.to(proposals.dtype)  # [N, G, 4]
    is_object = torch.arange(gt_boxes.shape[1], device=proposals.device) < targets.counts[:, None]
    boxes = torch.cat((proposals, gt_boxes), dim=1)  # [N, P + G, 4]
    is_real = torch.cat((is_real, is_object), dim=1)
    matches, best = _match(heads.proposal_matcher, targets, boxes)  # [N, P + G]
    foreground = matches >= 0
    classes = torch.where(foreground, targets.labels.gather(1, matches.clamp(min=0)), 0)
    classes = torch.where(matches == Matcher.BETWEEN_THRESHOLDS, -1, classes)
    if heads.bg_iou_low > 0:
        far = (classes == 0) & (best < heads.bg_iou_low) & (targets.counts > 0)[:, None]
        classes = torch.where(far, -1, classes)
    classes = torch.where(is_real, classes, -1)
    indices, is_sampled = heads.fg_bg_sampler.sample_padded(classes)  # [N, S]
    labels = torch.where(is_sampled, classes.gather(1, indices), -1)
    chosen = _rows(boxes, indices)
    matched = _rows(gt_boxes, matches.gather(1, indices).clamp(min=0))
    positive = (labels > 0)[..., None]
    unit = chosen.new_tensor([0.0, 0.0, 1.0, 1.0])
    delta_targets = heads.box_coder.encode(
        torch.where(positive, matched, unit), torch.where(positive, chosen, unit)
    )
    return chosen, labels, torch.where(positive, delta_targets, 0.0)


def box_losses(
    heads: RoIHeads,
    logits: Tensor,
    deltas: Tensor,
    labels: Tensor,
    delta_targets: Tensor,
    normalizer: LossNormalizer,
) -> dict[str, Tensor]:
    """Compute the losses of sampled RoIs; see ``RoIHeads.compute_loss``.

    Args:
        heads: The RoI heads.
        logits: [R, K].
        deltas: [R, K, 4], or [R, 1, 4] for class-agnostic boxes.
        labels: [R], 0 for background, -1 for RoIs that do not count.
        delta_targets: [R, 4].
        normalizer: Divisor of the losses, from the number of samples.
    """
    num_rois = normalizer((labels >= 0).sum(), logits.device)
    foreground = labels > 0
    box_of = labels.clamp(min=0) if deltas.shape[1] > 1 else torch.zeros_like(labels)
    chosen = deltas.gather(1, box_of[:, None, None].expand(-1, 1, 4))[:, 0]  # [R, 4]
    losses = F.smooth_l1_loss(chosen, delta_targets, beta=1 / 9, reduction="none")
    return {
        "loss_classifier": F.cross_entropy(
            logits, labels, weight=heads.class_weights, reduction="sum", ignore_index=-1
        )
        / num_rois,
        "loss_box_reg": torch.where(foreground[:, None], losses, 0.0).sum() / num_rois,
    }


def _match(matcher: Matcher, targets: PaddedTargets, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Match boxes [N, P, 4] to the objects of their images; see ``Matcher.match_images``."""
    gt_boxes = targets.boxes.to(boxes.dtype)
    matches, best = matcher.match_images(list(gt_boxes.unbind()), boxes)
    has_objects = (targets.counts > 0)[:, None]
    background = matches.new_tensor(Matcher.BELOW_LOW_THRESHOLD)
    return torch.where(has_objects, matches, background), torch.where(has_objects, best, 0.0)


def _rows(values: Tensor, indices: Tensor) -> Tensor:
    """Return the rows [N, S, 4] of values [N, P, 4] at indices [N, S]."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[2]))
