"""Parts of torchvision's detectors on operators of this package: the level ``"models"``.

Whole steps between the networks become one call each. Detections and losses are torchvision's but
for the order among equal scores, and for NMS without torchvision's offsets of coordinates by class.
What is not as torchvision built it (a subclass that overrides a step, another box coder, half
types), and what is traced, scripted or compiled, runs torchvision's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rcnn_ext import ops
from rcnn_ext.accelerate.patches import Undo, replace_function, replace_method

_DTYPES = (torch.float32, torch.float64)


def _takes_part(*tensors: Tensor) -> bool:
    """Return whether tensors are plain, of one dtype that both packages compute in, and no trace.

    In a graph torchvision's own code stays: it outlives the acceleration.
    """
    import torchvision

    return (
        all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)
        and len({tensor.dtype for tensor in tensors}) == 1
        and tensors[0].dtype in _DTYPES
        and not torch.compiler.is_compiling()
        and not torchvision._is_tracing()
        and not torch._C._functorch.peek_interpreter_stack()
    )


def _batched_nms(
    original: Callable[..., Tensor],
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
) -> Tensor:
    if not (
        _takes_part(boxes, scores)
        and boxes.dim() == 2
        and boxes.shape[1] == 4
        and type(idxs) is Tensor
        and boxes.shape[:1] == scores.shape == idxs.shape
        and boxes.device == scores.device == idxs.device
        and 0 <= iou_threshold <= 1
        and bool(boxes.sum().isfinite())
    ):
        return original(boxes, scores, idxs, iou_threshold)
    return ops.batched_nms(boxes, scores, idxs, iou_threshold)


def _pool(
    original: Callable[..., Tensor],
    self: Any,
    x: dict[str, Tensor],
    boxes: list[Tensor],
    image_shapes: list[tuple[int, int]],
) -> Tensor:
    from torchvision.ops import poolers

    maps = [value for name, value in x.items() if name in self.featmap_names]
    if len(maps) < 2 or not boxes or not _takes_part(*maps, *boxes):
        return original(self, x, boxes, image_shapes)
    if self.scales is None or self.map_levels is None:
        self.scales, self.map_levels = poolers._setup_scales(
            maps, image_shapes, self.canonical_scale, self.canonical_level
        )
    corners = torch.cat(list(boxes))
    width, height = (corners[:, 2:] - corners[:, :2]).unbind(1)
    if not (
        len(self.scales) == len(maps)
        and _is_regular(self.scales, self.map_levels)
        # torchvision gives zeros for a RoI whose area is negative or no number.
        and bool((width * height >= 0).all())
        and all(bool(feature.sum().isfinite()) for feature in maps)
    ):
        return original(self, x, boxes, image_shapes)
    pooled = ops.multiscale_roi_align(
        maps,
        boxes,
        self.output_size,
        self.scales,
        self.sampling_ratio,
        canonical_scale=float(self.map_levels.s0),
        canonical_level=self.map_levels.lvl0,
    )
    return pooled.contiguous()


def _is_regular(scales: Sequence[float], mapper: Any) -> bool:
    """Return whether each level has twice the stride of the one before, mapped as in the paper."""
    from torchvision.ops import poolers

    return (
        type(mapper) is poolers.LevelMapper
        and mapper.eps == 1e-6
        and scales[0] == 2.0**-mapper.k_min
        and scales[-1] == 2.0**-mapper.k_max
        and all(finer == 2 * coarser for finer, coarser in zip(scales, scales[1:], strict=False))
    )


def _propose(
    original: Callable[..., Any],
    self: Any,
    images: Any,
    features: dict[str, Tensor],
    targets: list[dict[str, Tensor]] | None = None,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Take the place of ``RegionProposalNetwork.forward``."""
    from torchvision.models.detection import rpn

    maps = list(features.values())
    if not (_has_own_steps(self) and maps and _takes_part(*maps)) or torch.is_autocast_enabled(
        maps[0].device.type
    ):
        return original(self, images, features, targets)
    objectness, deltas = self.head(maps)
    anchors = self.anchor_generator(images, maps)
    flat_objectness, flat_deltas = rpn.concat_box_prediction_layers(objectness, deltas)
    if _takes_part(*objectness, *deltas, *anchors):
        boxes = _proposals_at_once(self, images.image_sizes, objectness, deltas, anchors)
    else:
        decoded = self.box_coder.decode(flat_deltas.detach(), anchors)
        counts = [level[0].numel() for level in objectness]
        boxes, _ = self.filter_proposals(
            decoded.view(len(anchors), -1, 4), flat_objectness, images.image_sizes, counts
        )
    if not self.training:
        return boxes, {}
    if targets is None:
        raise ValueError("targets should not be None")
    labels, matched = self.assign_targets_to_anchors(anchors, targets)
    encoded = self.box_coder.encode(matched, anchors)
    losses = self.compute_loss(flat_objectness, flat_deltas, labels, encoded)
    return boxes, dict(zip(("loss_objectness", "loss_rpn_box_reg"), losses, strict=True))


def _has_own_steps(rpn: Any) -> bool:
    """Return whether the steps to proposals are those of ``RegionProposalNetwork``."""
    from torchvision.models.detection import _utils
    from torchvision.models.detection.rpn import RegionProposalNetwork

    steps = ("filter_proposals", "_get_top_n_idx")
    return type(rpn.box_coder) is _utils.BoxCoder and all(
        getattr(getattr(rpn, step), "__func__", None) is getattr(RegionProposalNetwork, step)
        for step in steps
    )


