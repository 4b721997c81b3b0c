"""Gradient checkpointing: stages whose activations are computed again instead of kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpoint_stages(parts: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Make stages compute their activations a second time in the backward pass, in place.

    Parameter names, results and the statistics of batch norms stay what they were.

    Args:
        parts: Modules whose children are the stages, such as ``backbone.body``.
        names: Names of stages, such as "layer3".

    Raises:
        ValueError: No stage has one of the names.
    """
    stages = {name: stage for part in parts for name, stage in part.named_children()}
    for name in names:
        if name not in stages:
            raise ValueError(
                f"checkpoint_stages has {name!r}, but the backbone has the stages "
                f"{', '.join(stages)}"
            )
        stage: Any = stages[name]
        # A partial, unlike a closure, is copied and pickled together with the stage.
        stage.forward = partial(_checkpointed_forward, stage)


def _checkpointed_forward(stage: nn.Module, x: Tensor) -> Tensor:
    forward = partial(type(stage).forward, stage)
    if not (stage.training and torch.is_grad_enabled()):
        return forward(x)
    norms = [m for m in stage.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), _without_statistics(norms)

    return checkpoint(forward, x, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def _without_statistics(norms: list[Any]) -> Iterator[None]:
    """Let batch norms run a second time on a batch without counting it twice."""
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
