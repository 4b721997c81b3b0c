"""The training step."""

from __future__ import annotations

import signal
from typing import Any

import lightning.pytorch as pl
import torch
from torch import distributed, nn

from rcnn_ext.config import Recipe
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.data.dataset import Batch
from rcnn_ext.data.sampling import mixed_seed
from rcnn_ext.distributed import Processes
from rcnn_ext.errors import UserError
from rcnn_ext.metrics.tasks import call_model
from rcnn_ext.models.loss_normalizer import mean_over_processes
from rcnn_ext.models.sampler import SEED
from rcnn_ext.predict.checkpoint import PREFIX, describe
from rcnn_ext.train.ema import WeightAverage, restore_training_weights, save_average
from rcnn_ext.train.optim import build_optimizer, group_options, set_options, train_mode
from rcnn_ext.train.phases import Phase, RunState

# So many in a row mean that the weights themselves are no longer finite.
_MAX_SKIPPED_IN_A_ROW = 50


class DetectionModule(pl.LightningModule):
    """The training step of a model in one phase.

    A step takes the images at fixed positions of the training stream, however many processes and
    batches share them, and each image has a seed of its own. So the number of processes changes
    nothing but rounding, and a stop and resumption change nothing.

    Args:
        model: Gives a dict of losses in training.
        recipe: The recipe of the run.
        classes: The classes that labels stand for.
        phase: The phase to train.
        state: Progress of the run, stored in checkpoints.
        processes: The processes that the images of a step are divided among.
        average: The average of the weights, or None.

    Attributes:
        stop_signal: A signal that asks this process to stop, or 0.
        stopping: A signal that asks any process to stop, equal in all of them after every batch.
        step_done: Whether the last batch completed a step.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        classes: ClassList,
        phase: Phase,
        state: RunState,
        processes: Processes,
        average: WeightAverage | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.classes = classes
        self.phase = phase
        self.state = state
        self.processes = processes
        self.average = average
        self.stop_signal = 0
        self.stopping = 0
        self.step_done = True
        self._options: list[dict[str, Any]] = []
        self._batch_of_step = 0
        self._skip_reason: str | None = None
        self._skipped_in_a_row = 0

    @property
    def steps_done(self) -> int:
        """Number of steps of the run, those of earlier phases included."""
        return self.phase.start + self.global_step

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that validations look at: the average, where there is one."""
        return self.model if self.average is None else self.average.model

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer of the phase."""
        optimizer = build_optimizer(self.model, self.phase.optimizer)
        self._options = group_options(optimizer)
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the entry that lets the file be loaded as a detector.

        Raises:
            UserError: A weight is not finite; the checkpoint before is worth more than this one.
        """
        self._check_weights(checkpoint["state_dict"])
        checkpoint.update(
            describe(self.recipe, self.classes, self.steps_done, self.state.as_dict())
        )
        if self.average is not None:
            save_average(checkpoint, self.average, PREFIX)
            self._check_weights(checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with the weights of the last step, not with their average."""
        restore_training_weights(checkpoint)

    def on_train_start(self) -> None:
        """Put the model in training mode; Lightning keeps the mode that it finds."""
        train_mode(self.model)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rates, and seed random numbers other than the samplers'."""
        self._batch_of_step = 0 if self.step_done else self._batch_of_step + 1
        if self._batch_of_step == 0:
            self._skip_reason = None
        self.step_done = self._batch_of_step == self.phase.optimizer.accumulate_grad_batches - 1
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        factor = self.state.factor(self.global_step, self.phase.schedule)
        set_options(optimizer, self._options, factor)
        seed = (self.recipe.seed, self.steps_done, 2, self.processes.rank, self._batch_of_step)
        torch.manual_seed(mixed_seed(*seed))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Return the losses of a batch: their sum as ``loss``, and each as mean of all processes.

        Raises:
            UserError: A loss is not finite, and the recipe says to stop. It is raised before the
                weights change.
        """
        images, targets = batch
        seeded = [
            {**target, SEED: mixed_seed(self.recipe.seed, position, 4)}
            for position, target in enumerate(targets, start=self._first_position(len(images)))
        ]
        losses = call_model(self.model, images, seeded, normalizer=mean_over_processes)
        values = torch.stack(list(losses.values()))  # [number of losses]
        means = self._all_reduce(values.detach(), list(losses))
        return {"loss": values.sum(), **dict(zip(losses, means, strict=True))}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of a step that is to be skipped.

        Raises:
            UserError: A gradient is not finite, and the recipe says to stop; or too many steps in a
                row have been skipped.
        """
        if self._skip_reason is None:
            # All processes have the same gradients by now.
            gradients = [
                parameter.grad
                for parameter in self.model.parameters()
                if parameter.grad is not None
            ]
            # A GradScaler handles its own overflows: it skips the step and lowers the scale.
            if self.trainer.scaler is None and gradients:
                norms = torch.stack(torch._foreach_norm(gradients))  # [number of gradients]
                if not bool(norms.isfinite().all()):
                    self._handle_not_finite("a gradient is not finite")
        if self._skip_reason is None:
            self._skipped_in_a_row = 0
            return
        # Without gradients, optimizers leave weights and their own state alone.
        optimizer.zero_grad(set_to_none=True)
        self.state.skipped += 1
        self._skipped_in_a_row += 1
        self.processes.print_once(f"step {self.steps_done + 1} is skipped: {self._skip_reason}")
        if self._skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"{_MAX_SKIPPED_IN_A_ROW} steps in a row were skipped, the last one since "
                f"{self._skip_reason}"
            )

    def _check_weights(self, weights: dict[str, torch.Tensor]) -> None:
        for name, weight in weights.items():
            if not bool(weight.isfinite().all()):
                raise UserError(
                    f"{name.removeprefix(PREFIX)} is not finite after step {self.steps_done}, so "
                    "that nothing is saved: the checkpoints in the folder are those of earlier "
                    "steps; a lower optimizer.lr or a longer schedule.warmup_steps often helps"
                )

    def _first_position(self, images: int) -> int:
        """Return the position in the training stream of the first image of this process's batch."""
        whole = self.recipe.data.batch_size
        part = whole // self.phase.optimizer.accumulate_grad_batches
        return self.steps_done * whole + self._batch_of_step * part + self.processes.rank * images

    def _all_reduce(self, values: torch.Tensor, names: list[str]) -> torch.Tensor:
        """Average the losses over all processes, and tell each if any of them has to stop."""
        shared = torch.cat([values.double(), values.new_tensor([self.stop_signal]).double()])
        if self.processes.count > 1:
            distributed.all_reduce(shared)
            shared[:-1] /= self.processes.count
        # One transfer for all of them; the model has synchronized for its proposals anyway.
        *numbers, stop = shared.tolist()
        if stop:
            self.stopping = self.stop_signal or signal.SIGTERM
        if not all(torch.isfinite(shared[:-1]).tolist()):
            shown = ", ".join(f"{n} = {v:g}" for n, v in zip(names, numbers, strict=True))
            self._handle_not_finite("the loss is not finite", f" ({shown})")
        return shared[:-1].float()

    def _handle_not_finite(self, what: str, values: str = "") -> None:
        if self.recipe.runtime.on_nan == "stop":
            raise UserError(
                f"{what} at step {self.steps_done + 1}{values}; a lower optimizer.lr or a longer "
                "schedule.warmup_steps often helps, and runtime.on_nan=skip leaves such steps "
                "out"
            )
        self._skip_reason = what + values
