"""Checkpoints: a detector with its recipe and the names of its classes, in one file.

The file is Lightning's, plus one entry, ``rcnn_ext``. It holds tensors and plain values only and is
loaded with ``weights_only=True``: opening a checkpoint runs no code of it. Reading one needs no
Lightning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from rcnn_ext import __version__
from rcnn_ext.config import Recipe, recipe_from_dict
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.models.from_config import build_model
from rcnn_ext.train.phases import RunState

BEST, LAST = "best.ckpt", "last.ckpt"
# What `rcnn-ext export` writes.
WEIGHTS_SUFFIX, PROGRAM_SUFFIX = ".safetensors", ".pt2"

# The Lightning module holds the detector under this name.
_PREFIX = "model."
ENTRY = "rcnn_ext"
_FORMAT = 1


@dataclass(frozen=True)
class SavedDetector:
    """What a checkpoint holds of a detector.

    Attributes:
        path: The file.
        recipe: How it was trained.
        classes: What its labels mean.
        step: Number of training steps, of all phases.
        state: What the run remembered of its phases and validations then.
        weights: The state dict of the model.
    """

    path: Path
    recipe: Recipe
    classes: ClassList
    step: int
    state: RunState
    weights: dict[str, torch.Tensor]

    def build(self, device: torch.device) -> nn.Module:
        """The detector in evaluation mode.

        Raises:
            UserError: The weights are not those of the model that the recipe describes.
        """
        model = build_model(self.recipe.model, self.classes.num_classes, pretrained=False)
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(
                f"the weights in {self.path} do not fit its recipe: {reason}"
            ) from error
        return model.to(device).eval()


def describe(
    recipe: Recipe, classes: ClassList, step: int, state: dict[str, Any]
) -> dict[str, Any]:
    """The entry that makes a Lightning checkpoint one of ours, by its key."""
    return {
        ENTRY: {
            "format": _FORMAT,
            "version": __version__,
            "recipe": dataclasses.asdict(recipe),
            "class_names": list(classes.names),
            "category_ids": list(classes.category_ids),
            "step": step,
            "state": state,
        }
    }


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that is meant: the file itself, or the best, else the last, of a run's folder.

    Raises:
        UserError: There is none.
    """
    if path.is_file():
        return path
    for name in (BEST, LAST):
        if (path / name).is_file():
            return path / name
    if path.is_dir():
        raise UserError(f"{path} has neither {BEST} nor {LAST}: is it the --out of a training run?")
    raise UserError(f"the checkpoint {path} does not exist")


def load_checkpoint(path: Path) -> SavedDetector:
    """Reads a checkpoint, or what was exported from one.

    Args:
        path: The file, or the folder of a training run.

    Raises:
        UserError: There is none, it is damaged, or something else wrote it.
    """
    path = find_checkpoint(path)
    if path.suffix in (WEIGHTS_SUFFIX, PROGRAM_SUFFIX):
        from rcnn_ext.predict.export import load_exported

        return load_exported(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a checkpoint, or is damaged: {reason}") from error
    entry = content.get(ENTRY) if isinstance(content, dict) else None
    if not isinstance(entry, dict):
        raise UserError(f"{path} was not written by rcnn-ext train")
    _check_keys(path, content, ("state_dict",))
    weights = {
        name.removeprefix(_PREFIX): value
        for name, value in content["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    return SavedDetector(path=path, weights=weights, **read_entry(path, entry))


def read_entry(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """What :func:`describe` stored, as arguments of :class:`SavedDetector`.

    Raises:
        UserError: A newer version wrote it, something is missing, or its recipe is no longer one.
    """
    _check_keys(path, entry, ("format", "version"))
    if entry["format"] > _FORMAT:
        raise UserError(
            f"{path} was written by rcnn_ext {entry['version']}, which is newer than this one "
            f"({__version__}): pip install --upgrade rcnn-ext"
        )
    _check_keys(path, entry, ("recipe", "class_names", "category_ids", "step", "state"))
    try:
        recipe = recipe_from_dict(entry["recipe"])
    except UserError as error:
        raise UserError(f"the recipe in {path}: {error}") from error
    return {
        "recipe": recipe,
        "classes": ClassList(tuple(entry["class_names"]), tuple(entry["category_ids"])),
        "step": entry["step"],
        "state": RunState(**entry["state"]),
    }


def _check_keys(path: Path, content: dict[str, Any], keys: Sequence[str]) -> None:
    missing = ", ".join(repr(key) for key in keys if key not in content)
    if missing:
        raise UserError(f"{path} has no {missing}: is it damaged, or edited?")
