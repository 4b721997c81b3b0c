"""Detectors by name: torchvision's, with its checkpoints, and those that it has not."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

from torch import nn
from torchvision.models import MobileNet_V3_Large_Weights, ResNet50_Weights
from torchvision.models._api import WeightsEnum
from torchvision.models.detection import (
    FasterRCNN_MobileNet_V3_Large_320_FPN_Weights,
    FasterRCNN_MobileNet_V3_Large_FPN_Weights,
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
)
from torchvision.ops import FrozenBatchNorm2d

from rcnn_ext.config.model import ANCHOR_SIZES, ASPECT_RATIOS
from rcnn_ext.models.anchors import AnchorGenerator
from rcnn_ext.models.backbones import FPN_CHANNELS, build_fpn_backbone
from rcnn_ext.models.builder import conv_box_head, fast_rcnn, faster_rcnn
from rcnn_ext.models.fast_rcnn import FastRCNN
from rcnn_ext.models.faster_rcnn import FasterRCNN
from rcnn_ext.models.rpn import RPNHead
from rcnn_ext.models.weights import fetch_state_dict, resolve_weights

_COCO_CLASSES = 91

# One map has as many anchors as all levels of a pyramid: the papers' numbers.
_SINGLE_MAP_PROPOSALS = {
    "rpn_pre_nms_top_n_train": 12000,
    "rpn_pre_nms_top_n_test": 6000,
    "rpn_post_nms_top_n_train": 2000,
    "rpn_post_nms_top_n_test": 1000,
}


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
        weights: Published weights of the whole detector; they overrule ``weights_backbone``.
        progress: Show a progress bar while downloading.
        num_classes: Number of classes, background (class 0) included. None means the number of
            the weights, or 91.
        weights_backbone: Published weights of the backbone.
        trainable_backbone_layers: Number of trainable stages of the backbone, counted from the
            last, 0 to 5. None means 3. Without any weights all are trainable.
        **kwargs: Further arguments of ``FasterRCNN``.

    Raises:
        ValueError: ``num_classes`` is not that of the weights, or a number of layers out of range.
        UserError: The weights do not exist or cannot be downloaded.

    Arguments, parameter names and results are those of
    ``torchvision.models.detection.fasterrcnn_resnet50_fpn``.

    Example:
        >>> model = fasterrcnn_resnet50_fpn(weights="DEFAULT").eval()
        >>> model([torch.rand(3, 480, 640)])[0]["boxes"]  # [D, 4], pixels of the image
    """
    start = _Start.of(
        resolve_weights(weights, FasterRCNN_ResNet50_FPN_Weights),
        weights_backbone,
        num_classes,
        trainable_backbone_layers,
        num_stages=5,
    )
    backbone = build_fpn_backbone(
        "resnet50",
        weights=start.weights_backbone,
        norm_layer="frozen" if start.pretrained else "batch",
        trainable_layers=start.trainable_layers,
        progress=progress,
    )
    model = FasterRCNN(backbone, start.num_classes, **kwargs)
    start.load(model, progress)
    if start.weights == FasterRCNN_ResNet50_FPN_Weights.COCO_V1:
        # These weights were trained with a frozen batch norm that had no epsilon.
        for layer in model.modules():
            if isinstance(layer, FrozenBatchNorm2d):
                layer.eps = 0.0
    return model


