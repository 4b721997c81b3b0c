"""The region proposal network (RPN) of Faster R-CNN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from rcnn_ext import ops
from rcnn_ext.models.anchors import AnchorGenerator
from rcnn_ext.models.box_coder import BoxCoder
from rcnn_ext.models.box_utils import at_least_float32, image_size_tensor, unpad
from rcnn_ext.models.graph_inputs import PaddedTargets
from rcnn_ext.models.loss_normalizer import LossNormalizer, own_samples
from rcnn_ext.models.matcher import Matcher
from rcnn_ext.models.padded_training import rpn_losses
from rcnn_ext.models.sampler import BalancedPositiveNegativeSampler, image_generator

# See ``image_generator``.
_STAGE = 0


def _rename_old_keys(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    # torchvision's published Faster R-CNN checkpoints predate its stack of convolutions.
    for kind in ("weight", "bias"):
        old = f"{prefix}conv.{kind}"
        if old in state_dict:
            state_dict[f"{prefix}conv.0.0.{kind}"] = state_dict.pop(old)


class RPNHead(nn.Module):
    """Predict objectness and box deltas for the anchors at each position of a feature map.

    Args:
        in_channels: Channels C of every feature map.
        num_anchors: Anchors K at a position, the same for every feature map.
        conv_depth: Number of 3x3 convolutions before the two predictors.

    Parameter names, initial weights and checkpoints are those of torchvision's ``RPNHead``.
    """

    # As in torchvision, so that each library takes the other's checkpoints for current ones.
    _version = 2

    def __init__(self, in_channels: int, num_anchors: int, conv_depth: int = 1) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1),
                    nn.ReLU(inplace=True),
                )
                for _ in range(conv_depth)
            )
        )
        self.cls_logits = nn.Conv2d(in_channels, num_anchors, kernel_size=1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.register_load_state_dict_pre_hook(_rename_old_keys)

    def forward(self, feature_maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits [N, K, H_l, W_l] and deltas [N, K * 4, H_l, W_l] for each level l.

        Args:
            feature_maps: [N, C, H_l, W_l] for each level l.
        """
        hidden = [self.conv(feature_map) for feature_map in feature_maps]
        return [self.cls_logits(h) for h in hidden], [self.bbox_pred(h) for h in hidden]


