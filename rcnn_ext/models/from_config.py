"""From the model section of a recipe to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from rcnn_ext import models
from rcnn_ext.config import ModelConfig
from rcnn_ext.errors import UserError

# Fields of the model section that the builders do not take, or not by this name.
_OWN_FIELDS = (
    "detector",
    "weights",
    "checkpoint_stages",
    "channels_last",
    "weights_backbone",
    "localizer",
)

# torchvision's choice for pretrained networks.
_TRAINABLE_WITH_WEIGHTS = 3

# Fields that a localizer shares with detectors.
_LOCALIZER_FIELDS = (
    "backbone",
    "in_channels",
    "trainable_layers",
    "norm_layer",
    "image_mean",
    "image_std",
    "pool_size",
    "dropout",
)

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "fast_rcnn": models.fast_rcnn,
    "faster_rcnn": models.faster_rcnn,
    "localizer": models.localizer,
}


def build_model(config: ModelConfig, num_classes: int, *, pretrained: bool = True) -> nn.Module:
    """Build a detector.

    Args:
        config: The model section of a recipe.
        num_classes: Number of classes, the background included.
        pretrained: Whether to fetch the weights of the backbone that ``config`` names; False where
            a checkpoint follows that holds all weights. Those of a whole detector (``weights``)
            take the place of the backbone's, and are left to the caller.

    Raises:
        UserError: The options contradict each other, or weights cannot be fetched.
    """
    options: dict[str, Any] = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name not in _OWN_FIELDS and getattr(config, field.name) is not None
    }
    if config.detector == "localizer":
        options = _localizer_options(config, options)
    if config.weights_backbone is None and config.weights is None:
        options.pop("trainable_layers", None)
    else:
        # Said outright, since without fetching the builder would choose as for no weights.
        if config.norm_layer == "auto":
            options["norm_layer"] = "frozen"
        if config.backbone.removesuffix("_fpn") in models.BACKBONES:
            options.setdefault("trainable_layers", _TRAINABLE_WITH_WEIGHTS)
    weights = config.weights_backbone if pretrained and config.weights is None else None
    try:
        model = _BUILDERS[config.detector](
            num_classes=num_classes,
            weights_backbone=weights,
            checkpoint_stages=config.checkpoint_stages,
            **options,
        )
    except UserError as error:
        raise UserError(
            f"{error}. On the command line that is model.weights_backbone=null"
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"the model section of the recipe does not fit together: {error}"
        ) from error
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model


def _localizer_options(config: ModelConfig, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a localizer; ``options`` are those of any model."""
    defaults = ModelConfig()
    for name in options:
        foreign = name not in (*_LOCALIZER_FIELDS, "fixed_size")
        if foreign and getattr(config, name) != getattr(defaults, name):
            raise UserError(f"a localizer has no model.{name}")
    chosen = {name: options[name] for name in _LOCALIZER_FIELDS if name in options}
    chosen |= {
        field.name: getattr(config.localizer, field.name) for field in fields(config.localizer)
    }
    if config.fixed_size is not None:
        width, height = config.fixed_size
        chosen["image_size"] = (height, width)
    return chosen
