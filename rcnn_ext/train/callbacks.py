"""Validate, save checkpoints and stop on signals between training steps."""

from __future__ import annotations

import math
import signal
import threading
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint

from rcnn_ext.config import recipe_to_yaml
from rcnn_ext.data.workers import DelayedWorkerDeath
from rcnn_ext.errors import UserError
from rcnn_ext.files import write_text
from rcnn_ext.metrics.coco import EvaluationResult
from rcnn_ext.predict.checkpoint import BEST, LAST
from rcnn_ext.train.logs import Logs
from rcnn_ext.train.module import DetectionModule
from rcnn_ext.train.optim import train_mode
from rcnn_ext.train.resume import RECIPE
from rcnn_ext.train.validation import Validation


class StopTraining(Exception):  # noqa: N818
    """End the training loop after a signal; :func:`rcnn_ext.train.run.train` handles it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Checkpoints(Checkpoint):
    """Write ``last.ckpt`` periodically, validate, and write ``best.ckpt`` after a best validation.

    ``last.ckpt`` is written between two steps only, where the state is complete: before a
    validation, in case that is interrupted, and again after it. On SIGINT (Ctrl-C) and SIGTERM the
    current step is completed first, in all processes.

    Lightning's ModelCheckpoint and EarlyStopping work on its validation loop, which counts batches
    where steps of several batches are meant, and which a resumed run does not repeat when it was
    interrupted. Patience here belongs to a phase, can be raised when a run is resumed, and shares
    its count with the decay at plateaus.

    Args:
        folder: The folder of the checkpoints.
        every: Number of steps from one ``last.ckpt`` to the next.
        validate_every: Number of steps from one validation to the next; 0 validates at the end of a
            phase only.
        validate: Computes the metrics; None where there are no validation images.
        logs: Logs validations.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        validate_every: int,
        validate: Validation | None,
        logs: Logs,
    ) -> None:
        self.folder = folder
        self.every = every
        self.validate_every = validate_every
        self.validate = validate
        self.logs = logs
        self.result: EvaluationResult | None = None
        self._handlers: dict[int, Any] = {}
        self._module: DetectionModule | None = None
        # The last step of which all is known, and that of last.ckpt.
        self._complete = self._saved = 0
        self._deaths = DelayedWorkerDeath()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install signal handlers, and repeat a validation that was interrupted.

        The handlers that were there come back with
        :func:`rcnn_ext.train.trainer.restored_signal_handlers`.
        """
        assert isinstance(pl_module, DetectionModule)
        if self._module is not None:
            # A signal in the last step of a phase stops the next one.
            pl_module.stop_signal = self._module.stop_signal
        self._module = pl_module
        # Python delivers signals to the main thread, and only that may set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)
        self._complete = self._saved = step = pl_module.steps_done
        due = pl_module.global_step and self._validates(pl_module)
        if due and pl_module.state.validated < step:
            self._run_validation(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save and validate when due, and stop if asked to."""
        assert isinstance(pl_module, DetectionModule)
        if not pl_module.step_done:
            self._deaths.tell()
            return
        validates = self._validates(pl_module)
        if self.validate is None:
            pl_module.state.ended = pl_module.steps_done >= pl_module.phase.end
        if pl_module.steps_done % self.every == 0 or validates or pl_module.stopping:
            self._save(trainer, pl_module)
        if pl_module.stopping:
            raise StopTraining(pl_module.stopping)
        if validates:
            self._run_validation(trainer, pl_module)
        self._complete = pl_module.steps_done
        self._deaths.tell()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note that the state is that of no whole step any more."""
        self._deaths.wait()
        self._complete = -1

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save the steps that are done where the images of the next one cannot be read."""
        module = self._module
        # Several processes can only save together.
        if module is None or module.processes.count > 1 or not isinstance(exception, Exception):
            return
        if module.steps_done == self._complete > self._saved:
            # Another worker may die meanwhile, and end what is being saved.
            self._deaths.wait()
            try:
                with suppress(UserError):  # The disk may be full; the first error is to be told.
                    self._save(trainer, module)
            finally:
                self._deaths.restore()

    def run_missed_validation(
        self, trainer: pl.Trainer, module: DetectionModule, device: torch.device
    ) -> None:
        """Run the last validation of a phase where the run had stopped just before it.

        No step was left to train then, and Lightning calls no hook without one.
        """
        if not module.state.ended and module.steps_done >= module.phase.end:
            module.to(device)
            self._run_validation(trainer, module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put back the handler of the deaths of workers."""
        self._deaths.restore()

    def _validates(self, module: DetectionModule) -> bool:
        step = module.steps_done
        ends = step >= module.phase.end
        return ends or bool(self.validate_every and step % self.validate_every == 0)

    def _run_validation(self, trainer: pl.Trainer, module: DetectionModule) -> None:
        if self.validate is None:
            return
        step, state = module.steps_done, module.state
        self.logs.pause()
        model = module.evaluated_model.eval()
        with _precision(trainer):
            result = self.validate(model, self._stop_if_alone)
        train_mode(module.model)
        score = math.nan
        if result is not None:
            self.result = result
            score = _score(result, module.recipe.evaluation.monitor)
        score = module.processes.broadcast_from_main(score, module.device)
        best = state.update(score, step, module.phase.schedule, module.recipe.evaluation)
        if result is not None:
            self.logs.log_validation(step, result)
        if best:
            # Without the optimizer's state, which would double the file.
            trainer.save_checkpoint(self.folder / BEST, weights_only=True)
        if step >= module.phase.end:
            state.ended = True
        elif state.ended:
            self.logs.message(
                f"{state.validations_without_improvement} validations without a new best: "
                f"the phase ends at step {step}"
            )
            trainer.should_stop = True
        self._save(trainer, module)

    def _save(self, trainer: pl.Trainer, module: DetectionModule) -> None:
        trainer.save_checkpoint(self.folder / LAST)
        self._saved = module.steps_done
        recipe = self.folder / RECIPE
        if module.processes.is_main_process and not recipe.exists():
            # The folder was removed; the run makes it anew.
            write_text(recipe, recipe_to_yaml(module.recipe))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A second signal stops at once, in case a step hangs.
        signal.signal(number, self._handlers[number])
        assert self._module is not None
        self._module.stop_signal = number

    def _stop_if_alone(self) -> None:
        """Stop within a validation, if this is the only process.

        ``last.ckpt`` was written just before. Several processes can only stop together, after the
        next step.
        """
        module = self._module
        if module is not None and module.stop_signal and module.processes.count == 1:
            raise StopTraining(module.stop_signal)


def _score(result: EvaluationResult, monitor: str | None) -> float:
    name = monitor or result.monitor
    if name not in result.summary:
        raise UserError(
            f"evaluation.monitor is {name!r}, but the metrics are {', '.join(result.summary)}"
        )
    value = result.summary[name]
    return math.nan if value is None else value


def _precision(trainer: pl.Trainer) -> AbstractContextManager[Any]:
    """Return the context of the precision of training."""
    plugin = trainer.precision_plugin
    return plugin.forward_context() if plugin is not None else nullcontext()