def _flatten_predictions(logits: list[Tensor], deltas: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Bring the head's predictions into the order of the anchors, for the losses.

    Args:
        logits: [N, K, H_l, W_l] for each level l.
        deltas: [N, K * 4, H_l, W_l] for each level l.

    Returns:
        Objectness [N, A] and deltas [N, A, 4]; A is the number of anchors of all levels. Both in
        float32 at least: they are about to become losses.
    """
    flat_logits, flat_deltas = [], []
    for level_logits, level_deltas in zip(logits, deltas, strict=True):
        n, k, h, w = level_logits.shape
        # [N, K, H, W] -> [N, H, W, K] -> [N, H * W * K]
        flat_logits.append(level_logits.permute(0, 2, 3, 1).reshape(n, -1))
        # [N, K * 4, H, W] -> [N, K, 4, H, W] -> [N, H, W, K, 4] -> [N, H * W * K, 4]
        level_deltas = level_deltas.unflatten(1, (k, 4))
        flat_deltas.append(level_deltas.permute(0, 3, 4, 1, 2).reshape(n, -1, 4))
    return (
        at_least_float32(torch.cat(flat_logits, dim=1)),
        at_least_float32(torch.cat(flat_deltas, dim=1)),
    )


def _checked_anchors(anchors: Tensor, logits: list[Tensor]) -> Tensor:
    """Return anchors [A, 4] or [N, A, 4] in float32 at least.

    Raises:
        ValueError: The head does not predict one box for each of them.
    """
    predicted = sum(math.prod(level.shape[1:]) for level in logits)
    if anchors.shape[-2] != predicted:
        raise ValueError(
            f"the RPN head predicts {predicted} boxes per image, the anchor generator "
            f"makes {anchors.shape[-2]} anchors: their numbers of anchors per position differ"
        )
    return at_least_float32(anchors)


class RegionProposalNetwork(nn.Module):
    """Propose boxes that may hold an object, whatever its class.

    Args:
        anchor_generator: Makes the anchors of a batch; ``AnchorGenerator`` or a module with its
            call.
        head: Gives logits and deltas; ``RPNHead`` or a module with its call.
        fg_iou_thresh: An anchor with at least this IoU with an object is positive.
        bg_iou_thresh: An anchor with less than this IoU with every object is negative.
        batch_size_per_image: Number of anchors sampled per image for the loss.
        positive_fraction: Maximum fraction of the sample that is positive.
        pre_nms_top_n: "training" and "testing": best anchors of each level and image that are
            decoded.
        post_nms_top_n: "training" and "testing": best proposals of an image after suppression.
        nms_thresh: Suppression works within a level of an image, at this IoU.
        score_thresh: Proposals need at least this objectness (a probability).

    Arguments and results are those of torchvision's ``RegionProposalNetwork``. All levels of all
    images become proposals in one call of ``rcnn_ext.ops.generate_proposals``.

    Source: Ren et al., "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal
    Networks", 2015; on pyramids, Lin et al., "Feature Pyramid Networks", 2017.
    """

    def __init__(
        self,
        anchor_generator: nn.Module,
        head: nn.Module,
        # training
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        # inference
        pre_nms_top_n: dict[str, int],
        post_nms_top_n: dict[str, int],
        nms_thresh: float,
        score_thresh: float = 0.0,
    ) -> None:
        super().__init__()
        self.anchor_generator = anchor_generator
        self.head = head
        self.box_coder = BoxCoder()
        self.proposal_matcher = Matcher(
            fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=True
        )
        self.fg_bg_sampler = BalancedPositiveNegativeSampler(
            batch_size_per_image, positive_fraction
        )
        self._pre_nms_top_n = pre_nms_top_n
        self._post_nms_top_n = post_nms_top_n
        self.nms_thresh = nms_thresh
        self.score_thresh = score_thresh
        # Proposals with a shorter side are dropped, image pixels: clipping can leave slivers.
        self.min_size = 1e-3

    def pre_nms_top_n(self) -> int:
        """Return how many anchors of a level are decoded in the current mode."""
        return self._pre_nms_top_n["training" if self.training else "testing"]

    def post_nms_top_n(self) -> int:
        """Return how many proposals of an image are returned in the current mode."""
        return self._post_nms_top_n["training" if self.training else "testing"]

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]] | None = None,
        *,
        normalizer: LossNormalizer = own_samples,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Propose boxes and, in training, compute the losses.

        Args:
            images: The resized, padded batch of N images, and their sizes without padding.
            features: Name of a level to its map [N, C, H_l, W_l]; all levels are used.
            targets: For each image ``boxes`` [G_i, 4], image pixels, and perhaps ``seed``, see
                ``image_generator``. Needed in training.
            normalizer: Divisor of the losses, from the number of samples; ``mean_over_processes``
                where several processes share a batch.

        Returns:
            One tensor [P_i, 4] of proposals (x1, y1, x2, y2) per image, image pixels of the resized
            images, by descending objectness; and ``loss_objectness`` and ``loss_rpn_box_reg`` in
            training, else an empty dict.
        """
        feature_maps = list(features.values())
        logits, deltas = self.head(feature_maps)
        per_image = self.anchor_generator(images, feature_maps)
        if all(anchors_in_image is per_image[0] for anchors_in_image in per_image):
            anchors = per_image[0]  # [A, 4], the same for all
        else:
            anchors = torch.stack(per_image)  # [N, A, 4]
        anchors = _checked_anchors(anchors, logits)
        proposals = self.propose(logits, deltas, anchors, images.image_sizes)
        if not self.training:
            return proposals, {}
        if targets is None:
            raise ValueError("the RPN needs targets in training mode")
        anchors = anchors.expand(len(per_image), -1, -1)  # [N, A, 4] without a copy
        losses = self.compute_loss(
            *_flatten_predictions(logits, deltas), anchors, targets, normalizer=normalizer
        )
        return proposals, losses

    def predict_padded(
        self,
        images: Tensor,
        features: dict[str, Tensor],
        strides: Mapping[str, float] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Predict on every anchor of a batch.

        Args:
            images: [N, 3, H, W], padded.
            features: Name of a level to its map [N, C, H_l, W_l]; all levels are used.
            strides: Stride of each map by name, for anchor generators that find them; None lets
                them.

        Returns:
            Logits [N, K, H_l, W_l] and deltas [N, K * 4, H_l, W_l] for each level l, and anchors
            [A, 4], the same for all images.
        """
        feature_maps = list(features.values())
        logits, deltas = self.head(feature_maps)
        if isinstance(self.anchor_generator, AnchorGenerator):
            given = None if strides is None else [strides[name] for name in features]
            anchors = self.anchor_generator.of_batch(images, feature_maps, given)
        else:
            # One image for all, since the number of images may be unknown while this is traced.
            height, width = images.shape[-2:]
            (anchors,) = self.anchor_generator(ImageList(images, [(height, width)]), feature_maps)
        return logits, deltas, _checked_anchors(anchors, logits)

    def losses_padded(
        self,
        logits: list[Tensor],
        deltas: list[Tensor],
        anchors: Tensor,
        targets: PaddedTargets,
        normalizer: LossNormalizer,
    ) -> dict[str, Tensor]:
        """Compute the losses from samples of a fixed size, see ``padded_training``.

        Args:
            logits: [N, K, H_l, W_l] for each level l.
            deltas: [N, K * 4, H_l, W_l] for each level l.
            anchors: [A, 4].
            targets: The objects.
            normalizer: As for ``forward``.
        """
        anchors = anchors.expand(targets.boxes.shape[0], -1, -1)  # [N, A, 4] without a copy
        predictions = _flatten_predictions(logits, deltas)
        return rpn_losses(self, *predictions, anchors, targets, normalizer)

    def measures_strides(self) -> bool:
        """Return whether the anchor generator finds the strides of the maps in each call."""
        generator = self.anchor_generator
        return isinstance(generator, AnchorGenerator) and generator.strides is None

    def propose(
        self,
        logits: list[Tensor],
        deltas: list[Tensor],
        anchors: Tensor,
        image_sizes: list[tuple[int, int]],
    ) -> list[Tensor]:
        """Decode, clip and suppress the best anchors of the batch.

        No gradient flows through proposals (approximate joint training).

        Args:
            logits: [N, K, H_l, W_l] for each level l.
            deltas: [N, K * 4, H_l, W_l] for each level l.
            anchors: [A, 4] (x1, y1, x2, y2), image pixels, or [N, A, 4].
            image_sizes: (height, width) of each image, without padding.

        Returns:
            One tensor [P_i, 4] per image, image pixels, by descending objectness.
        """
        sizes = image_size_tensor(image_sizes, like=anchors)  # [N, 2]
        boxes, _, counts = self.generate(logits, deltas, anchors, sizes)  # [N, P, 4], [N]
        return [in_image for (in_image,) in unpad(counts, boxes)]

    def generate(
        self, logits: list[Tensor], deltas: list[Tensor], anchors: Tensor, image_sizes: Tensor
    ) -> ops.Proposals:
        """Decode, clip and suppress the best anchors, without cutting boxes to their number.

        Args:
            logits: [N, K, H_l, W_l] for each level l.
            deltas: [N, K * 4, H_l, W_l] for each level l.
            anchors: [A, 4] (x1, y1, x2, y2), image pixels, or [N, A, 4].
            image_sizes: [N, 2] (height, width) of each image without padding.

        Returns:
            Boxes [N, P, 4], scores [N, P] and counts [N].
        """
        return ops.generate_proposals(
            logits,
            deltas,
            anchors,
            image_sizes,
            pre_nms_top_n=self.pre_nms_top_n(),
            post_nms_top_n=self.post_nms_top_n(),
            iou_threshold=self.nms_thresh,
            score_threshold=self.score_thresh,
            min_size=self.min_size,
            weights=self.box_coder.weights,
            means=self.box_coder.means,
            max_log_ratio=self.box_coder.max_log_ratio,
        )

    def compute_loss(
        self,
        objectness: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        targets: list[dict[str, Tensor]],
        *,
        normalizer: LossNormalizer = own_samples,
    ) -> dict[str, Tensor]:
        """Sample anchors and compute the losses of the RPN.

        Args:
            objectness: [N, A] logits.
            deltas: [N, A, 4].
            anchors: [N, A, 4] (x1, y1, x2, y2), image pixels.
            targets: As for ``forward``.
            normalizer: As for ``forward``.

        Returns:
            ``loss_objectness`` and ``loss_rpn_box_reg``, both divided by the number of samples.
        """
        gt_boxes = [target["boxes"] for target in targets]
        matches, _ = self.proposal_matcher.match_images(gt_boxes, anchors)  # [N, A]
        # 1 positive, 0 negative, -1 between the thresholds, not sampled: [N, A]
        labels = (matches >= 0).long() - (matches == Matcher.BETWEEN_THRESHOLDS).long()
        num_anchors = anchors.shape[1]
        positives, negatives, matched_boxes = [], [], []
        # An image draws its sample by itself, from a generator of its own on request.
        for image, (in_image, target) in enumerate(zip(labels, targets, strict=True)):
            generator = image_generator(target, _STAGE, labels.device)
            positive, negative = self.fg_bg_sampler(in_image, generator)
            positives.append(positive + image * num_anchors)
            negatives.append(negative + image * num_anchors)
            matched_boxes.append(gt_boxes[image][matches[image, positive]])
        positive = torch.cat(positives)  # [S+] indices into N * A
        sampled = torch.cat((positive, *negatives))  # [S]
        is_object = torch.zeros(len(sampled), dtype=objectness.dtype, device=objectness.device)
        is_object[: len(positive)] = 1
        # An image can be all between the thresholds: then nothing is sampled.
        num_sampled = normalizer(len(sampled), objectness.device)
        return {
            "loss_objectness": F.binary_cross_entropy_with_logits(
                objectness.flatten()[sampled], is_object, reduction="sum"
            )
            / num_sampled,
            "loss_rpn_box_reg": F.smooth_l1_loss(
                deltas.flatten(0, 1)[positive],
                self.box_coder.encode(
                    torch.cat(matched_boxes),
                    anchors[positive // num_anchors, positive % num_anchors],
                ),
                beta=1 / 9,
                reduction="sum",
            )
            / num_sampled,
        }
