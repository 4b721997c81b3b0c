"""Checkpoints that are damaged or too old name the file and what is wrong."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest
import torch

from rcnn_ext.config import load_recipe
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.predict.checkpoint import ENTRY, ModelFormatError, describe, load_checkpoint
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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "2"),
        ("version", 1),
        ("recipe", None),
        ("class_names", None),
        ("class_names", ["cat", ["dog"]]),
        ("class_names", ["cat"]),
        ("category_ids", 3),
        ("step", "7"),
        ("state", []),
    ],
)
def test_values_of_wrong_types_are_named(tmp_path: pathlib.Path, key: str, value: Any) -> None:
    content = _content()
    content[ENTRY][key] = value
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ModelFormatError, match=r"a\.ckpt"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_weights_that_are_no_dict_are_told(tmp_path: pathlib.Path) -> None:
    torch.save({**_content(), "state_dict": [1]}, tmp_path / "a.ckpt")
    with pytest.raises(ModelFormatError, match=r"'state_dict' in .*a\.ckpt is no dict but a list"):
        load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("error", [AttributeError, TypeError, IndexError, KeyError])
def test_whatever_torch_raises_for_a_damaged_file_is_a_format_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"damaged")

    def fail(*_: Any, **__: Any) -> None:
        raise error("no such opcode")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ModelFormatError, match=r"a\.ckpt is not a checkpoint, or is damaged"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_a_file_of_before_the_first_release_must_be_trained_anew(tmp_path: pathlib.Path) -> None:
    content = _content()
    content[ENTRY] |= {"format": 1, "recipe": {"runtime": {"tensorboard": True}}}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ModelFormatError) as error:
        load_checkpoint(tmp_path / "a.ckpt")
    assert str(error.value) == (
        f"{tmp_path / 'a.ckpt'} was written before rcnn_ext 0.1.0 (format 1), which cannot read "
        "it; train the model anew"
    )


@pytest.mark.parametrize("where", ["state_dict", "key", "class_names", "category_ids"])
def test_edited_values_within_lists_and_weights_are_named(
    tmp_path: pathlib.Path, where: str
) -> None:
    content = _content()
    if where == "state_dict":
        content["state_dict"]["model.x"] = [1.0]
    elif where == "key":
        content["state_dict"][3] = torch.zeros(1)
    else:
        content[ENTRY][where] = [None, {}]
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ModelFormatError, match=r"a\.ckpt.*: is it damaged, or edited\?"):
        load_checkpoint(tmp_path / "a.ckpt")
