"""``fast_rcnn`` and ``faster_rcnn``: detectors from options by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, cast

from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead

from rcnn_ext import ops
from rcnn_ext.config.model import ANCHOR_SIZES, ASPECT_RATIOS, PartsConfig
from rcnn_ext.models.anchors import AnchorGenerator
from rcnn_ext.models.backbones import (
    FPN_CHANNELS,
    PyramidBackbone,
    build_c4_backbone,
    build_c5_backbone,
    build_fpn_backbone,
    move_strides,
    remove_strides,
)
from rcnn_ext.models.box_heads import FastRCNNPredictor, Res5Head, TwoMLPHead
from rcnn_ext.models.checkpointing import checkpoint_stages
from rcnn_ext.models.fast_rcnn import FastRCNN
from rcnn_ext.models.faster_rcnn import FasterRCNN, anchors_per_position
from rcnn_ext.models.feature_maps import FeatureMap, measure_feature_maps, out_channels_of
from rcnn_ext.models.poolers import RoIPooler
from rcnn_ext.models.rpn import RPNHead

_MLP_CHANNELS = 1024


# The options are `Any`: a TypedDict of those of PartsConfig would make type checkers refuse those
# of the detectors, which are passed through. One that is open to more keys needs PEP 728.
def fast_rcnn(
    backbone: str | nn.Module = "resnet50",
    *,
    num_classes: int,
    progress: bool = True,
    **options: Any,
) -> FastRCNN:
    """Build a Fast R-CNN.

    Args:
        backbone: "resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v3_large" or
            "timm:NAME"; or any module from images [N, 3, H, W] to a feature map or a dict of them,
            finest first. Its channels and strides are measured; for images of other channels it
            needs an attribute ``in_channels``.
        num_classes: Number of classes, background (class 0) included.
        progress: Whether to show a progress bar while downloading.
        **options: The options of :class:`rcnn_ext.config.PartsConfig`: ``neck``, ``head``,
            ``pooler``, ``pool_size``, ``sampling_ratio``, ``class_agnostic``, ``dropout``,
            ``fpn_batch_norm``, ``stride_in_1x1``, ``conventions``, ``in_channels``,
            ``weights_backbone``, ``norm_layer``, ``trainable_layers``, ``returned_layers`` and
            ``checkpoint_stages``; and those of :class:`FastRCNN` but its modules: ``min_size``,
            ``max_size``, ``box_...``, ``bbox_...``.

    Raises:
        TypeError: An unknown option.
        ValueError: Contradicting options.
        UserError: The weights do not exist or cannot be downloaded.

    Example:
        >>> model = fast_rcnn("resnet50", num_classes=21, class_agnostic=True).eval()
        >>> model([image], [proposals])[0]["boxes"]  # [D, 4], pixels of the image
    """
    options = {"neck": "c4" if isinstance(backbone, str) else None, **_without_none(options)}
    parts, others = _split_options(options)
    for name in ("anchor_sizes", "aspect_ratios", "rpn_conv_depth"):
        if name in options and getattr(parts, name) != getattr(PartsConfig(), name):
            raise TypeError(f"fast_rcnn() has no anchors, got {name}")
    built = _build_parts(backbone, parts, num_classes=num_classes, progress=progress)
    return FastRCNN(
        built.backbone,
        box_roi_pool=built.box_roi_pool,
        box_head=built.box_head,
        box_predictor=built.box_predictor,
        **others,
    )


def faster_rcnn(
    backbone: str | nn.Module = "resnet50",
    *,
    num_classes: int,
    progress: bool = True,
    **options: Any,
) -> FasterRCNN:
    """Build a Faster R-CNN.

    Args:
        backbone: As for :func:`fast_rcnn`.
        num_classes: Number of classes, background (class 0) included.
        progress: Whether to show a progress bar while downloading.
        **options: The options of :class:`rcnn_ext.config.PartsConfig`: those of :func:`fast_rcnn`,
            where ``neck`` is "fpn" for a backbone by name, and ``rpn_conv_depth``, ``anchor_sizes``
            and ``aspect_ratios``; and those of :class:`FasterRCNN` but its modules: ``min_size``,
            ``max_size``, ``rpn_...``, ``box_...``, ``bbox_...``.

    Raises:
        TypeError: An unknown option.
        ValueError: Contradicting options.
        UserError: The weights do not exist or cannot be downloaded.

    Example:
        >>> faster_rcnn("resnet18", num_classes=4, min_size=128, max_size=128,
        ...             anchor_sizes=(8, 16, 32, 64, 128))
    """
    options = {"neck": "fpn" if isinstance(backbone, str) else None, **_without_none(options)}
    parts, others = _split_options(options)
    built = _build_parts(backbone, parts, num_classes=num_classes, progress=progress)
    strides = [feature_map.stride for feature_map in built.feature_maps.values()]
    anchors = AnchorGenerator(
        _anchor_sizes_per_level(parts.anchor_sizes, built.feature_maps),
        ASPECT_RATIOS if parts.aspect_ratios is None else parts.aspect_ratios,
        whole_pixels=parts.conventions != "detectron2",
        strides="floor" if parts.conventions == "torchvision" else strides,
    )
    rpn_head = None
    if parts.rpn_conv_depth > 1:
        rpn_head = RPNHead(
            out_channels_of(built.backbone), anchors_per_position(anchors), parts.rpn_conv_depth
        )
    return FasterRCNN(
        built.backbone,
        rpn_anchor_generator=anchors,
        rpn_head=rpn_head,
        box_roi_pool=built.box_roi_pool,
        box_head=built.box_head,
        box_predictor=built.box_predictor,
        **others,
    )


class _Parts(NamedTuple):
    """A backbone, its feature maps, and what a RoI goes through."""

    backbone: nn.Module
    feature_maps: OrderedDict[str, FeatureMap]
    box_roi_pool: nn.Module
    box_head: nn.Module
    box_predictor: nn.Module


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are given; None stands for a default everywhere."""
    return {name: value for name, value in options.items() if value is not None}


