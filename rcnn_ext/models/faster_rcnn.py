"""Faster R-CNN: a region proposal network and Fast R-CNN on one backbone."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.models._api import WeightsEnum
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.ops import FrozenBatchNorm2d

from rcnn_ext import ops
from rcnn_ext.models.anchors import AnchorGenerator
from rcnn_ext.models.backbones import (
    FeatureMap,
    NormLayer,
    build_fpn_backbone,
    out_channels_of,
)
from rcnn_ext.models.box_heads import default_box_branch
from rcnn_ext.models.builder import build_parts
from rcnn_ext.models.inputs import backbone_features, build_transform, prepare_batch
from rcnn_ext.models.roi_heads import RoIHeads
from rcnn_ext.models.rpn import RegionProposalNetwork, RPNHead
from rcnn_ext.models.weights import fetch_state_dict, resolve_weights

# Sides of the anchors of the FPN paper in image pixels, one for each of P2 to P6.
_ANCHOR_SIZES = (32, 64, 128, 256, 512)


class FasterRCNN(nn.Module):
    """Faster R-CNN on any backbone.

    Args:
        backbone: from images [N, 3, H, W] to a map or a dict of maps [N, C, H_l, W_l], with an
            attribute `out_channels`, C.
        num_classes: number of classes, background (class 0) included; None if `box_predictor` is
            given.
        min_size: length of the shorter side of an image after resizing; of several, one is drawn
            for each image in training.
        max_size: largest length of the longer side; it overrules `min_size`.
        image_mean: of each channel; None means ImageNet's.
        image_std: of each channel; None means ImageNet's.
        rpn_anchor_generator: None means one size for each of five levels, three aspect ratios.
        rpn_head: None means an `RPNHead`.
        rpn_pre_nms_top_n_train: anchors of a level that are decoded, in training.
        rpn_pre_nms_top_n_test: the same in evaluation.
        rpn_post_nms_top_n_train: proposals of an image, in training.
        rpn_post_nms_top_n_test: the same in evaluation.
        rpn_nms_thresh: IoU above which the better of two proposals of a level remains.
        rpn_fg_iou_thresh: least IoU of a positive anchor.
        rpn_bg_iou_thresh: IoU that a negative anchor stays below.
        rpn_batch_size_per_image: anchors sampled for the loss.
        rpn_positive_fraction: largest part of them that is positive.
        rpn_score_thresh: least objectness of a proposal.
        box_roi_pool: None means RoIAlign 7x7 over the levels "0" to "3".
        box_head: None means a `TwoMLPHead`.
        box_predictor: None means a `FastRCNNPredictor`.
        box_score_thresh: detections need a higher score.
        box_nms_thresh: IoU above which the better of two detections of a class remains.
        box_detections_per_img: most detections of an image.
        box_fg_iou_thresh: least IoU of a foreground proposal.
        box_bg_iou_thresh: IoU that a background proposal stays below.
        box_batch_size_per_image: proposals sampled for the loss.
        box_positive_fraction: largest part of them that is foreground.
        bbox_reg_weights: of (dx, dy, dw, dh); None means (10, 10, 5, 5).
        **kwargs: `size_divisible` and `fixed_size` of torchvision's `GeneralizedRCNNTransform`.

    Raises:
        ValueError: contradicting arguments.
        TypeError: an unknown option.

    Arguments, parameter names and results are those of torchvision's `FasterRCNN`.

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
        **kwargs: Any,
    ) -> None:
        super().__init__()
        channels = out_channels_of(backbone)
        if rpn_anchor_generator is None:
            rpn_anchor_generator = AnchorGenerator(_ANCHOR_SIZES, (0.5, 1.0, 2.0))
        if rpn_head is None:
            rpn_head = RPNHead(channels, _anchors_per_position(rpn_anchor_generator))
        if box_roi_pool is None:
            box_roi_pool = ops.MultiScaleRoIAlign(
                featmap_names=["0", "1", "2", "3"], output_size=7, sampling_ratio=2
            )
        box_head, box_predictor = default_box_branch(
            channels, num_classes, box_roi_pool, box_head, box_predictor
        )

        # In torchvision's order: the state of an optimizer knows parameters by their position.
        self.transform = build_transform(min_size, max_size, image_mean, image_std, kwargs)
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
        )

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute the losses in training, detect objects in evaluation.

        Args:
            images: N images [3, H_i, W_i], floating point in [0, 1], of any sizes.
            targets: for each image `boxes` [G_i, 4] (x1, y1, x2, y2) in its pixels and `labels`
                [G_i] int64, 1 or more. G_i may be 0. Needed in training.

        Returns:
            In training the losses `loss_classifier`, `loss_box_reg`, `loss_objectness` and
            `loss_rpn_box_reg`; in evaluation, for each image, `boxes` [D_i, 4] in its pixels,
            `labels` [D_i] and `scores` [D_i], by descending score.

        Raises:
            ValueError: an image or a target is malformed; the message names it.
        """
        batch, resized_targets, original_sizes = prepare_batch(
            self.transform, images, targets, training=self.training
        )
        features = backbone_features(self.backbone, batch.tensors)
        proposals, proposal_losses = self.rpn(batch, features, resized_targets)
        detections, detector_losses = self.roi_heads(
            features,
            proposals,
            batch.image_sizes,
            resized_targets,
            padded_size=(batch.tensors.shape[2], batch.tensors.shape[3]),
        )
        if self.training:
            return {**detector_losses, **proposal_losses}
        return self.transform.postprocess(detections, batch.image_sizes, original_sizes)


def faster_rcnn(
    backbone: str = "resnet50",
    *,
    num_classes: int,
    neck: str = "fpn",
    head: str | None = None,
    pooler: str = "align",
    pool_size: int = 7,
    sampling_ratio: int = 2,
    class_agnostic: bool = False,
    dropout: float = 0.0,
    anchor_sizes: Sequence[Any] | None = None,
    aspect_ratios: Sequence[Any] = (0.5, 1.0, 2.0),
    weights_backbone: WeightsEnum | str | None = None,
    norm_layer: NormLayer = "auto",
    trainable_layers: int | None = None,
    returned_layers: Sequence[int] | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> FasterRCNN:
    """Build a Faster R-CNN from a backbone by name.

    Args:
        backbone: "resnet18", "resnet34", "resnet50", "resnet101" or "mobilenet_v3_large".
        num_classes: number of classes, background (class 0) included.
        neck: "fpn", a feature pyramid, or "c4", the map of stride 16.
        head: "mlp" or "res5", see `fast_rcnn`; None means "mlp" for "fpn", "res5" for "c4".
        pooler: "align" (RoIAlign) or "pool" (RoIPool, for "c4" only).
        pool_size: height and width of a pooled RoI.
        sampling_ratio: samples along each side of a bin of RoIAlign; 0 adapts to the RoI's size.
        class_agnostic: one box a RoI instead of one for each class.
        dropout: probability of dropping an output of the head in training.
        anchor_sizes: sides of the anchors in pixels of the resized image. Plain numbers are one
            size for each level of a pyramid, or all sizes of a single map; nested, they are the
            sizes of each level. None means 8 times the stride of each level of a pyramid, which
            is 32 to 512 for a ResNet, and all of 32, 64, 128, 256, 512 on every map where levels
            share a stride (torchvision's MobileNetV3) or there is only one.
        aspect_ratios: height / width of the anchors, for all levels, or nested for each.
        weights_backbone: published ImageNet weights, their name ("DEFAULT"), or None.
        norm_layer: "auto" (frozen batch norm with weights, else live), "frozen", "batch", or a
            function from channels to a layer.
        trainable_layers: stages of the backbone that learn, counted from the last; None means 3
            with weights, else all.
        returned_layers: stages that a pyramid is built on, see `build_fpn_backbone`.
        progress: show a progress bar while downloading.
        **kwargs: further options of `FasterRCNN`: `min_size`, `max_size`, `rpn_...`, `box_...`,
            but none of its modules.

    Raises:
        ValueError: an unknown or contradicting option.
        UserError: the weights do not exist or cannot be downloaded.

    Example:
        >>> faster_rcnn("resnet18", num_classes=4, min_size=128, max_size=128,
        ...             anchor_sizes=(8, 16, 32, 64, 128))
    """
    parts = build_parts(
        backbone,
        num_classes=num_classes,
        neck=neck,
        head=head,
        pooler=pooler,
        pool_size=pool_size,
        sampling_ratio=sampling_ratio,
        class_agnostic=class_agnostic,
        dropout=dropout,
        weights_backbone=weights_backbone,
        norm_layer=norm_layer,
        trainable_layers=trainable_layers,
        returned_layers=returned_layers,
        progress=progress,
    )
    return FasterRCNN(
        parts.backbone,
        rpn_anchor_generator=AnchorGenerator(
            _anchor_sizes_per_level(anchor_sizes, parts.feature_maps), aspect_ratios
        ),
        box_roi_pool=parts.box_roi_pool,
        box_head=parts.box_head,
        box_predictor=parts.box_predictor,
        **kwargs,
    )


def fasterrcnn_resnet50_fpn(
    *,
    weights: FasterRCNN_ResNet50_FPN_Weights | str | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | None = ResNet50_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """Build torchvision's Faster R-CNN with a ResNet-50 and a feature pyramid.

    Args:
        weights: published weights of the whole detector; they overrule `weights_backbone`.
        progress: show a progress bar while downloading.
        num_classes: number of classes, background (class 0) included. None means the number of
            the weights, or 91.
        weights_backbone: published weights of the backbone.
        trainable_backbone_layers: stages of the backbone that learn, from the last, 0 to 5. None
            means 3. Without any weights all learn.
        **kwargs: further arguments of `FasterRCNN`.

    Raises:
        ValueError: `num_classes` is not that of the weights, or a number of layers out of range.
        UserError: the weights do not exist or cannot be downloaded.

    Arguments, parameter names and results are those of
    `torchvision.models.detection.fasterrcnn_resnet50_fpn`.

    Example:
        >>> model = fasterrcnn_resnet50_fpn(weights="DEFAULT").eval()
        >>> model([torch.rand(3, 480, 640)])[0]["boxes"]  # [D, 4], pixels of the image
    """
    detector_weights = resolve_weights(weights, FasterRCNN_ResNet50_FPN_Weights)
    if detector_weights is not None:
        weights_backbone = None
        expected = len(detector_weights.meta["categories"])
        if num_classes not in (None, expected):
            raise ValueError(f"{detector_weights!r} has {expected} classes, not {num_classes}")
        num_classes = expected

    pretrained = detector_weights is not None or weights_backbone is not None
    if not pretrained and trainable_backbone_layers is not None:
        warnings.warn(
            "trainable_backbone_layers has no effect without weights: all layers will learn, "
            "as in torchvision",
            stacklevel=2,
        )
    if not pretrained:
        trainable_backbone_layers = 5
    elif trainable_backbone_layers is None:
        trainable_backbone_layers = 3
    backbone = build_fpn_backbone(
        "resnet50",
        weights=weights_backbone,
        norm_layer="frozen" if pretrained else "batch",
        trainable_layers=trainable_backbone_layers,
        progress=progress,
    )
    model = FasterRCNN(backbone, 91 if num_classes is None else num_classes, **kwargs)
    if detector_weights is not None:
        model.load_state_dict(
            fetch_state_dict(detector_weights, progress=progress, instead="weights=None")
        )
        if detector_weights == FasterRCNN_ResNet50_FPN_Weights.COCO_V1:
            # These weights were trained with a frozen batch norm that had no epsilon.
            for layer in model.modules():
                if isinstance(layer, FrozenBatchNorm2d):
                    layer.eps = 0.0
    return model


def _anchors_per_position(generator: nn.Module) -> int:
    numbers: list[int] = cast(Any, generator).num_anchors_per_location()
    if len(set(numbers)) != 1:
        raise ValueError(
            "the RPN head is shared by all levels, so each needs the same number of anchors at a "
            f"position; the anchor generator has {numbers}"
        )
    return numbers[0]


def _anchor_sizes_per_level(
    sizes: Sequence[Any] | None, maps: OrderedDict[str, FeatureMap]
) -> Sequence[Sequence[float]]:
    """Return the anchor sizes of each level; `faster_rcnn` says how they are meant."""
    strides = [feature_map.stride for feature_map in maps.values()]
    if sizes is None:
        if len(strides) > 1 and len(set(strides)) == len(strides):
            return [(8 * stride,) for stride in strides]
        return [_ANCHOR_SIZES] * len(strides)
    if len(sizes) > 0 and not isinstance(sizes[0], Sequence):
        sizes = [sizes] if len(strides) == 1 else [(size,) for size in sizes]
    if len(sizes) != len(strides):
        raise ValueError(
            f"anchor_sizes has {len(sizes)} levels, the backbone {len(strides)} (strides "
            f"{', '.join(f'{stride:g}' for stride in strides)})"
        )
    return sizes
