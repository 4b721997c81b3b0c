"""Loggers of a training run: CSV tables in its folder, and Lightning's for other tools."""

from __future__ import annotations

import csv
import importlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from rcnn_ext.config import RuntimeConfig
from rcnn_ext.errors import UserError
from rcnn_ext.files import make_folder, write_text

LOSSES, VALIDATION, TENSORBOARD = "losses.csv", "validation.csv", "tensorboard"
# What Weights & Biases and MLflow store in the folder of a run.
WANDB, MLFLOW_DATABASE, MLFLOW_ARTIFACTS = "wandb", "mlflow.db", "mlartifacts"
TRAINING_PREFIX, VALIDATION_PREFIX = "training", "validation"

# Where a run is stored unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says otherwise.
_PROJECT = "rcnn-ext"


class CsvLogger(Logger):
    """Write a table of training metrics and one of validation metrics.

    Lightning's own CSV logger keeps all metrics in one sparse table, cannot go back to the step of
    a checkpoint, and numbers its folders. Here a row is on disk as soon as it is logged, and a
    resumed run drops the rows of steps that it repeats.

    Args:
        folder: The folder of ``losses.csv`` and ``validation.csv``.
        done: Number of steps that are done; later rows of an earlier run are removed.
    """

    def __init__(self, folder: Path, done: int) -> None:
        super().__init__()
        self.folder = folder
        for name in (LOSSES, VALIDATION):
            path = folder / name
            rows = read_csv(path) if done and path.exists() else []
            if rows or name == LOSSES:
                write_csv(path, [row for row in rows if int(row["step"]) <= done])

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Empty: a folder holds one run."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``recipe.yaml`` holds them."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append a row to the table that the metrics belong to.

        Args:
            metrics: Values by name, all with the prefix ``training/`` or all with ``validation/``.
                None leaves a cell empty.
            step: The step they were measured at.
        """
        prefixes = {name.partition("/")[0] for name in metrics}
        row = {"step": step, **{name.partition("/")[2]: v for name, v in metrics.items()}}
        if prefixes == {TRAINING_PREFIX}:
            append_csv(self.folder / LOSSES, row)
        elif prefixes == {VALIDATION_PREFIX}:
            path = self.folder / VALIDATION
            rows = read_csv(path) if path.exists() else []
            # A validation that was interrupted after its row was written is repeated.
            write_csv(path, [*(old for old in rows if int(old["step"]) < (step or 0)), row])
        else:
            raise ValueError(f"metrics must be of training or of validation, got {list(metrics)}")


def check_loggers(config: RuntimeConfig) -> None:
    """Check that the packages of the loggers that a recipe names can be imported.

    Raises:
        UserError: One cannot be. TensorBoard may be missing, since it is among the defaults.
    """
    for name in config.loggers:
        if name in ("wandb", "mlflow"):
            with _import_errors_told(name):
                importlib.import_module(name)


def build_loggers(
    config: RuntimeConfig, folder: Path, done: int, run_ids: dict[str, str]
) -> list[Logger]:
    """Build the loggers that a recipe names.

    Args:
        config: Runtime section of the recipe.
        folder: Folder of the run; everything that stays on this machine is written below it.
        done: Number of steps that are done.
        run_ids: Ids of the run in Weights & Biases and MLflow, by logger, which a resumed run
            continues; those of new runs are added.

    Raises:
        UserError: A logger needs a package that cannot be imported.
    """
    return [
        logger
        for name in dict.fromkeys(config.loggers)
        if (logger := _build_logger(name, folder, done, run_ids)) is not None
    ]


def _build_logger(name: str, folder: Path, done: int, run_ids: dict[str, str]) -> Logger | None:
    if name == "csv":
        return CsvLogger(folder, done)
    if name == "tensorboard":
        try:
            return _tensorboard_logger(folder, done)
        except ImportError as error:
            # It is among the default loggers, and an optional package.
            print(
                f"TensorBoard logs are left out, since {_import_problem(name, error)}; "
                "runtime.loggers=[csv] hides this"
            )
            return None
    with _import_errors_told(name):
        return (
            _wandb_logger(folder, run_ids) if name == "wandb" else _mlflow_logger(folder, run_ids)
        )


@contextmanager
def _import_errors_told(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        problem = _import_problem(name, error)
        raise UserError(f"runtime.loggers names {name}, but {problem}") from error


def _import_problem(name: str, error: ImportError) -> str:
    """Say in a line why the package of a logger cannot be imported."""
    # torch.utils.tensorboard is a part of torch that can be left out like a package.
    if isinstance(error, ModuleNotFoundError) and (error.name or "").endswith(name):
        return f"{name} is not installed: pip install 'rcnn-ext[{name}]'"
    return f"{name} cannot be imported: {str(error).partition(chr(10))[0]}"


def _tensorboard_logger(folder: Path, done: int) -> Logger:
    import torch.utils.tensorboard  # noqa: F401  # Lightning would fall back to tensorboardX.
    from lightning.pytorch.loggers import TensorBoardLogger

    # `purge_step` hides the points of steps that are repeated.
    return TensorBoardLogger(
        folder,
        name=TENSORBOARD,
        version="",
        default_hp_metric=False,
        purge_step=done + 1 if done else None,
    )


def _wandb_logger(folder: Path, run_ids: dict[str, str]) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(
        name=folder.resolve().name,
        save_dir=folder,
        id=run_ids.setdefault("wandb", uuid.uuid4().hex),
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
    )


def _mlflow_logger(folder: Path, run_ids: dict[str, str]) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger

    root = folder.resolve()
    server = os.environ.get("MLFLOW_TRACKING_URI")
    logger = MLFlowLogger(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT),
        run_name=root.name,
        # MLflow no longer takes new runs into folders of files, but into a database.
        tracking_uri=server or f"sqlite:///{root / MLFLOW_DATABASE}",
        # A server knows its own place, and not this machine's folders.
        artifact_location=None if server else (root / MLFLOW_ARTIFACTS).as_uri(),
        run_id=run_ids.get("mlflow"),
    )
    run_ids["mlflow"] = str(logger.run_id)
    return logger


def close_loggers(loggers: Sequence[Logger], *, failed: bool) -> None:
    """End what Lightning leaves open after a fit, since it does not know which phase is the last.

    Args:
        loggers: The loggers of the run.
        failed: Whether an exception ended it.
    """
    for logger in loggers:
        # The run begins with the first value: asking for it would begin one only to end it.
        if type(logger).__name__ == "WandbLogger" and getattr(logger, "_experiment", None):
            logger.experiment.finish(exit_code=int(failed))  # type: ignore[attr-defined]


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Return the rows of ``losses.csv`` or ``validation.csv``.

    A last row that a full disk or a power failure cut is left out.

    Raises:
        UserError: The file was not written by a run.
    """
    rows: list[dict[str, Any]] = []
    try:
        text = path.read_text(encoding="utf-8")
        # Rows are written with the ends of their lines.
        whole = text[: text.rfind("\n") + 1]
        for row in csv.DictReader(whole.splitlines(), strict=True):
            if None in row or None in row.values() or not row["step"].isdecimal():
                raise ValueError(row)
            rows.append(row)
    except (ValueError, KeyError, csv.Error) as error:
        raise UserError(
            f"{path}:{len(rows) + 2}: this is no row that a run writes: is it damaged, or edited? "
            "Correct it, or delete the file to go on without the values so far"
        ) from error
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with equal keys, whole or not at all; no rows give an empty file."""
    lines = [",".join(rows[0])] if rows else []
    lines += [_csv_line(row) for row in rows]
    write_text(path, "".join(f"{line}\n" for line in lines))


def append_csv(path: Path, row: dict[str, Any]) -> None:
    """Append a row, after a header if the file is empty; a folder that was removed is made anew."""
    make_folder(path.parent)
    with path.open("a", encoding="utf-8") as file:
        lines = [] if file.tell() else [",".join(row)]
        file.write("".join(f"{line}\n" for line in [*lines, _csv_line(row)]))


def _csv_line(row: dict[str, Any]) -> str:
    return ",".join("" if value is None else str(value) for value in row.values())
