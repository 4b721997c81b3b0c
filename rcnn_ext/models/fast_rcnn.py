"""Fast R-CNN: classify and refine boxes that were proposed elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rcnn_ext.models.box_heads import default_box_branch
from rcnn_ext.models.channels import in_channels_of
from rcnn_ext.models.core import PaddedDetections
from rcnn_ext.models.detector import Detector, is_compiling_only
from rcnn_ext.models.feature_maps import out_channels_of
from rcnn_ext.models.graph_inputs import has_seeds
from rcnn_ext.models.inputs import (
    backbone_features,
    build_transform,
    prepare_batch,
)
from rcnn_ext.models.loss_normalizer import LossNormalizer, own_samples
from rcnn_ext.models.poolers import RoIPooler, measures_strides
from rcnn_ext.models.proposals import clip_padded, clip_proposals, resize_proposals
from rcnn_ext.models.roi_heads import RoIHeads


class FastRCNN(Detector):
    """Fast R-CNN on any backbone.

    Args:
        backbone: Module from images [N, 3, H, W] to a map or a dict of maps [N, C, H_l, W_l], with
            an attribute ``out_channels``, C, and ``in_channels`` where images have not three.
        num_classes: Number of classes, background (class 0) included; None if ``box_predictor`` is
            given.
        min_size: Length of the shorter side of an image after resizing; of several, one is drawn
            for each image in training.
        max_size: Largest length of the longer side; it overrules ``min_size``.
        image_mean: Mean of each channel; None means ImageNet's.
        image_std: Standard deviation of each channel; None means ImageNet's.
        box_roi_pool: Called with (features, proposals, image sizes); None means RoIAlign 7x7 with
            the stride of the backbone, which must then have one map.
        box_head: None means a ``TwoMLPHead``.
        box_predictor: None means a ``FastRCNNPredictor``.
        box_score_thresh: Detections need a higher score.
        box_nms_thresh: IoU above which the better of two detections of a class remains.
        box_detections_per_img: Maximum number of detections per image.
        box_fg_iou_thresh: Minimum IoU of a foreground proposal.
        box_bg_iou_thresh: IoU that a background proposal stays below.
        box_bg_iou_low: IoU that it reaches with some object, where there are any.
        box_batch_size_per_image: Number of proposals sampled per image for the loss.
        box_positive_fraction: Maximum fraction of them that is foreground.
        bbox_reg_weights: Weights of (dx, dy, dw, dh); None means (10, 10, 5, 5).
        bbox_target_means: Subtracted from the box targets; None means 0.
        bbox_target_stds: Standard deviations of the box targets, 1 / ``bbox_reg_weights``; give one
            of the two.
        **kwargs: ``size_divisible`` and ``fixed_size`` of torchvision's
            ``GeneralizedRCNNTransform``.

    Raises:
        ValueError: Contradicting arguments.
        TypeError: An unknown option.

    The default sizes, sample and suppression threshold are the paper's.

    Source: Girshick, "Fast R-CNN", 2015.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int | None = None,
        # images
        min_size: int | Sequence[int] = 600,
        max_size: int = 1000,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        # RoI heads
        box_roi_pool: nn.Module | None = None,
        box_head: nn.Module | None = None,
        box_predictor: nn.Module | None = None,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.3,
        box_detections_per_img: int = 100,
        box_fg_iou_thresh: float = 0.5,
        box_bg_iou_thresh: float = 0.5,
        box_batch_size_per_image: int = 64,
        box_positive_fraction: float = 0.25,
        bbox_reg_weights: tuple[float, float, float, float] | None = None,
        bbox_target_means: tuple[float, float, float, float] | None = None,
        bbox_target_stds: tuple[float, float, float, float] | None = None,
        box_bg_iou_low: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        channels = out_channels_of(backbone)
        if box_roi_pool is None:
            box_roi_pool = RoIPooler(backbone)
        box_head, box_predictor = default_box_branch(
            channels, num_classes, box_roi_pool, box_head, box_predictor
        )
        self.transform = build_transform(
            min_size, max_size, image_mean, image_std, kwargs, in_channels_of(backbone)
        )
        self.backbone = backbone
        self.roi_heads = RoIHeads(
            box_roi_pool,
            box_head,
            box_predictor,
            box_fg_iou_thresh,
            box_bg_iou_thresh,
            box_batch_size_per_image,
            box_positive_fraction,
            bbox_reg_weights,
            box_score_thresh,
            box_nms_thresh,
            box_detections_per_img,
            bbox_target_means,
            bbox_target_stds,
            box_bg_iou_low,
        )

    def forward(
        self,
        images: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]] | None = None,
        *,
        normalizer: LossNormalizer = own_samples,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute the losses in training, detect objects in evaluation.

        Args:
            images: N images [3, H_i, W_i], floating point in [0, 1], of any sizes.
            proposals: For each image [P_i, 4] (x1, y1, x2, y2), floating point, in its pixels; they
                are scaled with the image. P_i may be 0. Parts outside the image are cut off, and
                proposals wholly outside are left out.
            targets: For each image ``boxes`` [G_i, 4] (x1, y1, x2, y2) in its pixels and ``labels``
                [G_i] int64, 1 or more. G_i may be 0. Needed in training, where the boxes join the
                proposals.
            normalizer: Divisor of the losses, from the number of samples; ``mean_over_processes``
                where several processes share a batch.

        Returns:
            In training the losses ``loss_classifier`` and ``loss_box_reg``; in evaluation, for each
            image, ``boxes`` [D_i, 4] in its pixels, ``labels`` [D_i] and ``scores`` [D_i], by
            descending score.

        Raises:
            ValueError: An image, a target or a proposal is malformed; the message names it.
        """
        if is_compiling_only() and not self.training:
            return self._detect_compiled(images, proposals)
        if is_compiling_only() and not has_seeds(targets):
            return self._losses_compiled(images, proposals, targets, normalizer)
        batch, resized_targets, original_sizes = prepare_batch(
            self.transform, images, targets, training=self.training
        )
        resized_proposals = resize_proposals(proposals, batch, original_sizes)
        resized_proposals = clip_proposals(resized_proposals, batch.image_sizes)
        features = backbone_features(self.backbone, self.to_compute(batch.tensors))
        detections, losses = self.roi_heads(
            features,
            resized_proposals,
            batch.image_sizes,
            resized_targets,
            padded_size=(batch.tensors.shape[2], batch.tensors.shape[3]),
            normalizer=normalizer,
        )
        if self.training:
            return losses
        return self.transform.postprocess(detections, batch.image_sizes, original_sizes)

    def detect_padded(
        self,
        images: Tensor,
        image_sizes: Tensor,
        proposals: Tensor | None = None,
        proposal_counts: Tensor | None = None,
        *,
        strides: Mapping[str, float] | None = None,
    ) -> PaddedDetections:
        """See :meth:`rcnn_ext.models.Detector.detect_padded`."""
        if proposals is None:
            raise ValueError("Fast R-CNN needs proposals [N, P, 4] besides images")
        features = backbone_features(self.backbone, self.to_compute(images))
        dtype = torch.promote_types(images.dtype, torch.float32)
        boxes, is_real = clip_padded(proposals.to(dtype), proposal_counts, image_sizes.to(dtype))
        height, width = images.shape[-2:]
        found = self.roi_heads.detect_padded(
            features, boxes, is_real, image_sizes, (height, width), strides
        )
        return found.boxes, found.scores, found.labels, found.counts

    def _losses_compiled(
        self,
        images: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]] | None,
        normalizer: LossNormalizer,
    ) -> dict[str, Tensor]:
        """Compute the losses while ``forward`` is compiled, from samples of a fixed size."""
        batch = self._graph_inputs(images, targets, proposals)
        assert batch.targets is not None
        assert batch.proposals is not None
        boxes, is_real = clip_padded(batch.proposals, batch.proposal_counts, batch.sizes)
        features = backbone_features(self.backbone, batch.images)
        height, width = batch.images.shape[-2:]
        return self.roi_heads.losses_padded(
            features, boxes, is_real, batch.targets, (height, width), normalizer
        )

    def needs_strides(self) -> bool:
        """Return whether the pooler needs the strides of the feature maps."""
        return measures_strides(self.roi_heads.box_roi_pool)


def needs_proposals(model: nn.Module) -> bool:
    """Whether a model, or an exported program of one, takes proposals besides images."""
    return isinstance(model, FastRCNN) or getattr(model, "takes_proposals", False)
