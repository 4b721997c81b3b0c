"""What happens between training steps: validation, checkpoints, and stopping on a signal."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from rcnn_ext.errors import UserError
from rcnn_ext.metrics.coco import EvaluationResult
from rcnn_ext.predict.checkpoint import BEST, LAST
from rcnn_ext.train.logs import Logs
from rcnn_ext.train.module import DetectionModule
from rcnn_ext.train.optim import train_mode

# Gives the metrics of a model in the first process and None in the others. The second argument is
# called after every batch.
Validate = Callable[[nn.Module, Callable[[], None]], EvaluationResult | None]


class StopTraining(Exception):  # noqa: N818
    """Ends the training loop after a signal; :func:`rcnn_ext.train.run.train` handles it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Checkpoints(pl.Callback):
    """Writes ``last.ckpt`` now and then, validates, and writes ``best.ckpt`` after the best.

    ``last.ckpt`` is written between two steps only, where the state is whole: before a validation,
    in case that is interrupted, and again after it. On SIGINT (Ctrl-C) and SIGTERM the running step
    is finished first, in all processes.

    Args:
        folder: Where to.
        every: Steps from one ``last.ckpt`` to the next.
        validate_every: Steps from one validation to the next; 0 for at the end of a phase only.
        validate: Does it; None where there is nothing to validate on.
        logs: Told of validations.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        validate_every: int,
        validate: Validate | None,
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

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens to signals, and makes up for a validation that was interrupted."""
        assert isinstance(pl_module, DetectionModule)
        if self._module is not None:
            # A signal in the last step of a phase stops the next one.
            pl_module.stop_signal = self._module.stop_signal
        self._module = pl_module
        # Python delivers signals to the main thread, and only that may set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)
        step = pl_module.steps_done
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
        """Saves and validates when it is time, and stops if asked to."""
        assert isinstance(pl_module, DetectionModule)
        if not pl_module.step_done:
            return
        validates = self._validates(pl_module)
        if self.validate is None:
            pl_module.state.ended = pl_module.steps_done >= pl_module.phase.end
        if pl_module.steps_done % self.every == 0 or validates or pl_module.stopping:
            trainer.save_checkpoint(self.folder / LAST)
        if pl_module.stopping:
            raise StopTraining(pl_module.stopping)
        if validates:
            self._run_validation(trainer, pl_module)

    def finish(self, trainer: pl.Trainer, module: DetectionModule, device: torch.device) -> None:
        """Makes up for the last validation of a phase, where the run had stopped before it.

        There was no step left to train then, and Lightning does nothing without one.
        """
        if not module.state.ended and module.steps_done >= module.phase.end:
            module.to(device)
            self._run_validation(trainer, module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _validates(self, module: DetectionModule) -> bool:
        step = module.steps_done
        ends = step >= module.phase.end
        return ends or bool(self.validate_every and step % self.validate_every == 0)

    def _run_validation(self, trainer: pl.Trainer, module: DetectionModule) -> None:
        if self.validate is None:
            return
        step, state = module.steps_done, module.state
        self.logs.pause()
        module.model.eval()
        with _precision(trainer):
            result = self.validate(module.model, self._stop_if_alone)
        train_mode(module.model)
        score = math.nan
        if result is not None:
            self.result = result
            score = _score(result, module.recipe.evaluation.monitor)
        score = module.processes.broadcast_from_main(score, module.device)
        best = state.note(score, step, module.phase.schedule, module.recipe.evaluation)
        if result is not None:
            self.logs.validated(step, result)
        if best:
            # Without the state of the optimiser, which would double the file.
            trainer.save_checkpoint(self.folder / BEST, weights_only=True)
        if step >= module.phase.end:
            state.ended = True
        elif state.ended:
            self.logs.message(
                f"{state.stale} validations without a new best: the phase ends at step {step}"
            )
            trainer.should_stop = True
        trainer.save_checkpoint(self.folder / LAST)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A second one stops at once, in case a step hangs.
        signal.signal(number, self._handlers[number])
        assert self._module is not None
        self._module.stop_signal = number

    def _stop_if_alone(self) -> None:
        """Stops within a validation; several processes can only stop together, after the next step.

        ``last.ckpt`` was written just before.
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
    """Validates in the precision of training."""
    plugin = trainer.precision_plugin
    return plugin.forward_context() if plugin is not None else nullcontext()
