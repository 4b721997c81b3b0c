"""The logs of a training run: CSV files that are readable at any moment, and TensorBoard's."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from rcnn_ext.files import write_text
from rcnn_ext.metrics.coco import EvaluationResult
from rcnn_ext.progress import Progress
from rcnn_ext.train.module import DetectionModule

LOSSES, VALIDATION, TENSORBOARD = "losses.csv", "validation.csv", "tensorboard"


class Logs(pl.Callback):
    """Writes the mean of each loss over some steps, and validations, and shows progress.

    Args:
        folder: Where ``losses.csv``, ``validation.csv`` and ``tensorboard/`` go; a resumed run
            continues them.
        every: Steps a line is the mean of.
        end: Number of steps of the whole training.
        images_per_epoch: Images in the training set; None where nobody knows, and then no epochs
            are counted.
        tensorboard: Whether to write TensorBoard's files, where it is installed.
        writes: Whether this process writes at all.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        end: int,
        images_per_epoch: int | None,
        *,
        tensorboard: bool,
        writes: bool,
    ) -> None:
        self.folder = folder
        self.every = every
        self.end = end
        self.images_per_epoch = images_per_epoch
        self.tensorboard = tensorboard
        self.writes = writes
        self._sums: dict[str, torch.Tensor] = {}
        self._parts = 0
        self._steps = 0
        self._since = 0.0
        self._paused = 0.0
        self._progress: Progress | None = None
        self._board: Any = None

    def open(self, done: int) -> None:
        """Begins after some steps, removing lines of steps that will be done again."""
        if not self.writes:
            return
        for name in (LOSSES, VALIDATION):
            path = self.folder / name
            rows = read_csv(path) if done and path.exists() else []
            if rows or name == LOSSES:
                write_csv(path, [row for row in rows if int(row["step"]) <= done])
        if self.tensorboard:
            self._board = _board(self.folder / TENSORBOARD, done)
        self._progress = Progress("Training", self.end, initial=done)
        self._since = time.monotonic()

    def close(self) -> None:
        """Ends the display, however training ended."""
        if self._progress is not None:
            self._progress.close()
        if self._board is not None:
            self._board.close()

    def state_dict(self) -> dict[str, Any]:
        """What belongs to the next line, so that a resumed run writes the same."""
        sums = {name: torch.as_tensor(total).cpu() for name, total in self._sums.items()}
        return {"sums": sums, "parts": self._parts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with an unfinished line."""
        self._sums, self._parts = dict(state_dict["sums"]), state_dict["parts"]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Adds the losses of a step, or of a part of one."""
        if not self.writes:
            return
        assert isinstance(pl_module, DetectionModule)
        losses = {name: value for name, value in outputs.items() if name != "loss"}
        for name, value in {"loss": sum(losses.values()), **losses}.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._parts += 1
        if not pl_module.step_done:
            return
        self._steps += 1
        done = pl_module.steps_done
        note = ""
        if done % self.every == 0 or done >= pl_module.phase.end:
            note = self._write_line(pl_module, trainer.optimizers[0].param_groups)
        if self._progress is not None:
            self._progress.advance(note=note)

    def pause(self) -> None:
        """Keeps the time until ``validated`` out of the time of steps."""
        self._paused = time.monotonic()

    def validated(self, step: int, result: EvaluationResult) -> None:
        """Notes what a validation gave."""
        self._since += time.monotonic() - self._paused
        row = {"step": step, **result.summary}
        path = self.folder / VALIDATION
        rows = read_csv(path) if path.exists() else []
        write_csv(path, [*(old for old in rows if int(old["step"]) < step), row])
        self._to_board("validation", result.summary, step)
        self.message(f"Validation at step {step}: {result.line()} ({result.images} images)")

    def message(self, text: str) -> None:
        """Prints a line without disturbing the progress bar."""
        if self._progress is not None:
            self._progress.message(text)

    def _write_line(self, module: DetectionModule, groups: list[dict[str, Any]]) -> str:
        means = {name: float(total) / self._parts for name, total in self._sums.items()}
        now = time.monotonic()
        row = {
            "step": module.steps_done,
            "epoch": self._epoch(module),
            # Of the parts with a rate of their own, the fastest.
            "lr": max(group["lr"] for group in groups),
            "seconds_per_step": round((now - self._since) / self._steps, 4),
            **{name: round(value, 6) for name, value in means.items()},
        }
        append_csv(self.folder / LOSSES, row)
        self._to_board("training", {n: row[n] for n in ("lr", *means)}, module.steps_done)
        self._sums, self._parts, self._steps, self._since = {}, 0, 0, now
        parts = " ".join(
            f"{name.removeprefix('loss_')} {value:.3f}"
            for name, value in means.items()
            if name != "loss"
        )
        return f"loss {means['loss']:.3f} ({parts})"

    def _epoch(self, module: DetectionModule) -> float | None:
        if self.images_per_epoch is None:
            return None
        images = module.steps_done * module.recipe.data.batch_size
        return round(images / self.images_per_epoch, 3)

    def _to_board(self, section: str, values: dict[str, Any], step: int) -> None:
        if self._board is None:
            return
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(f"{section}/{name}", value, step)
        self._board.flush()


def _board(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print(
            "TensorBoard logs are left out, since tensorboard is not installed: "
            "pip install 'rcnn-ext[tensorboard]'; runtime.tensorboard=false hides this"
        )
        return None
    return SummaryWriter(str(folder), purge_step=done + 1 if done else None)


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
