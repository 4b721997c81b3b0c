"""Localizer: one box and one class for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._api import WeightsEnum

from rcnn_ext import ops
from rcnn_ext.models.backbones import BACKBONES, NormLayer, build_c5_backbone, build_fpn_backbone
from rcnn_ext.models.box_utils import at_least_float32, image_size_tensor
from rcnn_ext.models.channels import in_channels_of
from rcnn_ext.models.checkpointing import checkpoint_stages as make_checkpointed
from rcnn_ext.models.core import PaddedDetections
from rcnn_ext.models.detector import Detector, is_compiling_only
from rcnn_ext.models.feature_maps import measure_feature_maps
from rcnn_ext.models.graph_inputs import prepare_outside
from rcnn_ext.models.inputs import (
    backbone_features,
    build_transform,
    check_labels,
    prepare_batch,
)
from rcnn_ext.models.localizer_layers import ConvBackbone, LocalizerHead, check_activation
from rcnn_ext.models.loss_normalizer import LossNormalizer, own_samples
from rcnn_ext.models.timm_backbones import PREFIX
from rcnn_ext.reference.box_coding import clip

LOCALIZER_BACKBONES = ("cnn", *BACKBONES, *(f"{name}_fpn" for name in BACKBONES))
BOX_LOSSES = ("mse", "giou")


class Localizer(Detector):
    """Find the one object of each image and its class.

    Args:
        backbone: Module from images [N, 3, H, W] to a map or a dict of maps. Maps named "pool" are
            left out.
        num_classes: Number of classes, background (class 0) included as in the detectors, although
            a localizer never predicts it.
        image_size: Height and width that every image is brought to.
        image_mean: Mean of each channel; None means ImageNet's.
        image_std: Standard deviation of each channel; None means ImageNet's.
        pool_size: The box is read from every map averaged to this height and width, since a global
            mean forgets places; the class is read from the global mean.
        hidden_channels: Length of the hidden layer of each head.
        activation: Activation of the heads, "silu" or "relu".
        dropout: Probability of dropping a hidden value of a head in training.
        batch_norm: Whether the heads normalize over the batch; training then needs two images.
        sigmoid_boxes: Whether box coordinates go through a sigmoid, which keeps them in the image
            but hardly lets them reach its border.
        alpha: Weight of the box loss; the class loss has 1 - alpha.
        box_loss: "mse" (of coordinates in units of the image's sides) or "giou" (1 - generalized
            IoU).
        class_weights: Weights of the ``num_classes - 1`` classes in the class loss; None means 1.

    Raises:
        ValueError: An argument out of range.

    Example:
        >>> model = localizer("cnn", num_classes=3, image_size=128).eval()
        >>> model([torch.rand(3, 480, 640)])[0]["boxes"]  # [1, 4], pixels of the image
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        image_size: int | tuple[int, int] = 224,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        pool_size: int = 4,
        hidden_channels: int = 256,
        activation: str = "silu",
        dropout: float = 0.3,
        batch_norm: bool = True,
        sigmoid_boxes: bool = True,
        alpha: float = 0.5,
        box_loss: str = "mse",
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                f"num_classes counts the background too and must be at least 2, got {num_classes}"
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
        if box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss must be one of {', '.join(BOX_LOSSES)}, got {box_loss!r}")
        check_activation(activation)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.transform = build_transform(
            min(height, width),
            max(height, width),
            image_mean,
            image_std,
            # torchvision takes the width first.
            {"fixed_size": (width, height), "size_divisible": 1},
            in_channels_of(backbone),
        )
        self.backbone = backbone
        channels = sum(
            feature_map.channels
            for name, feature_map in measure_feature_maps(backbone).items()
            if name != "pool"
        )
        options: dict[str, Any] = {
            "activation": activation,
            "dropout": dropout,
            "batch_norm": batch_norm,
        }
        self.class_head = LocalizerHead(channels, hidden_channels, num_classes - 1, **options)
        self.box_head = LocalizerHead(channels * pool_size**2, hidden_channels, 4, **options)
        # The first box is the middle of the image: GIoU learns little from an empty one.
        middle = torch.tensor([0.25, 0.25, 0.75, 0.75])
        with torch.no_grad():
            self.box_head.last.bias.copy_(middle.logit() if sigmoid_boxes else middle)
        self.num_classes = num_classes
        self.pool_size = pool_size
        self.batch_norm = batch_norm
        self.sigmoid_boxes = sigmoid_boxes
        self.alpha = alpha
        self.box_loss = box_loss
        self.class_weights: Tensor | None
        self.register_buffer(
            "class_weights", _class_weights(class_weights, num_classes), persistent=False
        )

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]] | None = None,
        *,
        normalizer: LossNormalizer = own_samples,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute the losses in training, find the objects in evaluation.

        Args:
            images: N images [3, H_i, W_i], floating point in [0, 1], of any sizes.
            targets: For each image ``boxes`` [1, 4] (x1, y1, x2, y2) in its pixels and ``labels``
                [1] int64, 1 or more. Needed in training.
            normalizer: Divisor of the losses, from the number of samples; ``mean_over_processes``
                where several processes share a batch.

        Returns:
            In training ``loss_classifier``, (1 - alpha) * weighted cross-entropy, and
            ``loss_box_reg``, alpha * the box loss; in evaluation, for each image, ``boxes`` [1, 4]
            in its pixels, ``labels`` [1] and ``scores`` [1], the probability of the class.

        Raises:
            ValueError: An image or a target is malformed, or has not one box; the message names it.
        """
        if is_compiling_only() and not self.training:
            return self._detect_compiled(images)
        prepare = prepare_outside if is_compiling_only() else prepare_batch
        batch, resized_targets, original_sizes = prepare(
            self.transform, images, targets, training=self.training
        )
        if self.training and self.batch_norm and len(original_sizes) == 1:
            raise ValueError(
                "a localizer with batch norm in its heads needs two images in a training batch, "
                "got 1; pass batch_norm=False or leave out the last, smaller batch"
            )
        logits, boxes = self._predict(batch.tensors)
        sizes = image_size_tensor(batch.image_sizes, like=boxes)  # [N, 2] (height, width)
        if self.training:
            assert resized_targets is not None
            sides = sizes[:, [1, 0, 1, 0]]  # [N, 4]
            return self.compute_loss(logits, boxes, resized_targets, sides, normalizer=normalizer)
        found = self._postprocess(logits, boxes, sizes)
        detections = [
            {"boxes": box, "labels": label, "scores": score}
            for box, score, label in zip(*found, strict=True)
        ]
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
        """See :meth:`rcnn_ext.models.Detector.detect_padded`; D is 1."""
        if proposals is not None or proposal_counts is not None:
            raise ValueError("a localizer takes no proposals")
        logits, boxes = self._predict(images)
        boxes, scores, labels = self._postprocess(logits, boxes, image_sizes.to(boxes.dtype))
        return boxes, scores, labels, torch.ones_like(labels[:, 0])

    def _predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, K - 1] and boxes [N, 4] in units of the image's sides."""
        features = backbone_features(self.backbone, self.to_compute(images))
        maps = [feature for name, feature in features.items() if name != "pool"]
        # [N, C_l, H_l, W_l] each -> [N, C], C the sum of C_l
        means = torch.cat([feature.mean(dim=(2, 3)) for feature in maps], dim=1)
        # [N, C_l, H_l, W_l] each -> [N, C_l * p * p] each -> [N, C * p * p]
        grids = torch.cat(
            [F.adaptive_avg_pool2d(feature, self.pool_size).flatten(1) for feature in maps], dim=1
        )
        logits = at_least_float32(self.class_head(means))  # [N, K - 1]
        boxes = at_least_float32(self.box_head(grids))  # [N, 4] in units of the image's sides
        return logits, boxes.sigmoid() if self.sigmoid_boxes else boxes

    def compute_loss(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: list[dict[str, Tensor]],
        sides: Tensor,
        *,
        normalizer: LossNormalizer = own_samples,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            logits: [N, K - 1].
            boxes: [N, 4] in units of the image's sides.
            targets: As for ``forward``, in pixels of the resized images.
            sides: [N, 4] (width, height, width, height) of the resized images.
            normalizer: As for ``forward``.

        Returns:
            ``loss_classifier`` and ``loss_box_reg``.
        """
        for i, target in enumerate(targets):
            if len(target["boxes"]) != 1:
                raise ValueError(
                    f"targets[{i}] has {len(target['boxes'])} boxes; a localizer finds exactly one "
                    "object in each image"
                )
        labels = [target["labels"] for target in targets]
        check_labels(labels, self.num_classes)
        wanted = torch.cat([target["boxes"] for target in targets]).to(boxes.dtype) / sides
        if self.box_loss == "mse":
            box_loss = F.mse_loss(boxes, wanted)
        else:
            found = _ordered(boxes)
            box_loss = 1 - ops.generalized_box_iou(found, wanted).diagonal().mean()
        classes = torch.cat(labels) - 1  # [N]
        class_loss = F.cross_entropy(logits, classes, weight=self.class_weights, reduction="sum")
        weight: float | Tensor = len(classes)
        if self.class_weights is not None:
            weight = self.class_weights[classes].sum()
        class_loss = class_loss / normalizer(weight, logits.device)
        return {
            "loss_classifier": (1 - self.alpha) * class_loss,
            "loss_box_reg": self.alpha * box_loss,
        }

    def _postprocess(
        self, logits: Tensor, boxes: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Turn predictions into one detection per image.

        Args:
            logits: [N, K - 1].
            boxes: [N, 4] in units of the image's sides.
            sizes: [N, 2] (height, width) of the resized images.

        Returns:
            Boxes [N, 1, 4] in pixels of the resized images, scores [N, 1] and labels [N, 1].
        """
        scores, classes = logits.softmax(dim=1).max(dim=1)  # [N], [N]
        boxes = clip(_ordered(boxes * sizes[:, [1, 0, 1, 0]]), sizes)
        return boxes[:, None], scores[:, None], classes[:, None] + 1


def localizer(
    backbone: str | nn.Module = "cnn",
    *,
    num_classes: int,
    weights_backbone: WeightsEnum | str | None = None,
    norm_layer: NormLayer = "auto",
    trainable_layers: int | None = None,
    checkpoint_stages: Sequence[str] = (),
    activation: str = "silu",
    in_channels: int = 3,
    progress: bool = True,
    **kwargs: Any,
) -> Localizer:
    """Build a localizer from a backbone by name.

    Args:
        backbone: "cnn" (four blocks, He initialization); "resnet18", "resnet34", "resnet50",
            "resnet101" or "mobilenet_v3_large", or "timm:NAME"; one of these with "_fpn"; or a
            module from images to a feature map or a dict of them.
        num_classes: Number of classes, background (class 0) included.
        weights_backbone: Published ImageNet weights, their name ("DEFAULT"), or None.
        norm_layer: As for ``fast_rcnn``.
        trainable_layers: As for ``fast_rcnn``.
        checkpoint_stages: As for ``fast_rcnn``.
        activation: "silu" or "relu", in the heads and in "cnn".
        in_channels: As for ``fast_rcnn``.
        progress: Show a progress bar while downloading.
        **kwargs: Further options of ``Localizer``.

    Raises:
        ValueError: An unknown or contradicting option.
        UserError: The weights do not exist or cannot be downloaded.

    Example:
        >>> localizer("resnet50_fpn", num_classes=3, weights_backbone="DEFAULT", alpha=0.7)
    """
    check_activation(activation)
    network: nn.Module
    if isinstance(backbone, nn.Module) or backbone == "cnn":
        if (weights_backbone, norm_layer, trainable_layers) != (None, "auto", None):
            raise ValueError(
                "weights_backbone, norm_layer and trainable_layers are for the networks of "
                f"torchvision; this backbone is {backbone if isinstance(backbone, str) else 'own'}"
            )
        network = ConvBackbone(activation, in_channels) if isinstance(backbone, str) else backbone
    elif backbone not in LOCALIZER_BACKBONES and not backbone.startswith(PREFIX):
        raise ValueError(
            f"there is no backbone {backbone!r}; there are {', '.join(LOCALIZER_BACKBONES)}"
        )
    else:
        name = backbone.removesuffix("_fpn")
        build = build_c5_backbone if name == backbone else build_fpn_backbone
        network = build(
            name,
            weights=weights_backbone,
            norm_layer=norm_layer,
            trainable_layers=trainable_layers,
            in_channels=in_channels,
            progress=progress,
        )
    make_checkpointed([getattr(network, "body", network)], checkpoint_stages)
    return Localizer(network, num_classes, activation=activation, **kwargs)


def _ordered(boxes: Tensor) -> Tensor:
    """Return boxes [N, 4] with x1 <= x2 and y1 <= y2: a free prediction may swap corners."""
    first, second = boxes[:, :2], boxes[:, 2:]
    return torch.cat((torch.minimum(first, second), torch.maximum(first, second)), dim=1)


def _class_weights(weights: Sequence[float] | None, num_classes: int) -> Tensor | None:
    if weights is None:
        return None
    if len(weights) != num_classes - 1 or any(not weight > 0 for weight in weights):
        raise ValueError(
            f"class_weights must be {num_classes - 1} positive numbers, one for each class but the "
            f"background, got {list(weights)}"
        )
    return torch.tensor(weights, dtype=torch.float32)