def _split_options(options: dict[str, Any]) -> tuple[PartsConfig, dict[str, Any]]:
    """Separate the options of a detector's parts from those of its class."""
    names = {field.name for field in fields(PartsConfig)}
    own = {name: value for name, value in options.items() if name in names}
    return PartsConfig(**own), {k: v for k, v in options.items() if k not in names}


def _build_parts(
    backbone: str | nn.Module, parts: PartsConfig, *, num_classes: int, progress: bool
) -> _Parts:
    """Build the parts of a detector.

    Raises:
        ValueError: Contradicting options.
        UserError: The weights do not exist or cannot be downloaded.
    """
    neck = parts.neck
    if parts.returned_layers is not None and neck != "fpn":
        raise ValueError(
            f"returned_layers chooses the levels of neck='fpn'; the neck is {neck!r} here"
        )

    pyramid_norm = nn.BatchNorm2d if parts.fpn_batch_norm else None
    if parts.fpn_batch_norm and neck != "fpn":
        raise ValueError(f"fpn_batch_norm is for neck='fpn'; the neck is {neck!r} here")
    network: nn.Module
    stage: nn.Sequential | None = None  # what a "res5" head is made of
    if isinstance(backbone, nn.Module):
        by_name = (parts.weights_backbone, parts.norm_layer, parts.trainable_layers)
        if (*by_name, parts.returned_layers) != (None, "auto", None, None):
            raise ValueError(
                "weights_backbone, norm_layer, trainable_layers and returned_layers are for "
                "backbones by name; this one is a module"
            )
        if parts.in_channels != 3:
            backbone.in_channels = parts.in_channels  # type: ignore[assignment]
        network = _own_backbone(backbone, neck, pyramid_norm)
    else:
        options: dict[str, Any] = {
            "weights": parts.weights_backbone,
            "norm_layer": parts.norm_layer,
            "trainable_layers": parts.trainable_layers,
            "in_channels": parts.in_channels,
            "progress": progress,
        }
        if neck == "fpn":
            network = build_fpn_backbone(
                backbone,
                returned_layers=parts.returned_layers,
                pyramid_norm_layer=pyramid_norm,
                **options,
            )
        elif neck == "c5":
            network = build_c5_backbone(backbone, **options)
        else:
            network, stage = build_c4_backbone(backbone, **options)

    if parts.stride_in_1x1:
        for part in (network, stage):
            move_strides(part)
    # The strides are measured here, so that no spatial scale is ever typed in.
    feature_maps = measure_feature_maps(network)
    pool_size = 7 if parts.pool_size is None else parts.pool_size
    like_detectron2 = parts.conventions == "detectron2"
    sampling_ratio = parts.sampling_ratio
    if sampling_ratio is None:
        sampling_ratio = 0 if like_detectron2 else 2
    box_roi_pool = _pooler(network, feature_maps, parts.pooler, pool_size, sampling_ratio)
    if like_detectron2 and isinstance(box_roi_pool, ops.MultiScaleRoIAlign):
        box_roi_pool.aligned = True

    box_head: nn.Module
    channels = out_channels_of(network)
    head = parts.head or ("mlp" if stage is None else "res5")
    if head == "mlp":
        box_head = TwoMLPHead(channels * pool_size**2, _MLP_CHANNELS, parts.dropout)
    elif head == "conv":
        box_head = conv_box_head(channels, pool_size)
        if parts.dropout:
            raise ValueError("head='conv' has no dropout")
    elif stage is None:
        raise ValueError(
            "head='res5' is the last stage of a backbone cut at stride 16: it goes with a backbone "
            f"by name and neck='c4', got neck={neck!r}"
        )
    else:
        if pool_size < 14:
            remove_strides(stage)
        box_head = Res5Head(stage, channels, parts.dropout)
    width = cast(int, getattr(box_head, "out_channels", _MLP_CHANNELS))
    predictor = FastRCNNPredictor(width, num_classes, parts.class_agnostic)

    body = getattr(network, "body", network)
    in_head = [box_head.stage] if isinstance(box_head, Res5Head) else []
    checkpoint_stages([body, *in_head], parts.checkpoint_stages)
    return _Parts(network, feature_maps, box_roi_pool, box_head, predictor)


