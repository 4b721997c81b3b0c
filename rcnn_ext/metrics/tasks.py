"""Call a model of any kind, and compute the metrics of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rcnn_ext.data.annotations import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.metrics.coco import DEFAULT_MAX_DETECTIONS, EvaluationResult, detection_metrics
from rcnn_ext.metrics.results import ImageResult
from rcnn_ext.models import Localizer
from rcnn_ext.models.fast_rcnn import needs_proposals
from rcnn_ext.models.loss_normalizer import LossNormalizer, own_samples

# The entry of a target that holds boxes for Fast R-CNN, [P, 4] in pixels of the image.
PROPOSALS = "proposals"


def call_model(
    model: nn.Module,
    images: Sequence[torch.Tensor],
    targets: Sequence[dict[str, Any]],
    *,
    normalizer: LossNormalizer = own_samples,
) -> Any:
    """Call a model with the inputs of its kind.

    Args:
        model: In training or evaluation mode.
        images: N images.
        targets: The target of each image, which models use in training only. The proposals of
            models that need them are entries of it, in evaluation too.
        normalizer: Divisor of the losses in training, from the number of samples.

    Returns:
        The losses by name, or the detections of each image.

    Raises:
        UserError: The model needs proposals and the data have none.
    """
    arguments: list[Any] = [images]
    if needs_proposals(model):
        if any(PROPOSALS not in target for target in targets):
            raise UserError("this model needs proposals, and the data bring none")
        arguments.append([target[PROPOSALS] for target in targets])
    if model.training:
        return model(*arguments, targets, normalizer=normalizer)
    return model(*arguments)


def compute_metrics(
    model: nn.Module,
    results: Sequence[ImageResult],
    classes: ClassList,
    max_detections: int | None = None,
) -> EvaluationResult:
    """Compute the metrics of a kind of model.

    Args:
        model: A detector or a localizer, or a program of one.
        results: Images with their detections.
        classes: The classes of the model.
        max_detections: Maximum number of detections of a class in an image that COCO's metrics
            count; None means 100. Localizers have none of these metrics.
    """
    if is_localizer(model):
        from rcnn_ext.metrics.localization import localization_metrics

        return localization_metrics(results, classes)
    return detection_metrics(results, classes, max_detections or DEFAULT_MAX_DETECTIONS)


def is_localizer(model: nn.Module) -> bool:
    """Return whether a model, or the program of one, finds one object per image."""
    return isinstance(model, Localizer) or bool(getattr(model, "localizes", False))
