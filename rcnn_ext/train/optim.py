"""The optimiser, what it changes, and the learning rate of every step."""

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
    """Whether a parameter is in a part: its dotted beginning, or a regular expression for all."""
    if name == part or name.startswith(f"{part}."):
        return True
    try:
        return re.fullmatch(part, name) is not None
    except re.error as error:
        raise UserError(f"{part!r} is no part of a model and no regular expression: {error}") from (
            error
        )


def check_parts(model: nn.Module, parts: Iterable[str], key: str) -> None:
    """Checks that each part has parameters; a misspelt one would have no effect.

    Raises:
        UserError: One has none; ``key`` says where it comes from.
    """
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        if not any(belongs(name, part) for name in names):
            known = ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
            raise UserError(
                f"{key} names {part}, but no parameter fits; the model has {known}, ..."
            )


def choose_learning(
    model: nn.Module, trainable: Sequence[str] | None, freeze: Sequence[str]
) -> None:
    """Decides which parameters learn.

    Args:
        model: Its ``requires_grad`` flags are set.
        trainable: Parts that learn, while nothing else does; None leaves what the model has.
        freeze: Parts that do not, all the same.

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
            "no parameter of the model learns; raise model.trainable_layers, or freeze less"
        )


def train_mode(model: nn.Module) -> None:
    """Puts a model in training mode, but for normalisation whose parameters are all frozen.

    Its statistics would still follow the data, so that a frozen part gave changing features.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> optim.Optimizer:
    """Builds the optimiser of all parameters that learn.

    Parameters with the same learning rate and weight decay form a group; weights of two or more
    dimensions and the rest (biases, normalisation) differ in weight decay.

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
    """The options of each group without its parameters."""
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def set_options(
    optimizer: optim.Optimizer, options: Sequence[dict[str, Any]], factor: float
) -> None:
    """Gives each group its options, with the learning rate times a factor.

    All are set, since an optimiser that was loaded from a checkpoint has those of the run before,
    and a resumed run may want others.
    """
    for group, wanted in zip(optimizer.param_groups, options, strict=True):
        group.update(wanted)
        group["lr"] = wanted["lr"] * factor


def learning_rate_factor(step: int, config: ScheduleConfig) -> float:
    """What the full learning rate is multiplied by, but for plateaus.

    Args:
        step: Number of steps of the phase that are done.
        config: The schedule.

    Returns:
        A factor from 0 to 1. The warm-up multiplies the decay, so that the two join smoothly.
    """
    warmup = min(config.warmup_steps, config.steps // 5)
    factor = 1.0
    if step < warmup:
        factor = config.warmup_factor + (1 - config.warmup_factor) * step / warmup
    if config.decay == "cosine":
        part = min(1.0, step / config.steps)
        swing = 0.5 * (1 + math.cos(math.pi * part))
        factor *= config.final_factor + (1 - config.final_factor) * swing
    elif config.decay == "multistep":
        factor *= config.gamma ** bisect.bisect_right(config.milestones, step)
    return factor