def fasterrcnn_resnet50_fpn_v2(
    *,
    weights: FasterRCNN_ResNet50_FPN_V2_Weights | str | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: ResNet50_Weights | str | None = ResNet50_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """Build torchvision's improved Faster R-CNN with a ResNet-50 and a feature pyramid.

    It has live batch norm everywhere, two convolutions in the RPN, and four convolutions in the
    box head.

    Args:
        weights: As for ``fasterrcnn_resnet50_fpn``.
        progress: As for ``fasterrcnn_resnet50_fpn``.
        num_classes: As for ``fasterrcnn_resnet50_fpn``.
        weights_backbone: As for ``fasterrcnn_resnet50_fpn``.
        trainable_backbone_layers: As for ``fasterrcnn_resnet50_fpn``.
        **kwargs: Further arguments of ``FasterRCNN``.

    Raises:
        ValueError: As ``fasterrcnn_resnet50_fpn``.
        UserError: As ``fasterrcnn_resnet50_fpn``.

    Arguments, parameter names and results are those of
    ``torchvision.models.detection.fasterrcnn_resnet50_fpn_v2``.

    Source: Li et al., "Benchmarking Detection Transfer Learning with Vision Transformers", 2021.
    """
    start = _Start.of(
        resolve_weights(weights, FasterRCNN_ResNet50_FPN_V2_Weights),
        weights_backbone,
        num_classes,
        trainable_backbone_layers,
        num_stages=5,
    )
    backbone = build_fpn_backbone(
        "resnet50",
        weights=start.weights_backbone,
        norm_layer="batch",
        trainable_layers=start.trainable_layers,
        pyramid_norm_layer=nn.BatchNorm2d,
        progress=progress,
    )
    rpn_head = RPNHead(FPN_CHANNELS, len(ASPECT_RATIOS), conv_depth=2)
    box_head = conv_box_head(FPN_CHANNELS, 7)
    model = FasterRCNN(backbone, start.num_classes, rpn_head=rpn_head, box_head=box_head, **kwargs)
    start.load(model, progress)
    return model


def fasterrcnn_mobilenet_v3_large_fpn(
    *,
    weights: FasterRCNN_MobileNet_V3_Large_FPN_Weights | str | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: MobileNet_V3_Large_Weights
    | str
    | None = MobileNet_V3_Large_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """Build torchvision's Faster R-CNN with a MobileNetV3-Large and a feature pyramid.

    Args:
        weights: As for ``fasterrcnn_resnet50_fpn``.
        progress: As for ``fasterrcnn_resnet50_fpn``.
        num_classes: As for ``fasterrcnn_resnet50_fpn``.
        weights_backbone: As for ``fasterrcnn_resnet50_fpn``.
        trainable_backbone_layers: Number of trainable stages of the backbone, counted from the
            last, 0 to 6. None means 3. Without any weights all are trainable.
        **kwargs: Further arguments of ``FasterRCNN``.

    Raises:
        ValueError: As ``fasterrcnn_resnet50_fpn``.
        UserError: As ``fasterrcnn_resnet50_fpn``.

    Arguments, parameter names and results are those of
    ``torchvision.models.detection.fasterrcnn_mobilenet_v3_large_fpn``.
    """
    return _mobilenet_detector(
        resolve_weights(weights, FasterRCNN_MobileNet_V3_Large_FPN_Weights),
        weights_backbone,
        num_classes,
        trainable_backbone_layers,
        progress,
        {"rpn_score_thresh": 0.05, **kwargs},
    )


def fasterrcnn_mobilenet_v3_large_320_fpn(
    *,
    weights: FasterRCNN_MobileNet_V3_Large_320_FPN_Weights | str | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: MobileNet_V3_Large_Weights
    | str
    | None = MobileNet_V3_Large_Weights.IMAGENET1K_V1,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """Build ``fasterrcnn_mobilenet_v3_large_fpn`` for images of 320 pixels, for phones.

    Args:
        weights: As for ``fasterrcnn_resnet50_fpn``.
        progress: As for ``fasterrcnn_resnet50_fpn``.
        num_classes: As for ``fasterrcnn_resnet50_fpn``.
        weights_backbone: As for ``fasterrcnn_resnet50_fpn``.
        trainable_backbone_layers: As for ``fasterrcnn_mobilenet_v3_large_fpn``.
        **kwargs: Further arguments of ``FasterRCNN``.

    Raises:
        ValueError: As ``fasterrcnn_resnet50_fpn``.
        UserError: As ``fasterrcnn_resnet50_fpn``.

    Arguments, parameter names and results are those of
    ``torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn``.
    """
    defaults = {
        "min_size": 320,
        "max_size": 640,
        "rpn_pre_nms_top_n_test": 150,
        "rpn_post_nms_top_n_test": 150,
        "rpn_score_thresh": 0.05,
    }
    return _mobilenet_detector(
        resolve_weights(weights, FasterRCNN_MobileNet_V3_Large_320_FPN_Weights),
        weights_backbone,
        num_classes,
        trainable_backbone_layers,
        progress,
        {**defaults, **kwargs},
    )


def fasterrcnn_resnet50_c4(**options: Any) -> FasterRCNN:
    """Build the Faster R-CNN of He et al.: ResNet-50 cut at stride 16, layer4 on each RoI.

    Args:
        **options: ``num_classes``, ``weights_backbone`` ("DEFAULT" here),
            ``trainable_backbone_layers`` and ``progress`` as for ``fasterrcnn_resnet50_fpn``, and
            further options of ``faster_rcnn``.

    Raises:
        ValueError: An unknown or contradicting option.
        UserError: The weights do not exist or cannot be downloaded.
    """
    defaults = {"neck": "c4", "pool_size": 14, **_SINGLE_MAP_PROPOSALS}
    return faster_rcnn("resnet50", **_with_backbone_weights({**defaults, **options}))


def fasterrcnn_resnet50_c5_roipool(**options: Any) -> FasterRCNN:
    """Build a Faster R-CNN on a ResNet-50 without its last two layers (stride 32), with RoIPool.

    Args:
        **options: As for ``fasterrcnn_resnet50_c4``.

    Raises:
        ValueError: An unknown or contradicting option.
        UserError: The weights do not exist or cannot be downloaded.
    """
    defaults = {"neck": "c5", "pooler": "pool", **_SINGLE_MAP_PROPOSALS}
    return faster_rcnn("resnet50", **_with_backbone_weights({**defaults, **options}))


def fastrcnn_resnet50_fpn(**options: Any) -> FastRCNN:
    """Build a Fast R-CNN with a ResNet-50 and a feature pyramid.

    Args:
        **options: As for ``fasterrcnn_resnet50_c4``, the further ones those of ``fast_rcnn``.

    Raises:
        ValueError: An unknown or contradicting option.
        UserError: The weights do not exist or cannot be downloaded.
    """
    return fast_rcnn("resnet50", **_with_backbone_weights({"neck": "fpn", **options}))


def fastrcnn_resnet50_c4(**options: Any) -> FastRCNN:
    """Build a Fast R-CNN on a ResNet-50 cut at stride 16, with layer4 on each RoI.

    Args:
        **options: As for ``fastrcnn_resnet50_fpn``.

    Raises:
        ValueError: An unknown or contradicting option.
        UserError: The weights do not exist or cannot be downloaded.
    """
    defaults = {"neck": "c4", "pool_size": 14}
    return fast_rcnn("resnet50", **_with_backbone_weights({**defaults, **options}))


def _mobilenet_detector(
    weights: WeightsEnum | None,
    weights_backbone: WeightsEnum | str | None,
    num_classes: int | None,
    trainable_backbone_layers: int | None,
    progress: bool,
    options: dict[str, Any],
) -> FasterRCNN:
    start = _Start.of(
        weights, weights_backbone, num_classes, trainable_backbone_layers, num_stages=6
    )
    backbone = build_fpn_backbone(
        "mobilenet_v3_large",
        weights=start.weights_backbone,
        norm_layer="frozen" if start.pretrained else "batch",
        trainable_layers=start.trainable_layers,
        progress=progress,
    )
    # Two levels of stride 32 and the pooled one: all sizes on each.
    anchors = AnchorGenerator((ANCHOR_SIZES,) * 3, (ASPECT_RATIOS,) * 3, strides="floor")
    model = FasterRCNN(backbone, start.num_classes, rpn_anchor_generator=anchors, **options)
    start.load(model, progress)
    return model


def _with_backbone_weights(options: dict[str, Any]) -> dict[str, Any]:
    """Translate the options that presets share into those of the builders."""
    start = _Start.of(
        None,
        options.pop("weights_backbone", ResNet50_Weights.IMAGENET1K_V1),
        options.pop("num_classes", None),
        options.pop("trainable_backbone_layers", None),
        num_stages=5,
    )
    return {
        **options,
        "num_classes": start.num_classes,
        "weights_backbone": start.weights_backbone,
        "trainable_layers": start.trainable_layers,
    }


class _Start(NamedTuple):
    """The weights and trainable layers that a preset starts from, by torchvision's rules."""

    weights: WeightsEnum | None
    weights_backbone: WeightsEnum | str | None
    num_classes: int
    trainable_layers: int

    @classmethod
    def of(
        cls,
        weights: WeightsEnum | None,
        weights_backbone: WeightsEnum | str | None,
        num_classes: int | None,
        trainable_layers: int | None,
        *,
        num_stages: int,
    ) -> _Start:
        """Apply the rules; ``num_stages`` is the number of all stages."""
        if weights is not None:
            weights_backbone = None
            expected = len(weights.meta["categories"])
            if num_classes not in (None, expected):
                raise ValueError(f"{weights!r} has {expected} classes, not {num_classes}")
            num_classes = expected
        if weights is None and weights_backbone is None:
            if trainable_layers is not None:
                warnings.warn(
                    "trainable_backbone_layers has no effect without weights: all layers are "
                    "trainable, as in torchvision",
                    stacklevel=3,
                )
            trainable_layers = num_stages
        elif trainable_layers is None:
            trainable_layers = 3
        return cls(
            weights,
            weights_backbone,
            _COCO_CLASSES if num_classes is None else num_classes,
            trainable_layers,
        )

    @property
    def pretrained(self) -> bool:
        """Whether any published weights are used."""
        return self.weights is not None or self.weights_backbone is not None

    def load(self, model: nn.Module, progress: bool) -> None:
        """Load the weights of the whole detector, if there are any."""
        if self.weights is not None:
            model.load_state_dict(
                fetch_state_dict(self.weights, progress=progress, instead="weights=None")
            )