def _proposals_at_once(
    rpn: Any,
    image_sizes: list[tuple[int, int]],
    objectness: list[Tensor],
    deltas: list[Tensor],
    anchors: list[Tensor],
) -> list[Tensor]:
    boxes, _, counts = ops.generate_proposals(
        objectness,
        deltas,
        anchors[0] if len(anchors) == 1 else torch.stack(anchors),
        torch.tensor(image_sizes, device=objectness[0].device),
        pre_nms_top_n=rpn.pre_nms_top_n(),
        post_nms_top_n=rpn.post_nms_top_n(),
        iou_threshold=rpn.nms_thresh,
        score_threshold=rpn.score_thresh,
        min_size=rpn.min_size,
        weights=rpn.box_coder.weights,
        max_log_ratio=rpn.box_coder.bbox_xform_clip,
    )
    return [boxes[image, :count] for image, count in enumerate(counts.tolist())]


def _match(matcher: Any, gt_boxes: Tensor, boxes: Tensor) -> Tensor | None:
    """Match as a ``Matcher`` would; ``None`` where it is another class or may decide otherwise."""
    from torchvision.models.detection import _utils

    if not (
        type(matcher) is _utils.Matcher
        and _takes_part(gt_boxes, boxes)
        and len(boxes)
        and gt_boxes.dim() == 2
        and gt_boxes.shape[1] == 4
    ):
        return None
    return ops.match_boxes(
        gt_boxes,
        boxes,
        matcher.high_threshold,
        matcher.low_threshold,
        matcher.allow_low_quality_matches,
    )[0]


def _assign_to_anchors(
    original: Callable[..., Any],
    self: Any,
    anchors: list[Tensor],
    targets: list[dict[str, Tensor]],
) -> tuple[list[Tensor], list[Tensor]]:
    from torchvision.ops import boxes as box_ops

    labels: list[Tensor] = []
    matched: list[Tensor] = []
    for of_image, target in zip(anchors, targets, strict=False):
        gt_boxes = target["boxes"]
        matches = None
        if gt_boxes.numel() and self.box_similarity is box_ops.box_iou:
            matches = _match(self.proposal_matcher, gt_boxes, of_image)
        if matches is None:
            (image_labels,), (image_boxes,) = original(self, [of_image], [target])
        else:
            image_boxes = gt_boxes[matches.clamp(min=0)]
            between = matches == self.proposal_matcher.BETWEEN_THRESHOLDS
            image_labels = (matches >= 0).to(torch.float32) - between.to(torch.float32)
        labels.append(image_labels)
        matched.append(image_boxes)
    return labels, matched


def _assign_to_proposals(
    original: Callable[..., Any],
    self: Any,
    proposals: list[Tensor],
    gt_boxes: list[Tensor],
    gt_labels: list[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    indices: list[Tensor] = []
    labels: list[Tensor] = []
    for image in zip(proposals, gt_boxes, gt_labels, strict=False):
        of_image, image_gt, classes = image
        matches = _match(self.proposal_matcher, image_gt, of_image) if image_gt.numel() else None
        if matches is None:
            (image_indices,), (image_labels,) = original(self, *([part] for part in image))
        else:
            image_indices = matches.clamp(min=0)
            image_labels = classes[image_indices].to(torch.int64)
            image_labels[matches == self.proposal_matcher.BELOW_LOW_THRESHOLD] = 0
            image_labels[matches == self.proposal_matcher.BETWEEN_THRESHOLDS] = -1
        indices.append(image_indices)
        labels.append(image_labels)
    return indices, labels


def _postprocess(
    original: Callable[..., Any],
    self: Any,
    class_logits: Tensor,
    box_regression: Tensor,
    proposals: list[Tensor],
    image_shapes: list[tuple[int, int]],
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    from torchvision.models.detection import _utils

    if not (
        type(self.box_coder) is _utils.BoxCoder
        and proposals
        and _takes_part(class_logits, box_regression, *proposals)
        and class_logits.dim() == box_regression.dim() == 2
        and class_logits.shape[1] > 1
        and box_regression.shape[1] == 4 * class_logits.shape[1]
    ):
        return original(self, class_logits, box_regression, proposals, image_shapes)
    device = class_logits.device
    counts = torch.tensor([len(of_image) for of_image in proposals], device=device)
    found = ops.postprocess_detections(
        class_logits,
        box_regression,
        torch.cat(proposals),
        torch.arange(len(proposals), device=device).repeat_interleave(counts),
        torch.tensor(image_shapes, device=device),
        score_threshold=self.score_thresh,
        iou_threshold=self.nms_thresh,
        detections_per_image=self.detections_per_img,
        weights=self.box_coder.weights,
        max_log_ratio=self.box_coder.bbox_xform_clip,
    )
    kept = found.counts.tolist()
    boxes, scores, labels = (
        [of_batch[image, :count] for image, count in enumerate(kept)]
        for of_batch in (found.boxes, found.scores, found.labels)
    )
    return boxes, scores, labels


def install() -> Undo:
    """Put the parts in place, and return the function that brings torchvision's back."""
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork
    from torchvision.ops import poolers
    from torchvision.ops.boxes import batched_nms

    undo = [replace_function(batched_nms, _batched_nms)]
    undo += [
        replace_method(owner, name, stand_in)
        for owner, name, stand_in in (
            (poolers.MultiScaleRoIAlign, "forward", _pool),
            (RegionProposalNetwork, "forward", _propose),
            (RegionProposalNetwork, "assign_targets_to_anchors", _assign_to_anchors),
            (RoIHeads, "assign_targets_to_proposals", _assign_to_proposals),
            (RoIHeads, "postprocess_detections", _postprocess),
        )
    ]

    def undo_all() -> None:
        for each in reversed(undo):
            each()

    return undo_all
