"""Checkpoints: a detector with its recipe and the names of its classes, in one file.

The file is Lightning's, plus one entry, ``rcnn_ext``. It holds tensors and plain values only and is
loaded with ``weights_only=True``, so that opening a checkpoint never runs code stored in it.
Reading one needs no Lightning.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rcnn_ext import __version__
from rcnn_ext.config import Recipe, recipe_from_dict
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.models.from_config import build_model
from rcnn_ext.models.torch_files import read_torch_file

BEST, LAST = "best.ckpt", "last.ckpt"
# The weights in a folder that is, or will be, a repository of the Hugging Face Hub.
PRETRAINED = "model.safetensors"

# The Lightning module holds the detector under this name.
PREFIX = "model."
ENTRY = "rcnn_ext"
# What training goes on from, where the weights of the file are an average.
TRAINING_WEIGHTS = "training_weights"
_FORMAT = 2
# Types of the values that describe() stores, by key.
_TYPES: dict[str, type] = {
    "recipe": dict,
    "class_names": list,
    "category_ids": list,
    "step": int,
    "state": dict,
}


class ModelNotFoundError(UserError, FileNotFoundError):
    """No trained model exists at a path or under a name."""


class ModelFormatError(UserError, ValueError):
    """A file is not a trained model of this package, or is damaged."""


@dataclass(frozen=True)
class SavedDetector:
    """A detector as a file holds it.

    Attributes:
        path: The file.
        recipe: The recipe it was trained by.
        classes: The classes that its labels stand for.
        step: Number of training steps, of all phases.
        state: Progress of the training run, as plain values; see
            :class:`rcnn_ext.train.phases.RunState`.
        weights: The state dict of the model; of the average, where the run keeps one.
        training_weights: The state dict that training goes on from; None where it is ``weights``.
        num_averaged: Number of steps that ``weights`` is the average of.
        is_resumable: Whether the file has the state of the optimizer, so that training can go on.
    """

    path: Path
    recipe: Recipe
    classes: ClassList
    step: int
    state: dict[str, Any]
    weights: dict[str, torch.Tensor]
    training_weights: dict[str, torch.Tensor] | None = None
    num_averaged: int = 0
    is_resumable: bool = False

    def build(self, device: torch.device) -> nn.Module:
        """Build the detector in evaluation mode.

        Args:
            device: The device to put it on.

        Raises:
            ModelFormatError: The weights do not fit the model that the recipe describes.
        """
        model = build_model(self.recipe.model, self.classes.num_classes, pretrained=False)
        try:
            model.load_state_dict(self.weights)
        # Values that are no tensors, or no plain ones, raise anything.
        except Exception as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ModelFormatError(
                f"the weights in {self.path} do not fit its recipe: {reason}"
            ) from error
        return model.to(device).eval()


def describe(
    recipe: Recipe, classes: ClassList, step: int, state: dict[str, Any]
) -> dict[str, Any]:
    """Return the entry that turns a Lightning checkpoint into a detector, under its key."""
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


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return the file itself, or the best, else the last, checkpoint of a run's folder.

    A folder may also be one that was written for the Hugging Face Hub.

    Raises:
        ModelNotFoundError: There is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    for name in (BEST, LAST, PRETRAINED):
        if (path / name).is_file():
            return path / name
    if path.is_dir():
        raise ModelNotFoundError(
            f"{path} has neither {BEST} nor {LAST}: is it the --out of a training run?"
        )
    raise ModelNotFoundError(f"the checkpoint {path} does not exist")


def load_checkpoint(path: str | os.PathLike[str]) -> SavedDetector:
    """Read a checkpoint.

    Args:
        path: The file, or the folder of a training run.

    Raises:
        ModelNotFoundError: There is none.
        ModelFormatError: It is damaged, or was not written by this package.
    """
    path = find_checkpoint(path)
    try:
        content = read_torch_file(path, check_sums=True)
    except UserError as error:
        raise ModelFormatError(str(error)) from error
    entry = content.get(ENTRY) if isinstance(content, dict) else None
    if not isinstance(entry, dict):
        raise ModelFormatError(f"{path} was not written by rcnn-ext train")
    _check_types(path, content, {"state_dict": dict})
    training: dict[str, Any] = {}
    if TRAINING_WEIGHTS in content:
        _check_types(path, content, {TRAINING_WEIGHTS: dict})
        kept = content[TRAINING_WEIGHTS]
        _check_types(path, kept, {"state_dict": dict, "num_updates": int})
        training["training_weights"] = _tensors_without_prefix(path, kept["state_dict"])
        training["num_averaged"] = kept["num_updates"]
    weights = _tensors_without_prefix(path, content["state_dict"])
    training["is_resumable"] = isinstance(content.get("optimizer_states"), list)
    return SavedDetector(path=path, weights=weights, **training, **read_entry(path, entry))


def _tensors_without_prefix(path: Path, weights: dict[str, Any]) -> dict[str, Any]:
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ModelFormatError(
                f"{str(name)[:80]!r} in the weights in {path} is no tensor but a "
                f"{type(value).__name__}: is it damaged, or edited?"
            )
    return {
        name.removeprefix(PREFIX): value
        for name, value in weights.items()
        if name.startswith(PREFIX)
    }


def read_entry(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Return what :func:`describe` stored, as arguments of :class:`SavedDetector`.

    Raises:
        ModelFormatError: It was written by a newer version or before 0.1.0, something is missing or
            of a wrong type, or its recipe is not valid.
    """
    _check_types(path, entry, {"format": int, "version": str})
    if entry["format"] < _FORMAT:
        raise ModelFormatError(
            f"{path} was written before rcnn_ext 0.1.0 (format {entry['format']}), which cannot "
            "read it; train the model anew"
        )
    if entry["format"] > _FORMAT:
        raise ModelFormatError(
            f"{path} was written by rcnn_ext {entry['version']}, which is newer than this one "
            f"({__version__}): pip install --upgrade rcnn-ext"
        )
    _check_types(path, entry, _TYPES)
    try:
        recipe = recipe_from_dict(entry["recipe"])
    except UserError as error:
        raise ModelFormatError(f"the recipe in {path}: {error}") from error
    names, ids = entry["class_names"], entry["category_ids"]
    if not all(isinstance(name, str) for name in names) or not all(
        isinstance(number, int | str | float) for number in ids
    ):
        raise ModelFormatError(
            f"the classes in {path} are no names with ids: is it damaged, or edited?"
        )
    try:
        classes = ClassList(tuple(names), tuple(ids))
    except (TypeError, ValueError) as error:
        raise ModelFormatError(f"the classes in {path}: {error}") from error
    return {
        "recipe": recipe,
        "classes": classes,
        "step": entry["step"],
        "state": entry["state"],
    }


def _check_types(path: Path, content: dict[str, Any], types: dict[str, type]) -> None:
    missing = ", ".join(repr(key) for key in types if key not in content)
    if missing:
        raise ModelFormatError(f"{path} has no {missing}: is it damaged, or edited?")
    for key, kind in types.items():
        if not isinstance(content[key], kind):
            raise ModelFormatError(
                f"{key!r} in {path} is no {kind.__name__} but a {type(content[key]).__name__}: "
                "is it damaged, or edited?"
            )
