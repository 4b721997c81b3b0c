"""torchvision's five families of detectors, calibrated to behave like trained ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision.models.detection as tv
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from rcnn_ext.bench.model_pair import Scale, calibrate, calibrate_norms, spread

# Of the classes' logits, so that some hundred candidates pass the thresholds.
_MEAN, _DEVIATION = -5.0, 1.0


def _backbone(scale: Scale, one_stage: bool) -> Any:
    extra = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    return resnet_fpn_backbone(
        backbone_name=scale.backbone,
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=3,
        **(extra if one_stage else {}),
    )


def _two_stage(kind: Callable[..., Any]) -> Callable[[Scale, Tensor], Any]:
    def make(scale: Scale, image: Tensor) -> Any:
        sizes = {"min_size": scale.min_size, "max_size": scale.max_size}
        model = kind(_backbone(scale, False), scale.num_classes, **sizes)
        calibrate(model, image)
        return model

    return make


def _one_stage(kind: Callable[..., Any]) -> Callable[[Scale, Tensor], Any]:
    def make(scale: Scale, image: Tensor) -> Any:
        options: dict[str, Any] = {"min_size": scale.min_size, "max_size": scale.max_size}
        # RetinaNet's; that of FCOS, 0.2, no score of weights at random reaches.
        options["score_thresh"] = 0.05
        model = kind(_backbone(scale, True), scale.num_classes, **options)
        calibrate_norms(model, image)
        _calibrate_classes(model, image, [model.head.classification_head.cls_logits])
        return model

    return make


def _ssd(scale: Scale, image: Tensor) -> Any:
    model = tv.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=scale.num_classes)
    layers = list(model.head.classification_head.module_list)
    _calibrate_classes(model, image, layers[:-1])  # the last one has a single position
    with torch.no_grad():
        for layer in layers:
            layer.bias.view(-1, scale.num_classes)[:, 0] += 8.0  # the background, of a softmax
    return model


@torch.no_grad()
def _calibrate_classes(model: Any, image: Tensor, layers: list[Any]) -> None:
    spread(model.eval(), image, dict.fromkeys(layers, _DEVIATION))
    for layer in layers:
        layer.bias += _MEAN


MAKERS: dict[str, tuple[str, Callable[[Scale, Tensor], Any]]] = {
    "faster_rcnn": ("Faster R-CNN", _two_stage(tv.FasterRCNN)),
    "mask_rcnn": ("Mask R-CNN", _two_stage(tv.MaskRCNN)),
    "retinanet": ("RetinaNet", _one_stage(tv.RetinaNet)),
    "fcos": ("FCOS", _one_stage(tv.FCOS)),
    "ssd": ("SSD300 VGG-16", _ssd),
}


def make_client(name: str, scale: Scale, image: Tensor) -> Any:
    """Make a detector of a family, with weights from a fixed seed, on the device of the image."""
    torch.manual_seed(0)
    _, make = MAKERS[name]
    model: Any = make(scale, image.cpu()).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.0  # every step starts from equal statistics
    return model.to(image.device)
