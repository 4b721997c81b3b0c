"""What a new user meets when training, evaluating and going on, end to end on tiny data."""

from __future__ import annotations

import csv
import shlex
import shutil
import signal
from urllib.error import URLError

import pytest
import torch
import yaml

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.cli import main
from rcnn_ext.distributed import Processes
from rcnn_ext.predict.checkpoint import load_checkpoint
from rcnn_ext.selective_search import from_config
from rcnn_ext.train import logs, threads
from tests.helpers.made_data import as_voc

pytestmark = pytest.mark.usefixtures("one_thread")


def train(data, out, *more, recipe=("faster_rcnn_synthetic",)):
    return main(["train", *recipe, "--data", str(data), "--out", str(out), *more])


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def stored(out):
    return yaml.safe_load((out / "recipe.yaml").read_text())


def test_a_failed_download_comes_first_and_leaves_the_folder_free(
    tiny_run, tmp_path, monkeypatch, capsys
):
    def offline(*arguments, **options):
        raise URLError("no network")

    def search(*arguments):
        raise AssertionError("the search for proposals came before the download")

    data, out = as_voc(tmp_path / "data"), tmp_path / "out"
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr(from_config, "precompute", search)
    shutil.copytree(tiny_run.out, tmp_path / "earlier")
    for target, more in ((out, ()), (tmp_path / "earlier", ("--overwrite",))):
        assert train(data, target, *more, recipe=["fast_rcnn_voc", "data.workers=0"]) == 2
        assert "On the command line that is model.weights_backbone=null" in capsys.readouterr().err
    assert not list(out.iterdir())
    assert load_checkpoint(tmp_path / "earlier").classes.names == ("circle", "square", "triangle")


def test_a_folder_without_steps_is_free(tiny_run, tmp_path, capsys):
    broken = ("optimizer.freeze=[nothing]", "--max-steps", "1", "evaluation.val_every=0")
    assert train(tiny_run.data, tmp_path / "out", *tiny_run.overrides, *broken) == 2
    assert (tmp_path / "out" / "recipe.yaml").exists()
    right = ("--max-steps", "1", "evaluation.max_images=1")
    assert train(tiny_run.data, tmp_path / "out", *tiny_run.overrides, *right) == 0
    assert stored(tmp_path / "out")["optimizer"]["freeze"] == []


