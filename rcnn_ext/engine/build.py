"""From the model section of a recipe to a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .. import models
from ..errors import UserError
from ..recipes.schema import ModelConfig

# Fields of the model section that the builders do not take.
_OWN_FIELDS = ("detector", "checkpoint_layers", "channels_last", "weights_backbone")

_BUILDERS: dict[str, Callable[..., nn.Module]] = {"faster_rcnn": models.faster_rcnn}


def build_model(config: ModelConfig, num_classes: int, *, pretrained: bool = True) -> nn.Module:
    """Builds a detector.

    Args:
        config: The model section of a recipe.
        num_classes: Number of classes, the background included.
        pretrained: Whether to fetch the weights that ``config`` names; False where a checkpoint
            follows that holds all weights.

    Raises:
        UserError: The options contradict each other, or weights cannot be fetched.
    """
    options: dict[str, Any] = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name not in _OWN_FIELDS and getattr(config, field.name) is not None
    }
    if config.weights_backbone is None:
        options.pop("trainable_layers", None)
    elif config.norm_layer == "auto":
        # Said outright, since without fetching the builder would choose as for no weights.
        options["norm_layer"] = "frozen"
    weights = config.weights_backbone if pretrained else None
    try:
        model = _BUILDERS[config.detector](
            num_classes=num_classes, weights_backbone=weights, **options
        )
    except UserError as error:
        raise UserError(
            f"{error}. On the command line that is model.weights_backbone=null"
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"the model section of the recipe does not fit together: {error}"
        ) from error
    for name in config.checkpoint_layers:
        _checkpoint_stage(model, name)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model


def _checkpoint_stage(model: nn.Module, name: str) -> None:
    """Makes one stage of the backbone compute its activations again in the backward pass."""
    body: Any = model.backbone.body  # type: ignore[union-attr]
    stage = getattr(body, name, None)
    if not isinstance(stage, nn.Module):
        known = ", ".join(child for child, _ in body.named_children())
        raise UserError(
            f"model.checkpoint_layers has {name!r}, but the backbone has the stages {known}"
        )
    forward = stage.forward
    norms = [m for m in stage.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), _without_statistics(norms)

    def checkpointed(x: torch.Tensor) -> torch.Tensor:
        if not (stage.training and torch.is_grad_enabled()):
            return forward(x)
        return checkpoint(forward, x, use_reentrant=False, context_fn=contexts)

    stage.forward = checkpointed


@contextlib.contextmanager
def _without_statistics(norms: list[Any]) -> Iterator[None]:
    """Lets batch norms run a second time on a batch without counting it twice."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, counted) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counted
