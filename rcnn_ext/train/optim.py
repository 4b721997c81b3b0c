"""Trainable parameters, the optimizer, and the learning rate of every step."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn, optim

from rcnn_ext.config import OptimizerConfig, ScheduleConfig
from rcnn_ext.errors import UserError


def belongs(name: str, part: str) -> bool:
    """Whether a part, a dotted prefix or a regular expression, matches a parameter's name."""
    if name == part or name.startswith(f"{part}."):
        return True
    try:
        return re.fullmatch(part, name) is not None
    except re.error as error:
        raise UserError(f"{part!r} is no part of a model and no regular expression: {error}") from (
            error
        )


def check_parts(model: nn.Module, parts: Iterable[str], key: str) -> None:
    """Check that each part has parameters, since a misspelled one would have no effect.

    Raises:
        UserError: One has none; ``key`` is the key of the recipe that names it.
    """
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        if not any(belongs(name, part) for name in names):
            known = ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
            raise UserError(
                f"{key} names {part}, but no parameter fits; the model has {known}, ..."
            )


def set_trainable(model: nn.Module, trainable: Sequence[str] | None, freeze: Sequence[str]) -> None:
    """Set which parameters require gradients, in place.

    Args:
        model: The model.
        trainable: The only parts that are trained; None keeps those of the model.
        freeze: Parts that are not trained in any case.

    Raises:
        UserError: A part fits no parameter, or no parameter is left.
    """
    check_parts(model, trainable or (), "trainable")
    check_parts(model, freeze, "optimizer.freeze")
    for name, parameter in model.named_parameters():
        if trainable is not None:
            parameter.requires_grad_(any(belongs(name, part) for part in trainable))
        if any(belongs(name, part) for part in freeze):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "no parameter of the model is trainable; raise model.trainable_layers, or freeze less"
        )


def train_mode(model: nn.Module) -> None:
    """Put a model in training mode, except batch norm whose parameters are all frozen.

    Its running statistics would still follow the data and change the features of a frozen part.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> optim.Optimizer:
    """Build the optimizer of all trainable parameters.

    Parameters with the same learning rate and weight decay form a group; weights of two or more
    dimensions and the rest (biases, normalization) differ in weight decay.

    Raises:
        UserError: A part with a learning rate of its own does not exist.
    """
    check_parts(model, config.lr_overrides, "optimizer.lr_overrides")
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = (rate for part, rate in config.lr_overrides.items() if belongs(name, part))
        key = next(own, config.lr), parameter.ndim >= 2
        decay = config.weight_decay if key[1] else config.norm_weight_decay
        group = groups.setdefault(key, {"params": [], "lr": key[0], "weight_decay": decay})
        group["params"].append(parameter)
    if config.name == "sgd":
        return optim.SGD(list(groups.values()), lr=config.lr, momentum=config.momentum)
    return optim.AdamW(list(groups.values()), lr=config.lr, betas=(config.momentum, 0.999))


def group_options(optimizer: optim.Optimizer) -> list[dict[str, Any]]:
    """Return the options of each parameter group."""
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def set_options(
    optimizer: optim.Optimizer, options: Sequence[dict[str, Any]], factor: float
) -> None:
    """Set the options of each parameter group, with the learning rate times a factor.

    All are set, since an optimizer loaded from a checkpoint has those of the earlier run, and a
    resumed run may want others.
    """
    for group, wanted in zip(optimizer.param_groups, options, strict=True):
        group.update(wanted)
        group["lr"] = wanted["lr"] * factor


def learning_rate_factor(step: int, config: ScheduleConfig) -> float:
    """Return the factor of the full learning rate, without decays at plateaus.

    Args:
        step: Number of steps of the phase that are done.
        config: Schedule section of the recipe.

    Returns:
        A factor from 0 to 1. The warm-up multiplies the decay, so that the two join smoothly.
    """
    warmup = min(config.warmup_steps, config.num_steps // 5)
    factor = 1.0
    if step < warmup:
        factor = config.warmup_factor + (1 - config.warmup_factor) * step / warmup
    if config.decay == "cosine":
        part = min(1.0, step / config.num_steps)
        swing = 0.5 * (1 + math.cos(math.pi * part))
        factor *= config.final_factor + (1 - config.final_factor) * swing
    elif config.decay == "multistep":
        factor *= config.gamma ** bisect.bisect_right(config.milestones, step)
    return factor