def test_resume_needs_neither_recipe_nor_overrides(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(tiny_run.out, out)
    before = stored(out)
    more = ("--resume", "schedule.steps=6", "optimizer.lr=0.0001")
    assert train(tiny_run.data, out, *more, recipe=()) == 0
    printed = capsys.readouterr().out
    assert f"resuming {out / 'last.ckpt'}: step 4 of 6 is done" in printed
    assert "schedule.steps=6 (was 4)" in printed
    assert "optimizer.lr=0.0001 (was 0.0008)" in printed
    assert "model." not in printed.partition("changed: ")[2].partition("\n")[0]
    assert [row["step"] for row in rows(out / "losses.csv")] == ["1", "2", "3", "4", "5", "6"]
    after = stored(out)
    assert after["schedule"].pop("steps") == 6
    assert after["optimizer"].pop("lr") == 0.0001
    del before["schedule"]["steps"], before["optimizer"]["lr"]
    assert after == before

    assert train(tiny_run.data, out, "--resume", "model.dropout=0.5", recipe=()) == 2
    assert "a resumed run cannot change model.dropout" in capsys.readouterr().err
    assert train(tiny_run.data, out, "--resume", "seed=0", recipe=()) == 2
    assert "a larger schedule.steps than 6 continues it" in capsys.readouterr().err


def test_a_demo_that_was_stopped_tells_how_to_continue(tiny_run, tmp_path, monkeypatch, capsys):
    step_end = logs.Logs.on_train_batch_end

    def press_ctrl_c(self, trainer, module, *arguments):
        step_end(self, trainer, module, *arguments)
        if module.steps_done == 1:
            module.stop_signal = signal.SIGINT

    options = ("--no-bench", *tiny_run.overrides, "schedule.steps=3", "evaluation.val_every=0")
    with monkeypatch.context() as patch:
        patch.setattr(logs.Logs, "on_train_batch_end", press_ctrl_c)
        assert main(["demo", "--out", str(tmp_path / "out"), *options]) == 130
    command = capsys.readouterr().err.rpartition("continue with: ")[2]
    program, *arguments = shlex.split(command)
    assert program == "rcnn-ext"
    assert "--no-bench" in arguments
    assert main(arguments) == 1  # it is done, and three steps do not reach the AP of the recipe
    assert capsys.readouterr().out.rstrip().endswith("that this recipe should reach")
    assert [row["step"] for row in rows(tmp_path / "out/run/losses.csv")] == ["1", "2", "3"]


def test_epochs_are_counted_in_both_phases_and_kept_as_steps(tiny_run, tmp_path, capsys):
    options = (
        "schedule.epochs=0.5",
        "schedule.decay=multistep",
        "schedule.milestones=[0.25]",
        "refine.schedule.epochs=0.25",
        "evaluation.max_images=1",
        "evaluation.val_every=0",
    )
    assert train(tiny_run.data, tmp_path / "out", *tiny_run.overrides, *options) == 0
    printed = capsys.readouterr().out
    assert "schedule.epochs=0.5: 2 steps of 2 of 8 images" in printed
    assert "refine.schedule.epochs=0.25: 1 steps of 2 of 8 images" in printed
    assert [row["epoch"] for row in rows(tmp_path / "out" / "losses.csv")] == [
        "0.25",
        "0.5",
        "0.75",
    ]
    recipe = stored(tmp_path / "out")
    for section, steps in ((recipe["schedule"], 2), (recipe["refine"]["schedule"], 1)):
        assert (section["steps"], section["epochs"]) == (steps, None)
    assert recipe["schedule"]["milestones"] == [1]


def test_a_length_that_is_given_is_the_length_of_the_run(tiny_run, tmp_path, capsys):
    (tmp_path / "two.yaml").write_text("schedule: {steps: 8}\nrefine: {schedule: {steps: 9}}\n")
    base = ["train", str(tmp_path / "two.yaml"), "--data", str(tiny_run.data)]
    options = ("data.format=coco", *tiny_run.overrides, "model.norm_layer=batch")
    options += ("model.weights_backbone=null", "evaluation.max_images=1")
    out = tmp_path / "out"
    assert main([*base, "--out", str(out), "schedule.steps=1", *options]) == 0
    printed = capsys.readouterr().out
    assert "schedule.steps=1 is the whole length: the second phase (refine) is left out" in printed
    assert [row["step"] for row in rows(out / "losses.csv")] == ["1"]


def test_what_train_suggests_works_without_a_validation_split(tiny_run, tmp_path, capsys):
    data, out = tmp_path / "the data", tmp_path / "out"
    shutil.copytree(tiny_run.data, data)
    (data / "annotations" / "instances_val.json").unlink()
    options = (*tiny_run.overrides, "data.format=coco", "--max-steps", "1")
    assert train(data, out, *options) == 0
    command = capsys.readouterr().out.splitlines()[-1].rpartition(": ")[2]
    program, *arguments = shlex.split(command)
    assert program == "rcnn-ext"
    assert main(arguments) == 0


def test_eval_takes_the_keys_that_its_errors_advise(tiny_run, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(tiny_run.data, data)
    (data / "annotations" / "instances_val.json").rename(data / "annotations" / "mine.json")
    command = ["eval", str(tiny_run.out), "--data", str(data), "--out", str(tmp_path / "found")]
    assert main([*command, "data.format=coco"]) == 2
    assert "name one with data.val_annotations" in capsys.readouterr().err
    named = ("data.format=coco", "data.val_annotations=annotations/mine.json")
    assert main([*command, *named, "data.val_images=val"]) == 0
    for override, message in (
        (
            "model.min_size=32",
            "a trained model stays as it is: data.* and selective_search.* may change",
        ),
        ("data.classes=[circle]", "the model has learned its own classes"),
        ("data.formt=coco", "did you mean data.format?"),
    ):
        assert main([*command, override]) == 2
        assert message in capsys.readouterr().err


def test_detect_takes_the_keys_that_its_errors_advise(tiny_run, tmp_path, capsys):
    (tmp_path / "list.csv").write_text(f"photo\n{tiny_run.data / 'val' / '000001.png'}\n")
    command = [
        "detect",
        str(tiny_run.out),
        str(tmp_path / "list.csv"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(command) == 2
    assert "data.csv.columns={image: NAME}" in capsys.readouterr().err
    assert main([*command, "--no-pictures", "data.csv.columns={image: photo}"]) == 0
    assert (tmp_path / "o" / "detections.json").is_file()


@pytest.mark.parametrize(("given", "steps"), [("3", ["3", "4"]), ("null", ["1", "2", "3", "4"])])
def test_lines_of_losses_are_as_long_as_asked_for(tiny_run, tmp_path, given, steps):
    options = (*tiny_run.overrides, f"runtime.log_every={given}", "evaluation.val_every=0")
    options += ("evaluation.max_images=1", "--max-steps", "4")
    assert train(tiny_run.data, tmp_path / "out", *options) == 0
    assert [row["step"] for row in rows(tmp_path / "out" / "losses.csv")] == steps


@pytest.mark.parametrize(
    ("cores", "processes", "threads_each", "workers", "hint"),
    [
        (8, 1, 4, 4, None),
        (8, 1, 8, 2, "8 threads and 2 workers share 8 cores; if steps are slow, try OMP_NUM_TH"),
        (8, 2, 4, 1, "2 processes with 4 threads and 1 workers share 8 cores"),
        (2, 1, 1, 2, "try data.workers=1"),
        (2, 4, 1, 0, "try fewer processes"),
    ],
)
def test_threads_that_fight_for_cores_are_told(
    monkeypatch, cores, processes, threads_each, workers, hint
):
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads_each)
    group = Processes(0, processes, 0, processes)
    line = threads.thread_hint(group, torch.device("cpu"), workers)
    assert (line is None) == (hint is None)
    assert hint is None or hint in line
    assert threads.thread_hint(group, torch.device("cuda"), workers) is None


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "_CPU_MAX", tmp_path / "cpu.max")
    unlimited = threads.available_cores()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert threads.available_cores() == unlimited
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert threads.available_cores() == 1
