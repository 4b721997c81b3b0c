"""Which parts learn, how fast, and what a run makes of its validations."""

from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

from rcnn_ext.config import EvaluationConfig, OptimizerConfig, ScheduleConfig, load_recipe
from rcnn_ext.errors import UserError
from rcnn_ext.train.optim import (
    build_optimizer,
    group_options,
    set_options,
    set_trainable,
    train_mode,
)
from rcnn_ext.train.phases import RunState, all_phases


def model():
    return nn.Sequential(
        OrderedDict(
            body=nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
            body2=nn.Conv2d(4, 4, 3),
            head=nn.Sequential(nn.Flatten(), nn.Linear(16, 2)),
        )
    )


def learning(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def rates(network, optimizer):
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {
        names[parameter]: group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_parts_are_dotted_beginnings_or_regular_expressions():
    network = model()
    set_trainable(network, None, ["body"])
    assert learning(network) == {"body2.weight", "body2.bias", "head.1.weight", "head.1.bias"}
    set_trainable(network, None, [".*bias"])
    assert learning(network) == {"body2.weight", "head.1.weight"}
    set_trainable(network, ["head", "body.1"], ["head.1.bias"])
    assert learning(network) == {"head.1.weight", "body.1.weight", "body.1.bias"}


def test_the_first_part_that_fits_sets_the_rate():
    network = model()
    config = OptimizerConfig(lr=0.5, lr_overrides={"body.0.bias": 0.4, "body": 0.1, ".*bias": 0.2})
    assert rates(network, build_optimizer(network, config)) == {
        "body.0.weight": 0.1,
        "body.0.bias": 0.4,
        "body.1.weight": 0.1,
        "body.1.bias": 0.1,
        "body2.weight": 0.5,
        "body2.bias": 0.2,
        "head.1.weight": 0.5,
        "head.1.bias": 0.2,
    }


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: set_trainable(m, None, ["bdy"]), r"optimizer.freeze names bdy.* body.0, body"),
        (lambda m: set_trainable(m, ["hea"], []), "trainable names hea, but no parameter fits"),
        (lambda m: set_trainable(m, None, [".*"]), "no parameter of the model is trainable"),
        (
            lambda m: build_optimizer(m, OptimizerConfig(lr_overrides={"[": 1.0})),
            "is no part of a model and no regular expression",
        ),
    ],
)
def test_parts_that_do_not_exist_are_named(act, message):
    with pytest.raises(UserError, match=message):
        act(model())


def test_options_of_the_recipe_win_over_those_of_a_checkpoint():
    network = model()
    optimizer = build_optimizer(network, OptimizerConfig(lr=0.5, lr_overrides={"head": 0.1}))
    stored = build_optimizer(
        network, OptimizerConfig(lr=9.0, lr_overrides={"head": 9.5}, momentum=0.1)
    )
    wanted = group_options(optimizer)
    optimizer.load_state_dict(stored.state_dict())
    set_options(optimizer, wanted, 0.5)
    assert set(rates(network, optimizer).values()) == {0.25, 0.05}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


def test_frozen_normalization_keeps_its_statistics():
    network = model()
    set_trainable(network, ["head"], [])
    train_mode(network)
    before = network.body[1].running_mean.clone()
    network(torch.rand(2, 3, 6, 6) + 1)
    assert network.training
    assert torch.equal(network.body[1].running_mean, before)
    set_trainable(network, ["head", "body"], [])
    train_mode(network)
    network(torch.rand(2, 3, 6, 6) + 1)
    assert not torch.equal(network.body[1].running_mean, before)


def run(scores, schedule=None, **config):
    """A state after some validations, and which of them were the best of the run."""
    state = RunState()
    schedule = schedule or ScheduleConfig()
    best = []
    for step, score in enumerate(scores, start=1):
        if state.update(score, step, schedule, EvaluationConfig(**config)):
            best.append(step)
    return state, best


def test_patience_counts_validations_without_a_new_best():
    assert not run([0.1, 0.3, 0.2, 0.3], patience=3)[0].ended
    state, best = run([0.1, 0.3, 0.2, 0.3, 0.25], patience=3)
    assert state.ended
    assert best == [1, 2, 4], "an equally good one is newer"
    assert not run([0.1, 0.3, 0.2, 0.31, 0.25], patience=3)[0].ended
    assert run([0.1, 0.3, 0.2, 0.31, 0.25], patience=3, min_delta=0.02)[0].ended


def test_nothing_to_score_is_zero():
    state, best = run([math.nan, math.nan], patience=1)
    assert state.ended
    assert best == [1, 2]


def test_plateaus_lower_the_rate_down_to_the_final_factor():
    schedule = ScheduleConfig(decay="plateau", patience=2, gamma=0.1, final_factor=0.05)
    schedule.warmup_steps = 0
    factors = [run([0.5] + [0.4] * n, schedule)[0].factor(1, schedule) for n in range(6)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.05, 0.05])
    assert run([0.5, 0.4, 0.6, 0.4], schedule)[0].lr_factor == 1


def test_a_phase_counts_anew_but_the_best_is_that_of_the_run():
    state, _ = run([0.5, 0.4, 0.4], patience=2)
    assert state.ended
    state.next_phase(3)
    assert (state.phase, state.phase_start, state.ended, state.validations_without_improvement) == (
        1,
        3,
        False,
        0,
    )
    assert not state.update(0.4, 4, ScheduleConfig(), EvaluationConfig(patience=2))
    assert (state.best, state.phase_best) == (0.5, 0.4)


def test_a_recipe_has_a_second_phase_when_it_says_so():
    assert len(all_phases(load_recipe("faster_rcnn_synthetic", ["refine=null"]))) == 1
    overrides = [
        "schedule.steps=7",
        "refine.schedule.steps=5",
        "refine.trainable=[roi_heads.box_head]",
    ]
    overrides += ["refine.optimizer.lr_overrides.roi_heads.box_head=0.5"]
    first, second = all_phases(load_recipe("faster_rcnn_synthetic", overrides))
    assert (first.start, first.end, first.trainable) == (0, 7, None)
    assert (second.start, second.end, second.trainable) == (7, 12, ("roi_heads.box_head",))
    assert second.optimizer.lr_overrides == {"roi_heads.box_head": 0.5}
