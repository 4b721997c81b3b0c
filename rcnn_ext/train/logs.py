"""Average the losses of some steps, and hand them to loggers and the progress display."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger

from rcnn_ext.metrics.coco import EvaluationResult
from rcnn_ext.progress import Progress
from rcnn_ext.train.loggers import TRAINING_PREFIX, VALIDATION_PREFIX, CsvLogger, close_loggers
from rcnn_ext.train.module import DetectionModule


class Logs(ProgressBar):
    """Log the mean of each loss over some steps, and validations, and show progress.

    Lightning's ``self.log`` averages over an epoch or not at all, and loses the sums of a line when
    a run is stopped within it. It is Lightning's progress bar too: TQDMProgressBar counts the
    batches of an epoch, where a run counts steps over both phases and has no last batch.

    Args:
        loggers: Where values go; those of the trainer.
        every: Number of steps that are averaged per line.
        end: Number of steps of the whole run.
        images_per_epoch: Images in the training set; None where it is unknown, and then epochs are
            not counted.
        done: Number of steps that were done before.
        is_main_process: Whether this process logs at all.
    """

    def __init__(
        self,
        loggers: Sequence[Logger],
        every: int,
        end: int,
        images_per_epoch: int | None,
        *,
        done: int,
        is_main_process: bool,
    ) -> None:
        super().__init__()
        self.loggers = loggers
        self.every = every
        self.images_per_epoch = images_per_epoch
        self.is_main_process = is_main_process
        self._sums: dict[str, torch.Tensor] = {}
        self._batches = 0
        self._steps = 0
        self._paused = 0.0
        self._progress = Progress("Training", end, initial=done) if is_main_process else None
        self._since = time.monotonic()

    def enable(self) -> None:
        """Do nothing: the bar is shown from the first step to the last."""

    def disable(self) -> None:
        """Do nothing: processes other than the main one have no bar."""

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print what the module prints without disturbing the bar."""
        self.message(sep.join(map(str, args)))

    def close(self, *, failed: bool) -> None:
        """End the display and the loggers.

        Args:
            failed: Whether an exception ended training.
        """
        if self._progress is not None:
            self._progress.close()
        close_loggers(self.loggers, failed=failed)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the unfinished line, so that a resumed run writes an equal one."""
        sums = {name: torch.as_tensor(total).cpu() for name, total in self._sums.items()}
        return {"sums": sums, "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sums of an unfinished line."""
        self._sums, self._batches = dict(state_dict["sums"]), state_dict["batches"]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add the losses of a batch, and log their means when a line is full."""
        if not self.is_main_process:
            return
        assert isinstance(pl_module, DetectionModule)
        losses = {name: value for name, value in outputs.items() if name != "loss"}
        for name, value in {"loss": sum(losses.values()), **losses}.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._batches += 1
        if not pl_module.step_done:
            return
        self._steps += 1
        done = pl_module.steps_done
        note = ""
        if done % self.every == 0 or done >= pl_module.phase.end:
            note = self._log_means(pl_module, trainer.optimizers[0].param_groups)
        if self._progress is not None:
            self._progress.advance(note=note)

    def pause(self) -> None:
        """Exclude the time until ``log_validation`` from the duration of steps."""
        self._paused = time.monotonic()

    def log_validation(self, step: int, result: EvaluationResult) -> None:
        """Log the metrics of a validation."""
        self._since += time.monotonic() - self._paused
        self._log(VALIDATION_PREFIX, result.summary, step)
        self.message(f"Validation at step {step}: {result.line()} ({result.images} images)")

    def message(self, text: str) -> None:
        """Print a line without disturbing the progress bar."""
        if self._progress is not None:
            self._progress.message(text)

    def _log_means(self, module: DetectionModule, groups: list[dict[str, Any]]) -> str:
        means = {name: float(total) / self._batches for name, total in self._sums.items()}
        now = time.monotonic()
        row = {
            "epoch": self._epoch(module),
            # With learning rates per part, the highest.
            "lr": max(group["lr"] for group in groups),
            "seconds_per_step": round((now - self._since) / self._steps, 4),
            **{name: round(value, 6) for name, value in means.items()},
        }
        self._log(TRAINING_PREFIX, row, module.steps_done)
        self._sums, self._batches, self._steps, self._since = {}, 0, 0, now
        terms = " ".join(
            f"{name.removeprefix('loss_')} {value:.3f}"
            for name, value in means.items()
            if name != "loss"
        )
        return f"loss {means['loss']:.3f} ({terms})"

    def _epoch(self, module: DetectionModule) -> float | None:
        if self.images_per_epoch is None:
            return None
        images = module.steps_done * module.recipe.data.batch_size
        return round(images / self.images_per_epoch, 3)

    def _log(self, prefix: str, values: dict[str, Any], step: int) -> None:
        metrics = {f"{prefix}/{name}": value for name, value in values.items()}
        known = {name: value for name, value in metrics.items() if value is not None}
        for logger in self.loggers:
            # Only a table has cells to leave empty.
            logger.log_metrics(metrics if isinstance(logger, CsvLogger) else known, step)
            logger.save()
