"""Two detectors of equal weights, ours and torchvision's, that behave like trained ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torchvision.models.detection as tv
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from rcnn_ext import models

# Candidates above the score threshold in an image, as a trained detector has them.
_CANDIDATES = 600


@dataclasses.dataclass(frozen=True)
class Scale:
    """Size of the detectors and their images.

    Attributes:
        backbone: Name of the ResNet.
        num_classes: Number of classes, background included.
        height: Height of the images, pixels.
        width: Width of the images, pixels.
        min_size: Shorter side of the image that the network sees.
        max_size: Longest side that the network sees.
    """

    backbone: str = "resnet50"
    num_classes: int = 91
    height: int = 480
    width: int = 640
    min_size: int = 800
    max_size: int = 1333


SMALL = Scale("resnet18", 6, 96, 128, 96, 160)


def make_image(scale: Scale, device: torch.device, seed: int = 0) -> Tensor:
    """Draw an image [3, H, W] in [0, 1]: patches of color, so that places differ."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, scale.height // 16, scale.width // 16, generator=random)
    image = nn.functional.interpolate(coarse, size=(scale.height, scale.width), mode="bicubic")
    return image[0].clamp(0, 1).to(device)


def make_target(scale: Scale, device: torch.device, count: int = 8) -> dict[str, Tensor]:
    """Draw objects with sides of a tenth to a half of the image's."""
    random = torch.Generator().manual_seed(1)
    size = torch.tensor([scale.width, scale.height])
    sides = (0.1 + 0.4 * torch.rand(count, 2, generator=random)) * size
    corners = torch.rand(count, 2, generator=random) * (size - sides)
    labels = torch.randint(1, scale.num_classes, (count,), generator=random)
    boxes = torch.cat((corners, corners + sides), dim=1)
    return {"boxes": boxes.to(device), "labels": labels.to(device)}


def make_pair(
    scale: Scale, device: torch.device, trainable_layers: int
) -> tuple[models.FasterRCNN, nn.Module]:
    """Build Faster R-CNN with a pyramid and frozen batch norm, as from published weights.

    Args:
        scale: Size of the detectors.
        device: The device that they run on.
        trainable_layers: Number of trainable stages of the backbone.

    Returns:
        Ours and torchvision's, with equal weights, in evaluation mode.
    """
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"min_size": scale.min_size, "max_size": scale.max_size}

    def torchvisions(norm_layer: type[nn.Module], trainable: int) -> Any:
        backbone = resnet_fpn_backbone(
            backbone_name=scale.backbone,
            weights=None,
            norm_layer=norm_layer,
            trainable_layers=trainable,
        )
        return tv.FasterRCNN(backbone, scale.num_classes, **sizes)

    live = torchvisions(nn.BatchNorm2d, 5).to(device)
    calibrate(live, make_image(scale, device))
    theirs = torchvisions(FrozenBatchNorm2d, trainable_layers).to(device).eval()
    state = {k: v for k, v in live.state_dict().items() if not k.endswith("num_batches_tracked")}
    theirs.load_state_dict(state)
    ours = models.faster_rcnn(
        scale.backbone,
        num_classes=scale.num_classes,
        norm_layer="frozen",
        trainable_layers=trainable_layers,
        conventions="torchvision",
        **sizes,
    )
    ours.load_state_dict(state)
    return ours.to(device).eval(), theirs


@torch.no_grad()
def calibrate(model: Any, image: Tensor) -> None:
    """Return random weights statistics, scores and boxes spread as those of a trained model.

    With fresh weights all boxes score alike, and either none or all pass the thresholds: then
    suppression has nothing or everything to do.
    """
    calibrate_norms(model, image)
    spread(model, image, {model.rpn.head.cls_logits: 2.0, model.rpn.head.bbox_pred: 0.3})
    predictor = model.roi_heads.box_predictor
    logits = spread(model, image, {predictor.cls_score: 2.0, predictor.bbox_pred: 0.5})
    # Raise the background until about as many candidates are left as a trained model has.
    scores = logits[predictor.cls_score].clone()  # [R, K]
    low, high = 0.0, 40.0
    for _ in range(30):
        offset = (low + high) / 2
        scores[:, 0] = logits[predictor.cls_score][:, 0] + offset
        above = (scores.softmax(dim=1)[:, 1:] > model.roi_heads.score_thresh).sum()
        low, high = (offset, high) if above > _CANDIDATES else (low, offset)
    predictor.cls_score.bias[0] += high


@torch.no_grad()
def calibrate_norms(model: Any, image: Tensor) -> None:
    """Take the statistics of all batch norms of the backbone from one image."""
    batch = model.eval().transform([image])[0].tensors
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    model.backbone.train()(batch)
    model.eval()


def spread(model: Any, image: Tensor, deviations: dict[Any, float]) -> dict[Any, Tensor]:
    """Scale layers until each output channel has mean 0 and the given standard deviation.

    Returns:
        The new outputs of each layer, [positions, channels].
    """
    outputs: dict[Any, list[Tensor]] = {layer: [] for layer in deviations}
    hooks = [
        layer.register_forward_hook(lambda layer, _, output: outputs[layer].append(output))
        for layer in deviations
    ]
    model([image])
    for hook in hooks:
        hook.remove()
    spread = {}
    for layer, deviation in deviations.items():
        # [R, C], or [N, C, H, W] of several levels -> [positions, C]
        values = torch.cat([o.transpose(0, 1).flatten(1).T for o in outputs[layer]])
        gain = deviation / values.std(dim=0).clamp(min=1e-6)  # [C]
        mean = values.mean(dim=0)
        layer.bias.copy_((layer.bias - mean) * gain)
        layer.weight.mul_(gain.view(-1, *[1] * (layer.weight.dim() - 1)))
        spread[layer] = (values - mean) * gain
    return spread
