"""Faster R-CNN: a region proposal network and Fast R-CNN on one backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from rcnn_ext import ops
from rcnn_ext.config.model import ANCHOR_SIZES, ASPECT_RATIOS
from rcnn_ext.models.anchors import AnchorGenerator
from rcnn_ext.models.box_heads import default_box_branch
from rcnn_ext.models.channels import in_channels_of
from rcnn_ext.models.core import PaddedDetections
from rcnn_ext.models.detector import Detector, is_compiling_only
from rcnn_ext.models.feature_maps import out_channels_of
from rcnn_ext.models.graph_inputs import has_seeds
from rcnn_ext.models.inputs import backbone_features, build_transform, prepare_batch
from rcnn_ext.models.loss_normalizer import LossNormalizer, own_samples
from rcnn_ext.models.poolers import measures_strides
from rcnn_ext.models.roi_heads import RoIHeads
from rcnn_ext.models.rpn import RegionProposalNetwork, RPNHead


class FasterRCNN(Detector):
    """Faster R-CNN on any backbone.

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
        rpn_anchor_generator: None means one size for each of five levels, three aspect ratios.
        rpn_head: None means an ``RPNHead``.
        rpn_pre_nms_top_n_train: Number of anchors decoded per level, in training.
        rpn_pre_nms_top_n_test: Number of anchors decoded per level, in evaluation.
        rpn_post_nms_top_n_train: Maximum number of proposals per image, in training.
        rpn_post_nms_top_n_test: Maximum number of proposals per image, in evaluation.
        rpn_nms_thresh: IoU above which the better of two proposals of a level remains.
        rpn_fg_iou_thresh: Minimum IoU of a positive anchor.
        rpn_bg_iou_thresh: IoU that a negative anchor stays below.
        rpn_batch_size_per_image: Number of anchors sampled per image for the loss.
        rpn_positive_fraction: Maximum fraction of them that is positive.
        rpn_score_thresh: Minimum objectness of a proposal.
        box_roi_pool: None means RoIAlign 7x7 over the levels "0" to "3".
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

    Arguments, parameter names and results are those of torchvision's ``FasterRCNN``.

    Source: Ren et al., "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal
    Networks", 2015.

    Example:
        >>> model = FasterRCNN(backbone, num_classes=21).eval()
        >>> model([torch.rand(3, 480, 640)])[0]["boxes"]  # [D, 4], pixels of the image
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int | None = None,
        # images
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        # region proposal network
        rpn_anchor_generator: nn.Module | None = None,
        rpn_head: nn.Module | None = None,
        rpn_pre_nms_top_n_train: int = 2000,
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 2000,
        rpn_post_nms_top_n_test: int = 1000,
        rpn_nms_thresh: float = 0.7,
        rpn_fg_iou_thresh: float = 0.7,
        rpn_bg_iou_thresh: float = 0.3,
        rpn_batch_size_per_image: int = 256,
        rpn_positive_fraction: float = 0.5,
        rpn_score_thresh: float = 0.0,
        # RoI heads
        box_roi_pool: nn.Module | None = None,
        box_head: nn.Module | None = None,
        box_predictor: nn.Module | None = None,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        box_fg_iou_thresh: float = 0.5,
        box_bg_iou_thresh: float = 0.5,
        box_batch_size_per_image: int = 512,
        box_positive_fraction: float = 0.25,
        bbox_reg_weights: tuple[float, float, float, float] | None = None,
        bbox_target_means: tuple[float, float, float, float] | None = None,
        bbox_target_stds: tuple[float, float, float, float] | None = None,
        box_bg_iou_low: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        channels = out_channels_of(backbone)
        if rpn_anchor_generator is None:
            rpn_anchor_generator = AnchorGenerator(ANCHOR_SIZES, ASPECT_RATIOS, strides="floor")
        if rpn_head is None:
            rpn_head = RPNHead(channels, anchors_per_position(rpn_anchor_generator))
        if box_roi_pool is None:
            box_roi_pool = ops.MultiScaleRoIAlign(
                featmap_names=["0", "1", "2", "3"], output_size=7, sampling_ratio=2
            )
        box_head, box_predictor = default_box_branch(
            channels, num_classes, box_roi_pool, box_head, box_predictor
        )

        # In torchvision's order, since optimizers store state by the position of a parameter.
        self.transform = build_transform(
            min_size, max_size, image_mean, image_std, kwargs, in_channels_of(backbone)
        )
        self.backbone = backbone
        self.rpn = RegionProposalNetwork(
            rpn_anchor_generator,
            rpn_head,
            rpn_fg_iou_thresh,
            rpn_bg_iou_thresh,
            rpn_batch_size_per_image,
            rpn_positive_fraction,
            {"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
            {"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
            rpn_nms_thresh,
            rpn_score_thresh,
        )
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
        targets: Sequence[dict[str, Tensor]] | None = None,
        *,
        normalizer: LossNormalizer = own_samples,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute the losses in training, detect objects in evaluation.

        Args:
            images: N images [3, H_i, W_i], floating point in [0, 1], of any sizes.
            targets: For each image ``boxes`` [G_i, 4] (x1, y1, x2, y2) in its pixels and ``labels``
                [G_i] int64, 1 or more. G_i may be 0. Needed in training.
            normalizer: Divisor of the losses, from the number of samples; ``mean_over_processes``
                where several processes share a batch.

        Returns:
            In training the losses ``loss_classifier``, ``loss_box_reg``, ``loss_objectness`` and
            ``loss_rpn_box_reg``; in evaluation, for each image, ``boxes`` [D_i, 4] in its pixels,
            ``labels`` [D_i] and ``scores`` [D_i], by descending score.

        Raises:
            ValueError: An image or a target is malformed; the message names it.
        """
        if is_compiling_only() and not self.training:
            return self._detect_compiled(images)
        if is_compiling_only() and not has_seeds(targets):
            return self._losses_compiled(images, targets, normalizer)
        batch, resized_targets, original_sizes = prepare_batch(
            self.transform, images, targets, training=self.training
        )
        features = backbone_features(self.backbone, self.to_compute(batch.tensors))
        proposals, proposal_losses = self.rpn(
            batch, features, resized_targets, normalizer=normalizer
        )
        detections, detector_losses = self.roi_heads(
            features,
            proposals,
            batch.image_sizes,
            resized_targets,
            padded_size=(batch.tensors.shape[2], batch.tensors.shape[3]),
            normalizer=normalizer,
        )
        if self.training:
            return {**detector_losses, **proposal_losses}
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
        if proposals is not None or proposal_counts is not None:
            raise ValueError("Faster R-CNN finds its own proposals, and takes none")
        features = backbone_features(self.backbone, self.to_compute(images))
        predictions = self.rpn.predict_padded(images, features, strides)
        boxes, _, counts = self.rpn.generate(*predictions, image_sizes)
        is_real = torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None]  # [N, P]
        height, width = images.shape[-2:]
        found = self.roi_heads.detect_padded(
            features, boxes, is_real, image_sizes, (height, width), strides
        )
        return found.boxes, found.scores, found.labels, found.counts

    def _losses_compiled(
        self,
        images: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]] | None,
        normalizer: LossNormalizer,
    ) -> dict[str, Tensor]:
        """Compute the losses while ``forward`` is compiled, from samples of a fixed size."""
        batch = self._graph_inputs(images, targets)
        assert batch.targets is not None
        features = backbone_features(self.backbone, batch.images)
        logits, deltas, anchors = self.rpn.predict_padded(batch.images, features)
        boxes, _, counts = self.rpn.generate(logits, deltas, anchors, batch.sizes)
        is_real = torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None]  # [N, P]
        height, width = batch.images.shape[-2:]
        return {
            **self.roi_heads.losses_padded(
                features, boxes, is_real, batch.targets, (height, width), normalizer
            ),
            **self.rpn.losses_padded(logits, deltas, anchors, batch.targets, normalizer),
        }

    def needs_strides(self) -> bool:
        """Return whether the pooler or the anchors need the strides of the feature maps."""
        return measures_strides(self.roi_heads.box_roi_pool) or self.rpn.measures_strides()


def anchors_per_position(generator: nn.Module) -> int:
    """Return the number of anchors at a position, which all levels share.

    Raises:
        ValueError: Levels differ in it.
    """
    counts: list[int] = cast(Any, generator).num_anchors_per_location()
    if len(set(counts)) != 1:
        raise ValueError(
            "the RPN head is shared by all levels, so each needs the same number of anchors per "
            f"position; the anchor generator has {counts}"
        )
    return counts[0]
