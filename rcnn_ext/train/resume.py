"""Continue or replace an earlier run in the folder of a run, or leave it alone."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from pathlib import Path
from typing import Any

from rcnn_ext.config import Recipe
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.files import make_folder, temporaries_of
from rcnn_ext.predict.checkpoint import (
    BEST,
    LAST,
    ModelFormatError,
    SavedDetector,
    load_checkpoint,
)
from rcnn_ext.train.loggers import (
    LOSSES,
    MLFLOW_ARTIFACTS,
    MLFLOW_DATABASE,
    TENSORBOARD,
    VALIDATION,
    WANDB,
)
from rcnn_ext.train.phases import RunState, all_phases
from rcnn_ext.train.weights import WEIGHTS_TABLE

RECIPE, LOSS_CURVE = "recipe.yaml", "losses.png"


_FILES = (LAST, BEST, LOSSES, VALIDATION, RECIPE, LOSS_CURVE, WEIGHTS_TABLE)


def check_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Make the folder of a run if need be, and check that a run may be resumed or begun in it.

    A run that ended before its first logged step and its first checkpoint, such as one whose
    weights could not be downloaded, is in nobody's way.

    Raises:
        UserError: There is nothing to resume, or an earlier run is not to be replaced.
    """
    make_folder(out)
    if resume:
        if not (out / LAST).is_file():
            raise UserError(f"nothing to resume: {out / LAST} does not exist")
        _remove_temporaries(out)
    elif not overwrite and _has_steps(out):
        resumable = (out / LAST).is_file()
        advice = "continue it with --resume, replace it with" if resumable else "replace it with"
        raise UserError(f"{out} holds a training run; {advice} --overwrite, or name another --out")


def clear_folder(out: Path) -> None:
    """Delete the files of an earlier run."""
    for name in (*_FILES, MLFLOW_DATABASE):
        (out / name).unlink(missing_ok=True)
    for name in (TENSORBOARD, WANDB, MLFLOW_ARTIFACTS):
        shutil.rmtree(out / name, ignore_errors=True)
    _remove_temporaries(out)


def _remove_temporaries(out: Path) -> None:
    """Remove checkpoints that were being written when an earlier run was killed."""
    for name in (LAST, BEST):
        for path in temporaries_of(out / name):
            path.unlink(missing_ok=True)


def _has_steps(out: Path) -> bool:
    """Return whether a folder has a checkpoint or losses."""
    if any((out / name).exists() for name in (LAST, BEST, VALIDATION, LOSS_CURVE)):
        return True
    losses = out / LOSSES
    # A run makes the file before its first step.
    return losses.exists() and losses.stat().st_size > 0


def resume_command(data: Path, out: Path) -> str:
    """Return the command that continues a run."""
    return shlex.join(["rcnn-ext", "train", "--data", str(data), "--out", str(out), "--resume"])


def describe_resume(saved: SavedDetector, recipe: Recipe, state: RunState) -> str:
    """Return where a run continues, and what its recipe has now that it had not before.

    Args:
        saved: The checkpoint it continues from.
        recipe: The resolved recipe that it continues with.
        state: Its progress.
    """
    phases = all_phases(recipe)
    end = phases[-1].end
    phase = ", in the second phase" if state.phase else ""
    before, now = (_flat(dataclasses.asdict(one)) for one in (saved.recipe, recipe))
    changed = [
        f"{key}={now[key]} (was {before.get(key)})"
        for key in now
        if key != "description" and now[key] != before.get(key)
    ]
    text = f"resuming {saved.path}: step {saved.step} of {end} is done{phase}"
    return f"{text}; changed: {', '.join(changed)}" if changed else text


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat


def check_resumable(
    out: Path, recipe: Recipe, classes: ClassList
) -> tuple[SavedDetector, RunState]:
    """Read ``last.ckpt`` and check that the recipe can resume from it.

    A phase that had done all its steps is continued if the recipe now has more steps for it.

    Returns:
        The checkpoint, and the progress of the run.

    Raises:
        UserError: It does not fit, or nothing is left to train.
    """
    path = out / LAST
    saved = load_checkpoint(path)
    if not saved.is_resumable:
        raise ModelFormatError(
            f"{path} cannot be resumed: like {BEST}, it has no state of the optimizer; start "
            f"another run from it with model.weights={path}"
        )
    if saved.classes != classes:
        raise UserError(f"{path} was trained for other classes: {', '.join(saved.classes.names)}")
    before, now = _fixed_values(saved.recipe), _fixed_values(recipe)
    if saved.recipe.refine is None:
        # A second phase may come after all; nothing depends on it yet.
        now = {key: value for key, value in now.items() if not key.startswith("refine.")}
    changed = [key for key in now if now[key] != before.get(key)]
    if changed:
        raise UserError(
            f"a resumed run cannot change {', '.join(changed)}; {out / RECIPE} has what it was "
            "started with, and counts where --resume is given without RECIPE"
        )
    try:
        state = RunState(**saved.state)
    except TypeError as error:
        raise ModelFormatError(f"{path} cannot be resumed, only loaded: {error}") from error
    phases = all_phases(recipe)
    if state.phase >= len(phases):
        raise UserError(f"{path} is in its second phase, and the recipe has none")
    steps, patience = phases[state.phase].schedule.num_steps, recipe.evaluation.patience
    out_of_patience = patience is not None and state.validations_without_improvement >= patience
    state.ended = state.ended and (out_of_patience or saved.step >= state.phase_start + steps)
    if state.ended and state.phase == len(phases) - 1:
        key = "refine.schedule.steps" if state.phase else "schedule.steps"
        more = f"a larger {key} than {steps}"
        if out_of_patience:
            more = f"a larger evaluation.patience than {patience}"
        raise UserError(f"{path} has {saved.step} steps already; {more} continues it")
    return saved, state


def _fixed_values(recipe: Recipe) -> dict[str, Any]:
    """Return the values that a resumed run cannot change, by dotted key."""
    values = {f"model.{key}": value for key, value in dataclasses.asdict(recipe.model).items()}
    values |= {"data.batch_size": recipe.data.batch_size, "seed": recipe.seed}
    if recipe.data.format == "hf" and recipe.data.hf.resume == "exact":
        # Its order depends on these.
        values["data.workers"] = recipe.data.workers
        values["data.hf.shuffle_buffer"] = recipe.data.hf.shuffle_buffer
    optimizers = {"optimizer": recipe.optimizer}
    if recipe.refine is not None:
        values["refine.trainable"] = recipe.refine.trainable
        optimizers["refine.optimizer"] = recipe.refine.optimizer
    for section, optimizer in optimizers.items():
        # These decide how the parameters are grouped, by which the optimizer's state is stored.
        values |= {
            f"{section}.name": optimizer.name,
            f"{section}.freeze": optimizer.freeze,
            f"{section}.lr_overrides": optimizer.lr_overrides,
        }
    return values
