"""The folder of a run is left alone, replaced as a whole, or continued."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.errors import UserError
from rcnn_ext.train.resume import check_folder, clear_folder

FILES = ("last.ckpt", "best.ckpt", "losses.csv", "validation.csv", "recipe.yaml", "losses.png")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in (*FILES, "mlflow.db", "notes.txt", ".last-abcd1234.ckpt", ".best-abcd1234.ckpt"):
        (tmp_path / name).write_text("")
    for name in ("tensorboard", "wandb", "mlartifacts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    return tmp_path


def test_a_run_is_kept_unless_it_is_to_be_replaced(run: Path) -> None:
    before = sorted(os.listdir(run))
    with pytest.raises(UserError, match="--overwrite"):
        check_folder(run, resume=False, overwrite=False)
    assert sorted(os.listdir(run)) == before


def test_overwriting_leaves_nothing_of_the_run(run: Path) -> None:
    check_folder(run, resume=False, overwrite=True)
    clear_folder(run)
    assert os.listdir(run) == ["notes.txt"]


def test_resuming_removes_only_what_a_kill_left_behind(run: Path) -> None:
    before = set(os.listdir(run))
    check_folder(run, resume=True, overwrite=False)
    assert before - set(os.listdir(run)) == {".last-abcd1234.ckpt", ".best-abcd1234.ckpt"}
