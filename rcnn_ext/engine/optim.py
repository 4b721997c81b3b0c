"""The optimiser and the learning rate of every step."""

from __future__ import annotations

import bisect
import math

from torch import nn, optim

from ..errors import UserError
from ..recipes.schema import OptimizerConfig, ScheduleConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> optim.Optimizer:
    """Builds the optimiser of all parameters that learn.

    Weights of two or more dimensions and the rest (biases, normalisation) form two groups, since
    their weight decay differs.

    Raises:
        UserError: No parameter learns.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learning:
        raise UserError("no parameter of the model learns; raise model.trainable_layers")
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": config.norm_weight_decay},
    ]
    if config.name == "sgd":
        return optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))


def learning_rate_factor(step: int, config: ScheduleConfig) -> float:
    """What the full learning rate is multiplied by.

    Args:
        step: Number of steps done.
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
