"""The second stage: sample, pool, classify and refine proposals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn_ext import ops
from rcnn_ext.models.box_coder import box_coder_for_targets
from rcnn_ext.models.box_utils import at_least_float32, image_size_tensor, unpad
from rcnn_ext.models.graph_inputs import PaddedTargets
from rcnn_ext.models.inputs import check_labels
from rcnn_ext.models.loss_normalizer import LossNormalizer, own_samples
from rcnn_ext.models.matcher import Matcher
from rcnn_ext.models.padded_training import box_losses, sample_rois
from rcnn_ext.models.poolers import pool_padded
from rcnn_ext.models.sampler import BalancedPositiveNegativeSampler, image_generator

# See ``image_generator``.
_STAGE = 1


class RoIHeads(nn.Module):
    """Turn proposals into detections or, in training, into losses.

    Args:
        box_roi_pool: Called with (features, proposals, image sizes), gives [R, C, h, w].
        box_head: [R, C, h, w] to [R, D].
        box_predictor: [R, D] to logits [R, K] and deltas [R, K * 4], or [R, 4] for class-agnostic
            boxes. The number of classes K, background included, is read from its output, so it
            may be replaced after construction.
        fg_iou_thresh: A proposal with at least this IoU with an object takes its class.
        bg_iou_thresh: A proposal with less than this IoU with every object is background.
        batch_size_per_image: Number of proposals sampled per image for the loss.
        positive_fraction: Maximum fraction of the sample that is not background.
        bbox_reg_weights: Weights of (dx, dy, dw, dh); None means (10, 10, 5, 5).
        score_thresh: Detections need more than this probability.
        nms_thresh: Suppression works within a class of an image, at this IoU.
        detections_per_img: Maximum number of detections per image, over all classes.
        bbox_target_means: Means of the box targets, see ``BoxCoder``; None means 0.
        bbox_target_stds: Standard deviations of the box targets, 1 / ``bbox_reg_weights``; give one
            of the two.
        bg_iou_low: A proposal with less than this IoU with every object is not sampled, where
            there are objects: Girshick's 0.1 takes the background that looks most like them.

    Arguments and results are those of torchvision's ``RoIHeads``, without masks and keypoints. All
    classes of all images become detections in one call of ``rcnn_ext.ops.postprocess_detections``.

    Source: Girshick, "Fast R-CNN", 2015.
    """

    def __init__(
        self,
        box_roi_pool: nn.Module,
        box_head: nn.Module,
        box_predictor: nn.Module,
        # training
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        bbox_reg_weights: tuple[float, float, float, float] | None,
        # inference
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
        bbox_target_means: tuple[float, float, float, float] | None = None,
        bbox_target_stds: tuple[float, float, float, float] | None = None,
        bg_iou_low: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= bg_iou_low <= bg_iou_thresh:
            raise ValueError(
                f"the minimum background IoU must lie from 0 to the background IoU threshold "
                f"({bg_iou_thresh}), got {bg_iou_low}"
            )
        self.bg_iou_low = bg_iou_low
        self.proposal_matcher = Matcher(fg_iou_thresh, bg_iou_thresh)
        self.fg_bg_sampler = BalancedPositiveNegativeSampler(
            batch_size_per_image, positive_fraction
        )
        self.box_coder = box_coder_for_targets(
            bbox_reg_weights, bbox_target_means, bbox_target_stds
        )
        self.box_roi_pool = box_roi_pool
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        # Of the loss only, so that it is no part of a checkpoint; see ``set_class_weights``.
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
        padded_size: tuple[int, int] | None = None,
        *,
        normalizer: LossNormalizer = own_samples,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detect objects or, in training, compute the losses.

        Args:
            features: Name of a level to its map [N, C, H_l, W_l].
            proposals: One tensor [P_i, 4] (x1, y1, x2, y2) per image, image pixels of the resized
                images. P_i may be 0.
            image_shapes: (height, width) of the resized images, without padding.
            targets: For each image ``boxes`` [G_i, 4], image pixels, and ``labels`` [G_i] int64,
                and perhaps ``seed``, see ``image_generator``. Needed in training.
            padded_size: (height, width) of the batch that the features were computed from; None
                means the largest of ``image_shapes``.
            normalizer: Divisor of the losses, from the number of samples; ``mean_over_processes``
                where several processes share a batch.

        Returns:
            In evaluation, for each image ``boxes`` [D_i, 4], image pixels, ``labels`` [D_i] and
            ``scores`` [D_i], by descending score, and an empty dict; in training, an empty list,
            ``loss_classifier`` and ``loss_box_reg``.

        Raises:
            ValueError: Targets are missing in training, a label is not a class, or the predictor
                gives neither one box per RoI nor one for each class.
        """
        if self.training:
            if targets is None:
                raise ValueError("the RoI heads need targets in training mode")
            proposals, labels, delta_targets = self.select_training_samples(proposals, targets)

        # A pooler measures strides by these sizes, so they must be those that the maps cover: the
        # height of a flat image without its padding can be off by more than a factor of sqrt(2).
        covered = image_shapes if padded_size is None else [padded_size] * len(image_shapes)
        pooled = self.box_roi_pool(features, proposals, covered)  # [R, C, h, w]
        logits, deltas = self._predict(pooled)
        if self.training:
            assert targets is not None
            check_labels([target["labels"] for target in targets], logits.shape[1])
            return [], self.compute_loss(
                logits, deltas, labels, delta_targets, normalizer=normalizer
            )
        return self.postprocess_detections(logits, deltas, proposals, image_shapes), {}

    def detect_padded(
        self,
        features: dict[str, Tensor],
        proposals: Tensor,
        is_real: Tensor,
        image_sizes: Tensor,
        padded_size: tuple[int, int],
        strides: Mapping[str, float] | None = None,
    ) -> ops.Detections:
        """Detect objects in a batch with equally many proposals for each image.

        Args:
            features: Name of a level to its map [N, C, H_l, W_l].
            proposals: [N, P, 4] (x1, y1, x2, y2), image pixels.
            is_real: [N, P] bool; the others only fill the tensor up, and are left out.
            image_sizes: [N, 2] (height, width) of each image without padding.
            padded_size: (height, width) of the batch that the features were computed from.
            strides: Stride of each map by name, for poolers that measure them; None measures.

        Returns:
            Boxes [N, D, 4], scores [N, D], labels [N, D] and counts [N] among others, padded with
            zeros.

        Raises:
            ValueError: The predictor gives neither one box per RoI nor one for each class.
        """
        pooled = pool_padded(self.box_roi_pool, features, proposals, padded_size, strides)
        logits, deltas = self._predict(pooled)
        images = torch.arange(proposals.shape[0], device=proposals.device)[:, None]  # [N, 1]
        image_ids = torch.where(is_real, images, -1).flatten()  # [N * P]
        return self._detect(logits, deltas, proposals.flatten(0, 1), image_ids, image_sizes)

    def losses_padded(
        self,
        features: dict[str, Tensor],
        proposals: Tensor,
        is_real: Tensor,
        targets: PaddedTargets,
        padded_size: tuple[int, int],
        normalizer: LossNormalizer,
    ) -> dict[str, Tensor]:
        """Compute the losses from samples of a fixed size, see ``padded_training``.

        Args:
            features: As for ``detect_padded``.
            proposals: As for ``detect_padded``.
            is_real: As for ``detect_padded``.
            targets: The objects.
            padded_size: As for ``detect_padded``.
            normalizer: As for ``forward``.
        """
        boxes, labels, delta_targets = sample_rois(self, proposals, is_real, targets)
        logits, deltas = self._predict(pool_padded(self.box_roi_pool, features, boxes, padded_size))
        return box_losses(
            self, logits, deltas, labels.flatten(), delta_targets.flatten(0, 1), normalizer
        )

    def _predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [R, K] and deltas [R, K, 4] or [R, 1, 4] for pooled features [R, C, h, w].

        Raises:
            ValueError: The predictor gives neither one box per RoI nor one for each class.
        """
        logits, deltas = self.box_predictor(self.box_head(pooled))
        num_rois, num_classes = logits.shape
        logits = at_least_float32(logits)  # [R, K]
        # [R, B * 4] -> [R, B, 4]; B is K, or 1 for class-agnostic boxes
        deltas = at_least_float32(deltas).reshape(num_rois, deltas.shape[1] // 4, 4)
        if deltas.shape[1] not in (1, num_classes):
            raise ValueError(
                f"the box predictor gives {num_classes} classes and {deltas.shape[1]} boxes per "
                "RoI; expected one box, or one for each class"
            )
        return logits, deltas

    @torch.no_grad()
    def select_training_samples(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Sample proposals and compute their targets.

        Args:
            proposals: One tensor [P_i, 4] per image, image pixels. The objects themselves are added
                to them: early in training no other proposal may reach the foreground threshold.
            targets: As for ``forward``.

        Returns:
            The sampled proposals, [R_i, 4] per image; labels [R], 0 for background; deltas to the
            matched objects [R, 4], 0 for background. R is the sum of R_i.
        """
        gt_boxes = [
            target["boxes"].to(in_image.dtype)
            for in_image, target in zip(proposals, targets, strict=True)
        ]  # [G_i, 4] each
        boxes = [
            torch.cat(pair) for pair in zip(proposals, gt_boxes, strict=True)
        ]  # [P_i + G_i, 4]
        sizes = [len(in_image) for in_image in boxes]
        matches, best = self.proposal_matcher.match_images(gt_boxes, boxes)  # [sum of P_i + G_i]
        sampled, labels, matched_boxes = [], [], []
        # An image draws its sample by itself, from a generator of its own on request.
        for in_image, matched, best_iou, gt, target in zip(
            boxes, matches.split(sizes), best.split(sizes), gt_boxes, targets, strict=True
        ):
            classes = torch.zeros_like(matched)
            foreground = matched >= 0
            classes[foreground] = target["labels"][matched[foreground]]
            classes[matched == Matcher.BETWEEN_THRESHOLDS] = -1  # never sampled
            # An image without objects has no proposals near them, and is background as a whole.
            if self.bg_iou_low > 0 and len(gt):
                classes[(classes == 0) & (best_iou < self.bg_iou_low)] = -1
            generator = image_generator(target, _STAGE, classes.device)
            chosen = torch.cat(self.fg_bg_sampler(classes, generator)).sort().values  # [R_i]
            sampled.append(in_image[chosen])
            labels.append(classes[chosen])
            matched_boxes.append(gt[matched[chosen][labels[-1] > 0]])
        rois, classes = torch.cat(sampled), torch.cat(labels)  # [R, 4], [R]
        foreground = classes > 0
        delta_targets = torch.zeros_like(rois)
        delta_targets[foreground] = self.box_coder.encode(
            torch.cat(matched_boxes), rois[foreground]
        )
        return sampled, classes, delta_targets

    def compute_loss(
        self,
        logits: Tensor,
        deltas: Tensor,
        labels: Tensor,
        delta_targets: Tensor,
        *,
        normalizer: LossNormalizer = own_samples,
    ) -> dict[str, Tensor]:
        """Compute the losses of the sampled RoIs.

        Args:
            logits: [R, K].
            deltas: [R, K, 4], or [R, 1, 4] for class-agnostic boxes.
            labels: [R] int64, 0 for background.
            delta_targets: [R, 4].
            normalizer: As for ``forward``.

        Returns:
            ``loss_classifier`` and ``loss_box_reg``, both divided by R; 0 where R is 0. The
            first has each RoI times the weight of its class, where there are such weights.
        """
        num_rois = normalizer(len(labels), logits.device)
        foreground = (labels > 0).nonzero().squeeze(1)  # [F]
        box_of = labels[foreground] if deltas.shape[1] > 1 else torch.zeros_like(foreground)
        return {
            "loss_classifier": F.cross_entropy(
                logits, labels, weight=self.class_weights, reduction="sum"
            )
            / num_rois,
            "loss_box_reg": F.smooth_l1_loss(
                deltas[foreground, box_of],  # [F, 4]
                delta_targets[foreground],
                beta=1 / 9,
                reduction="sum",
            )
            / num_rois,
        }

    def postprocess_detections(
        self,
        logits: Tensor,
        deltas: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Turn predictions into detections.

        Args:
            logits: [R, K].
            deltas: [R, K, 4], or [R, 1, 4] for class-agnostic boxes.
            proposals: [R_i, 4] per image, image pixels; R is the sum of R_i.
            image_shapes: (height, width) of each image, without padding.

        Returns:
            For each image ``boxes``, ``labels`` and ``scores``, as ``forward`` describes.
        """
        rois = torch.cat(proposals)  # [R, 4]
        # Without the numbers of proposals, which are unknown to torch.export.
        image_of_roi = torch.cat(
            [
                torch.full_like(in_image[:, 0], image, dtype=torch.int64)
                for image, in_image in enumerate(proposals)
            ]
        )  # [R]
        sizes = image_size_tensor(image_shapes, like=rois)  # [N, 2]
        found = self._detect(logits, deltas, rois, image_of_roi, sizes)
        return [
            {"boxes": boxes, "labels": labels, "scores": scores}
            for boxes, labels, scores in unpad(
                found.counts, found.boxes, found.labels, found.scores
            )
        ]

    def _detect(
        self, logits: Tensor, deltas: Tensor, rois: Tensor, image_ids: Tensor, image_sizes: Tensor
    ) -> ops.Detections:
        return ops.postprocess_detections(
            logits,
            deltas.flatten(1),  # [R, K, 4] -> [R, K * 4]
            rois,
            image_ids,
            image_sizes,
            score_threshold=self.score_thresh,
            iou_threshold=self.nms_thresh,
            detections_per_image=self.detections_per_img,
            weights=self.box_coder.weights,
            means=self.box_coder.means,
            max_log_ratio=self.box_coder.max_log_ratio,
        )  # [N, D, 4], [N, D] each, [N]


def set_class_weights(model: nn.Module, weights: Sequence[float] | None) -> None:
    """Weight the classes in the classification loss of a detector's box head, in place.

    Args:
        model: A detector with ``RoIHeads``; other models take None only.
        weights: Weights of the classes but the background, which has 1; None means 1 for all.

    Raises:
        ValueError: The model has no such head, or a weight is not above 0.
    """
    if weights is None:
        return
    heads = getattr(model, "roi_heads", None)
    if not isinstance(heads, RoIHeads) or any(not weight > 0 for weight in weights):
        raise ValueError(f"class weights need a detector and numbers above 0, got {weights}")
    heads.class_weights = torch.tensor([1.0, *weights])
