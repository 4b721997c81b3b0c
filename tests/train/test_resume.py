"""The folder of a run is left alone, replaced as a whole, or continued."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.cli import main
from rcnn_ext.errors import UserError
from rcnn_ext.train.loggers import read_csv
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


@pytest.fixture
def copied_run(tiny_run, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    shutil.copytree(tiny_run.out, out)
    return out


def resume(tiny_run, out: Path) -> int:
    return main(
        ["train", "--data", str(tiny_run.data), "--out", str(out), "--resume", "schedule.steps=6"]
    )


def test_a_row_of_losses_that_was_cut_off_is_left_out(tiny_run, copied_run: Path, capsys) -> None:
    losses = copied_run / "losses.csv"
    text = losses.read_text()
    losses.write_text(text + "5,0.5")
    assert read_csv(losses) == read_csv(tiny_run.out / "losses.csv")
    assert resume(tiny_run, copied_run) == 0
    steps = [int(row["step"]) for row in read_csv(losses)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 6


@pytest.mark.parametrize("garbage", ["no table\n1\n", "step,loss\n1,2\nx,3\n", "step,loss\n1\n"])
def test_a_table_of_losses_that_is_none_is_named_before_training(
    tiny_run, copied_run: Path, capsys, garbage: str
) -> None:
    (copied_run / "losses.csv").write_text(garbage)
    assert resume(tiny_run, copied_run) == 2
    assert "losses.csv:" in (error := capsys.readouterr().err)
    assert "no row that a run writes" in error


def test_a_checkpoint_without_an_optimizer_is_not_resumed(
    tiny_run, copied_run: Path, capsys
) -> None:
    shutil.copy(copied_run / "best.ckpt", copied_run / "last.ckpt")
    assert resume(tiny_run, copied_run) == 2
    assert "last.ckpt cannot be resumed: like best.ckpt, it has no state of the optimizer" in (
        capsys.readouterr().err
    )
