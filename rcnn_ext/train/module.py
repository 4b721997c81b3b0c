"""The training step."""

from __future__ import annotations

import signal
from typing import Any

import lightning.pytorch as pl
import torch
from torch import distributed, nn

from rcnn_ext.config import Recipe
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.data.dataset import Batch, mixed_seed
from rcnn_ext.distributed import Processes
from rcnn_ext.errors import UserError
from rcnn_ext.metrics.tasks import call_model
from rcnn_ext.models.loss_normalizer import mean_over_processes
from rcnn_ext.models.sampler import SEED
from rcnn_ext.predict.checkpoint import describe
from rcnn_ext.train.optim import build_optimizer, group_options, set_options, train_mode
from rcnn_ext.train.phases import Phase, RunState

# So many in a row are no accident that later steps make good.
_MOST_SKIPPED = 50


class DetectionModule(pl.LightningModule):
    """A model in a phase of its training.

    A step takes the images at fixed positions of the training stream, however many processes and
    parts share them, and each image has a seed of its own. So the number of processes, a stop and a
    resumption change nothing but rounding.

    Args:
        model: Gives a dict of losses in training.
        recipe: How to train.
        classes: What the labels mean.
        phase: What learns, and how.
        state: Stored in checkpoints.
        processes: Among which the images of a step are divided.

    Attributes:
        stop_signal: A signal that asks this process to stop, or 0.
        stopping: The signal that asks any process to stop, agreed upon by all at every step.
        step_done: Whether the last batch ended a step.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        classes: ClassList,
        phase: Phase,
        state: RunState,
        processes: Processes,
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.classes = classes
        self.phase = phase
        self.state = state
        self.processes = processes
        self.stop_signal = 0
        self.stopping = 0
        self.step_done = True
        self._options: list[dict[str, Any]] = []
        self._part = 0
        self._bad: str | None = None
        self._skipped_in_a_row = 0

    @property
    def steps_done(self) -> int:
        """Steps of the run, those of earlier phases included."""
        return self.phase.start + self.global_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of the phase."""
        optimizer = build_optimizer(self.model, self.phase.optimizer)
        self._options = group_options(optimizer)
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what makes the file a detector."""
        checkpoint.update(
            describe(self.recipe, self.classes, self.steps_done, self.state.as_dict())
        )

    def on_train_start(self) -> None:
        """Puts the model in training mode; Lightning keeps the mode that it finds."""
        train_mode(self.model)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Sets the learning rates, and seeds what the model draws other than samples."""
        self._part = 0 if self.step_done else self._part + 1
        if self._part == 0:
            self._bad = None
        self.step_done = self._part == self.phase.optimizer.accumulate_grad_batches - 1
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        factor = self.state.factor(self.global_step, self.phase.schedule)
        set_options(optimizer, self._options, factor)
        seed = (self.recipe.seed, self.steps_done, 2, self.processes.rank, self._part)
        torch.manual_seed(mixed_seed(*seed))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """The losses of a batch; ``loss`` is their sum, the others are those of all processes.

        Raises:
            UserError: A loss is not finite, and the recipe says to stop. It is found before it
                reaches the weights.
        """
        images, targets = batch
        seeded = [
            {**target, SEED: mixed_seed(self.recipe.seed, position, 4)}
            for position, target in enumerate(targets, start=self._first_position(len(images)))
        ]
        losses = call_model(self.model, images, seeded, normalizer=mean_over_processes)
        values = torch.stack(list(losses.values()))  # [number of losses]
        means = self._agree(values.detach(), list(losses))
        return {"loss": values.sum(), **dict(zip(losses, means, strict=True))}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes the gradients away from a step that is to be skipped.

        Raises:
            UserError: A gradient is not finite, and the recipe says to stop; or too many steps in a
                row have been skipped.
        """
        if self._bad is None:
            # All processes have the same gradients by now.
            gradients = [
                parameter.grad
                for parameter in self.model.parameters()
                if parameter.grad is not None
            ]
            # A GradScaler copes with its own overflows, by skipping the step and scaling less.
            if self.trainer.scaler is None and gradients:
                norms = torch.stack(torch._foreach_norm(gradients))  # [number of gradients]
                if not bool(norms.isfinite().all()):
                    self._found_bad("a gradient is not finite")
        if self._bad is None:
            self._skipped_in_a_row = 0
            return
        # Without gradients optimisers leave weights and their own state alone.
        optimizer.zero_grad(set_to_none=True)
        self.state.skipped += 1
        self._skipped_in_a_row += 1
        self.processes.print_once(f"step {self.steps_done + 1} is skipped: {self._bad}")
        if self._skipped_in_a_row >= _MOST_SKIPPED:
            raise UserError(
                f"{_MOST_SKIPPED} steps in a row were skipped, the last one since {self._bad}"
            )

    def _first_position(self, images: int) -> int:
        """Position in the training stream of the first image of this process's part of a step."""
        whole = self.recipe.data.batch_size
        part = whole // self.phase.optimizer.accumulate_grad_batches
        return self.steps_done * whole + self._part * part + self.processes.rank * images

    def _agree(self, values: torch.Tensor, names: list[str]) -> torch.Tensor:
        """Averages the losses over the processes, and lets all know if one of them has to stop."""
        shared = torch.cat([values.double(), values.new_tensor([self.stop_signal]).double()])
        if self.processes.count > 1:
            distributed.all_reduce(shared)
            shared[:-1] /= self.processes.count
        # One transfer for all; the model has synchronised for its proposals anyway.
        *numbers, stop = shared.tolist()
        if stop:
            self.stopping = self.stop_signal or signal.SIGTERM
        if not all(torch.isfinite(shared[:-1]).tolist()):
            shown = ", ".join(f"{n} = {v:g}" for n, v in zip(names, numbers, strict=True))
            self._found_bad("the loss is not finite", f" ({shown})")
        return shared[:-1].float()

    def _found_bad(self, what: str, values: str = "") -> None:
        if self.recipe.runtime.on_nan == "stop":
            raise UserError(
                f"{what} at step {self.steps_done + 1}{values}; a lower optimizer.lr or a longer "
                "schedule.warmup_steps often helps, and runtime.on_nan=skip leaves such steps "
                "out"
            )
        self._bad = what + values