def conv_box_head(channels: int, pool_size: int) -> FastRCNNConvFCHead:
    """Return the box head of torchvision's v2: four convolutions with batch norm, one linear layer.

    Args:
        channels: Channels of the pooled features.
        pool_size: Their height and width.
    """
    return FastRCNNConvFCHead(
        (channels, pool_size, pool_size),
        [FPN_CHANNELS] * 4,
        [_MLP_CHANNELS],
        norm_layer=nn.BatchNorm2d,
    )


def _own_backbone(
    backbone: nn.Module, neck: str | None, pyramid_norm: Callable[..., nn.Module] | None
) -> nn.Module:
    """Put a pyramid on a user's backbone if asked to, and see that it says its channels."""
    if neck not in (None, "fpn"):
        raise ValueError(
            f"neck={neck!r} cuts a backbone by name; a module is taken as it is, or with neck='fpn'"
        )
    feature_maps = measure_feature_maps(backbone)
    if neck == "fpn":
        return PyramidBackbone(backbone, feature_maps, pyramid_norm)
    channels = {feature_map.channels for feature_map in feature_maps.values()}
    if len(channels) > 1:
        raise ValueError(
            f"the feature maps of the backbone have {sorted(channels)} channels; heads need the "
            "same number in each, which neck='fpn' provides"
        )
    if not hasattr(backbone, "out_channels"):
        backbone.out_channels = channels.pop()  # type: ignore[assignment]
    return backbone


def _pooler(
    network: nn.Module,
    feature_maps: OrderedDict[str, FeatureMap],
    kind: str,
    pool_size: int,
    sampling_ratio: int,
) -> nn.Module:
    if len(feature_maps) == 1:
        return RoIPooler(network, kind, pool_size, sampling_ratio)
    if kind != "align":
        raise ValueError(
            f"a pyramid goes with pooler='align', got pooler={kind!r}; RoIPool takes the one map "
            "of neck='c4' or 'c5'"
        )
    # "pool" is for the anchors of the largest objects only.
    levels = [name for name in feature_maps if name != "pool"]
    return ops.MultiScaleRoIAlign(levels, pool_size, sampling_ratio)


def _anchor_sizes_per_level(
    sizes: Sequence[Any] | None, maps: OrderedDict[str, FeatureMap]
) -> Sequence[Sequence[float]]:
    """Return the anchor sizes of each level; ``faster_rcnn`` says how they are meant."""
    strides = [feature_map.stride for feature_map in maps.values()]
    if sizes is None:
        if len(strides) > 1 and len(set(strides)) == len(strides):
            return [(8 * stride,) for stride in strides]
        return [ANCHOR_SIZES] * len(strides)
    if len(sizes) > 0 and not isinstance(sizes[0], Sequence):
        sizes = [sizes] if len(strides) == 1 else [(size,) for size in sizes]
    if len(sizes) != len(strides):
        raise ValueError(
            f"anchor_sizes has {len(sizes)} levels, the backbone {len(strides)} (strides "
            f"{', '.join(f'{stride:g}' for stride in strides)})"
        )
    return sizes
