"""What happens around training steps: log, checkpoints, progress, and stopping on a signal."""

from __future__ import annotations

import csv
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch

from ..files import write_text
from ..progress import Progress
from .checkpoint import BEST, LAST, load_checkpoint
from .metrics import SUMMARY
from .module import DetectionModule


class StopTraining(Exception):  # noqa: N818
    """Ends the training loop after a signal; :func:`rcnn_ext.engine.train.train` handles it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class LossLog(pl.Callback):
    """Writes the mean of each loss over some steps to a CSV file, and shows it as progress.

    Args:
        path: The file; a resumed run continues it.
        every: Steps a line is the mean of.
        steps: Number of steps of the whole training.
        batch_size: Images in a step.
        images_per_epoch: Images in the training set.
    """

    def __init__(
        self, path: Path, every: int, steps: int, batch_size: int, images_per_epoch: int
    ) -> None:
        self.path = path
        self.every = every
        self.steps = steps
        self.epochs_per_step = batch_size / images_per_epoch
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0
        self._since = 0.0
        self._paused = 0.0
        self._rate = 0.0
        self._progress: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Removes lines of steps that a resumed run does again."""
        done = trainer.global_step
        rows = read_csv(self.path) if done and self.path.exists() else []
        write_csv(self.path, [row for row in rows if int(row["step"]) <= done])
        self._progress = Progress("Training", self.steps, done=done)
        self._since = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes the learning rate, which is that of the next step when the step has ended."""
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Adds the losses of a step."""
        for name, value in outputs.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._count += 1
        note = ""
        if trainer.global_step % self.every == 0 or trainer.global_step >= self.steps:
            note = self._write_line(trainer)
        assert self._progress is not None
        self._progress.advance(note=note)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the time of validation out of the time of steps."""
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows what the validation gave."""
        self._since += time.monotonic() - self._paused
        assert isinstance(pl_module, DetectionModule)
        result = pl_module.result
        if result is not None and self._progress is not None:
            shown = ", ".join(
                f"{name} {_short(result.summary[name])}" for name in ("AP", "AP50", "AR100")
            )
            self._progress.message(
                f"Validation at step {trainer.global_step}: {shown} ({result.images} images)"
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ends the display, however training ended."""
        if self._progress is not None:
            self._progress.close()

    def _write_line(self, trainer: pl.Trainer) -> str:
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        now = time.monotonic()
        row = {
            "step": trainer.global_step,
            "epoch": round(trainer.global_step * self.epochs_per_step, 3),
            "lr": self._rate,
            "seconds_per_step": round((now - self._since) / self._count, 4),
            **{name: round(value, 6) for name, value in means.items()},
        }
        append_csv(self.path, row)
        self._sums, self._count, self._since = {}, 0, now
        parts = " ".join(
            f"{name.removeprefix('loss_')} {value:.3f}"
            for name, value in means.items()
            if name != "loss"
        )
        return f"loss {means['loss']:.3f} ({parts})"


class Checkpoints(pl.Callback):
    """Writes ``last.ckpt`` now and then and ``best.ckpt`` after the best validation by AP.

    ``last.ckpt`` is written between two steps only, where the state is whole, and always before a
    validation; on SIGINT (Ctrl-C) and SIGTERM the running step is finished first.

    Args:
        folder: Where to.
        every: Steps from one ``last.ckpt`` to the next.
        validate_every: Steps from one validation to the next; 0 for at the end only.
        steps: Number of steps of the whole training.
    """

    def __init__(self, folder: Path, every: int, validate_every: int, steps: int) -> None:
        self.folder = folder
        self.every = every
        self.validate_every = validate_every
        self.steps = steps
        self.best: float | None = None
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens to signals; after a resume, finds how good the best was."""
        best = self.folder / BEST
        if trainer.global_step and best.is_file():
            self.best = load_checkpoint(best).score
        # Python delivers signals to the main thread, and only that may set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves when it is time, and stops if asked to."""
        step = trainer.global_step
        last = step >= self.steps
        validates = last or (self.validate_every and step % self.validate_every == 0)
        if step % self.every == 0 or validates or self._signal is not None:
            trainer.save_checkpoint(self.folder / LAST)
        if last:
            # Lightning validates a last time if told to stop, also between two intervals.
            trainer.should_stop = True
        self._stop_if_asked()

    def on_validation_batch_end(self, *arguments: Any, **options: Any) -> None:
        """Stops if asked to; ``last.ckpt`` was written just before."""
        self._stop_if_asked()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the detector if it is the best so far, and logs what it is worth."""
        assert isinstance(pl_module, DetectionModule)
        assert pl_module.result is not None
        summary = pl_module.result.summary
        row = {"step": trainer.global_step, **{name: summary[name] for name in SUMMARY}}
        log = self.folder / "validation.csv"
        rows = read_csv(log) if log.exists() else []
        rows = [old for old in rows if int(old["step"]) < trainer.global_step]
        write_csv(log, [*rows, row])
        # Nothing to be found, such as only empty images, is no reason not to have a best.
        score = summary["AP"] or 0.0
        if self.best is None or score >= self.best:
            self.best = pl_module.score = score
            # Without the state of the optimiser, which would double the file.
            trainer.save_checkpoint(self.folder / BEST, weights_only=True)
            pl_module.score = None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A second one stops at once, in case a step hangs.
        signal.signal(number, self._handlers[number])
        self._signal = number

    def _stop_if_asked(self) -> None:
        if self._signal is not None:
            raise StopTraining(self._signal)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file with a header."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows with the same keys, whole or not at all; no rows give an empty file."""
    lines = [",".join(rows[0])] if rows else []
    lines += [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
    write_text(path, "".join(f"{line}\n" for line in lines))


def append_csv(path: Path, row: dict[str, Any]) -> None:
    """Adds a row, after a header if the file is empty."""
    with path.open("a", encoding="utf-8") as file:
        lines = [] if file.tell() else [",".join(row)]
        lines.append(",".join("" if v is None else str(v) for v in row.values()))
        file.write("".join(f"{line}\n" for line in lines))


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
