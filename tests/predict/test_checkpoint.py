"""Checkpoints that lack something name the file and what is missing."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest
import torch

from rcnn_ext.config import load_recipe
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.predict.checkpoint import ENTRY, describe, load_checkpoint
from rcnn_ext.train.phases import RunState

RECIPE = load_recipe("faster_rcnn_coco")
STATE = RunState(phase=1, best=0.5)


def _content() -> dict[str, Any]:
    classes = ClassList(("cat", "dog"), (17, 18))
    weights = {"model.weight": torch.ones(2), "loss.weight": torch.zeros(1)}
    return {"state_dict": weights, **describe(RECIPE, classes, 7, STATE.as_dict())}


def test_what_was_described_is_read(tmp_path: pathlib.Path) -> None:
    torch.save(_content(), tmp_path / "a.ckpt")
    saved = load_checkpoint(tmp_path / "a.ckpt")
    assert (saved.recipe, saved.step, saved.state) == (RECIPE, 7, STATE.as_dict())
    assert dataclasses.astuple(saved.classes) == (("cat", "dog"), (17, 18))
    assert list(saved.weights) == ["weight"]


@pytest.mark.parametrize("key", _content()[ENTRY])
def test_missing_key_is_named(tmp_path: pathlib.Path, key: str) -> None:
    content = _content()
    del content[ENTRY][key]
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=rf"a\.ckpt has no '{key}'"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_missing_weights_are_named(tmp_path: pathlib.Path) -> None:
    content = _content()
    del content["state_dict"]
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt has no 'state_dict'"):
        load_checkpoint(tmp_path / "a.ckpt")
