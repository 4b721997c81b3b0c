"""The exponential moving average (EMA) of the weights of a run."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rcnn_ext.config import EmaConfig
from rcnn_ext.predict.checkpoint import TRAINING_WEIGHTS


class WeightAverage:
    """Average the weights and batch statistics of a model over its steps.

    Lightning's callback for it averages within one trainer and its validation loop; a run here has
    a trainer for each phase, validates between steps, and writes ``best.ckpt`` without the state of
    the optimizer, for which Lightning calls no callback.

    Args:
        model: The model; its present weights are the first average.
        config: Section ``training.ema`` of the recipe, with a decay.
        device: The device that the average is kept on.
        num_updates: Number of steps that the present weights are the average of; of a resumed run.
    """

    def __init__(
        self, model: nn.Module, config: EmaConfig, device: torch.device, num_updates: int = 0
    ) -> None:
        assert config.decay is not None
        self._decay = config.decay
        self._warmup = config.warmup
        self._average = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)
        self._average.module.to(device).eval().requires_grad_(False)
        # On the CPU, where reading it does not wait for a GPU. 0 would copy the model's weights.
        self._average.n_averaged += 1 + num_updates

    @property
    def model(self) -> nn.Module:
        """The model with the average of the weights, in evaluation mode."""
        module: nn.Module = self._average.module
        return module

    @property
    def num_updates(self) -> int:
        """Number of steps that have entered."""
        return int(self._average.n_averaged) - 1

    def update(self, model: nn.Module) -> None:
        """Let the weights of a model after a step enter the average."""
        self._average.update_parameters(model)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Set the average to that of an interrupted run."""
        self.model.load_state_dict(weights)

    @torch.no_grad()
    def _mix(self, averages: Any, values: Any, num_averaged: Any) -> None:
        """Move the averages, tensors of one type, towards the values of the last step."""
        if not averages[0].is_floating_point():
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)
            return
        decay, steps = self._decay, self.num_updates
        if self._warmup:
            decay = min(decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(averages), list(values), 1 - decay)


class UpdateAverage(pl.Callback):
    """Update an average after each step, before other callbacks save or validate it."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the average when a step is complete."""
        module: Any = pl_module
        if module.step_done:
            self.average.update(module.model)


def save_average(checkpoint: dict[str, Any], average: WeightAverage, prefix: str) -> None:
    """Put the average in the place of the weights in a checkpoint.

    So whatever loads the file gets the averaged model. The weights that training goes on from are
    kept beside them, unless the checkpoint has no optimizer either.

    Args:
        checkpoint: A checkpoint of Lightning; it is changed.
        average: The average.
        prefix: Beginning of the names of the weights.
    """
    if "optimizer_states" in checkpoint:
        checkpoint[TRAINING_WEIGHTS] = {
            "state_dict": checkpoint["state_dict"],
            "num_updates": average.num_updates,
        }
    checkpoint["state_dict"] = {
        f"{prefix}{name}": value for name, value in average.model.state_dict().items()
    }


def restore_training_weights(checkpoint: dict[str, Any]) -> None:
    """Put the weights that training goes on from in the place of the average.

    Args:
        checkpoint: A checkpoint that :func:`save_average` may have changed; it is changed back.
    """
    if TRAINING_WEIGHTS in checkpoint:
        checkpoint["state_dict"] = checkpoint[TRAINING_WEIGHTS]["state_dict"]
