from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rcnn_ext.config import OptimizerConfig, ScheduleConfig
from rcnn_ext.errors import UserError
from rcnn_ext.train.optim import build_optimizer, learning_rate_factor, set_trainable


def test_warm_up_is_linear_and_ends_at_the_full_rate():
    config = ScheduleConfig(steps=100, warmup_steps=10, warmup_factor=0.1, decay="constant")
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[5] == pytest.approx(0.55)
    assert factors[10:] == [1.0] * 90
    steps = [second - first for first, second in zip(factors[:10], factors[1:11], strict=True)]
    assert steps == pytest.approx([0.09] * 10)


def test_cosine_ends_at_the_final_factor():
    config = ScheduleConfig(steps=100, warmup_steps=0, decay="cosine", final_factor=0.1)
    assert learning_rate_factor(0, config) == 1.0
    assert learning_rate_factor(50, config) == pytest.approx(0.55)
    assert learning_rate_factor(25, config) == pytest.approx(0.1 + 0.45 * (1 + math.sqrt(0.5)))
    assert learning_rate_factor(100, config) == pytest.approx(0.1)
    assert learning_rate_factor(120, config) == pytest.approx(0.1)


def test_milestones_multiply_from_their_own_step_on():
    config = ScheduleConfig(
        steps=100, warmup_steps=0, decay="multistep", milestones=[60, 80], gamma=0.1
    )
    rates = [learning_rate_factor(step, config) for step in (59, 60, 79, 80, 99)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


def test_the_warm_up_of_a_short_run_is_short():
    config = ScheduleConfig(steps=50, warmup_steps=500, decay="constant")
    assert learning_rate_factor(9, config) < 1
    assert learning_rate_factor(10, config) == 1
    assert learning_rate_factor(0, ScheduleConfig(steps=3, warmup_steps=500)) == 1


def test_norms_and_biases_have_a_weight_decay_of_their_own_and_frozen_ones_none():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    config = OptimizerConfig(lr=0.5, momentum=0.8, weight_decay=0.3, norm_weight_decay=0.1)
    optimizer = build_optimizer(model, config)
    assert isinstance(optimizer, torch.optim.SGD)
    decays = {
        parameter: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decays == {
        model[0].weight: 0.3,
        model[1].weight: 0.1,
        model[1].bias: 0.1,
        model[3].weight: 0.3,
        model[3].bias: 0.1,
    }
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}


def test_adamw():
    optimizer = build_optimizer(nn.Linear(2, 2), OptimizerConfig(name="adamw", lr=0.1))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_model_that_does_not_learn_is_refused():
    with pytest.raises(UserError, match="no parameter of the model is trainable"):
        set_trainable(nn.Linear(2, 2).requires_grad_(False), None, [])
