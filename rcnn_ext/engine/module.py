"""The training and validation step."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from ..data.annotations import ClassList
from ..data.dataset import Batch, mixed_seed
from ..errors import UserError
from ..recipes import Recipe
from .checkpoint import describe
from .metrics import CocoMetrics, EvaluationResult
from .optim import build_optimizer, learning_rate_factor


class DetectionModule(pl.LightningModule):
    """A detector, its optimiser and its metrics.

    Args:
        model: Gives a dict of losses in training and a list of detections in evaluation.
        recipe: How to train.
        classes: What the labels mean.

    Attributes:
        result: What the last validation gave.
        score: What to store in a checkpoint as the worth of the detector.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, classes: ClassList) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.classes = classes
        self.result: EvaluationResult | None = None
        self.score: float | None = None
        self._metrics = CocoMetrics(classes)

    def configure_optimizers(self) -> Any:
        """The optimiser, and its learning rate as a function of the step."""
        optimizer = build_optimizer(self.model, self.recipe.optimizer)
        schedule = self.recipe.schedule
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, schedule)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what makes the file a detector."""
        checkpoint.update(describe(self.recipe, self.classes, self.score))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds what the model draws, so that a resumed run draws what an unbroken one does."""
        torch.manual_seed(mixed_seed(self.recipe.seed, self.global_step, 2, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """The losses of a batch; ``loss`` is their sum.

        Raises:
            UserError: A loss is not finite. It is found before it reaches the weights.
        """
        images, targets = batch
        losses = self.model(images, targets)
        values = torch.stack(list(losses.values()))  # [number of losses]
        # One transfer for all losses; the model has synchronised for its proposals anyway.
        if not bool(values.isfinite().all()):
            numbers = zip(losses, values.tolist(), strict=True)
            shown = ", ".join(f"{name} = {number:g}" for name, number in numbers)
            raise UserError(
                f"the loss is not finite at step {self.global_step + 1} ({shown}); "
                "a lower optimizer.lr or a longer schedule.warmup_steps often helps"
            )
        return {
            "loss": values.sum(),
            **{name: value.detach() for name, value in losses.items()},
        }

    def on_validation_epoch_start(self) -> None:
        """Forgets the detections of the validation before."""
        self._metrics = CocoMetrics(self.classes)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects the detections of a batch."""
        images, targets = batch
        self._metrics.update(self.model(images), targets)

    def on_validation_epoch_end(self) -> None:
        """Computes the metrics."""
        self.result = self._metrics.compute()
