"""Training, evaluating and checking a stream, on local data of the Hub's schema."""

from __future__ import annotations

import csv
import json
import os
import signal

import pytest
import torch

pytest.importorskip("lightning", reason="lightning comes with the extra train")
pytest.importorskip("datasets", reason="datasets comes with the extra hf")

import datasets

from rcnn_ext.cli import main
from rcnn_ext.data.formats.coco import read_coco
from rcnn_ext.data.formats.synthetic import SHAPES, SyntheticConfig, make_synthetic
from rcnn_ext.predict.checkpoint import load_checkpoint
from rcnn_ext.train import logs
from tests.conftest import TINY
from tests.train.test_distributed import torchrun

pytestmark = pytest.mark.usefixtures("one_thread", "offline_hub")

FEATURES = datasets.Features(
    {
        "image_id": datasets.Value("int64"),
        "image": datasets.Image(),
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
            "category": datasets.List(datasets.ClassLabel(names=list(SHAPES))),
            "area": datasets.List(datasets.Value("float32")),
        },
    }
)
OVERRIDES = (*TINY, "data.format=hf", "data.hf.shuffle_buffer=4", "evaluation.val_every=2")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    make_synthetic(folder, SyntheticConfig(train=8, val=4, size=64, seed=1), lambda items: items)
    return folder


def rows_of(shapes, split):
    found = read_coco(shapes / "annotations" / f"instances_{split}.json", shapes / split)
    return [
        {
            "image_id": 100 + record.image_id,
            "image": {"bytes": record.path.read_bytes(), "path": None},
            "objects": {
                "bbox": [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in record.boxes.tolist()],
                "category": (record.labels - 1).tolist(),
                "area": record.areas.tolist(),
            },
        }
        for record in found.images
    ]


@pytest.fixture
def make(shapes, tmp_path):
    def make(val="val", change=lambda rows: rows):
        for split, name in (("train", "train"), ("val", val)):
            if name is None:
                continue
            rows = change(rows_of(shapes, split))
            table = datasets.Dataset.from_list(rows, features=FEATURES)
            folder = tmp_path / "hub" / "data"
            folder.mkdir(parents=True, exist_ok=True)
            for shard in range(2):
                path = folder / f"{name}-{shard:05d}-of-00002.parquet"
                table.shard(2, shard, contiguous=True).to_parquet(path)
        return tmp_path / "hub"

    return make


def train(data, out, *more, steps=4):
    arguments = ["train", "faster_rcnn_synthetic", "--data", str(data), "--out", str(out)]
    return main([*arguments, "--max-steps", str(steps), *OVERRIDES, *more])


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_time(path):
    return [{**row, "seconds_per_step": 0} for row in rows(path)]


def stop_after(step, monkeypatch):
    step_end = logs.Logs.on_train_batch_end

    def press_ctrl_c(self, trainer, module, *arguments):
        step_end(self, trainer, module, *arguments)
        if module.steps_done == step:
            module.stop_signal = signal.SIGINT

    monkeypatch.setattr(logs.Logs, "on_train_batch_end", press_ctrl_c)


def test_a_stream_trains_validates_and_is_evaluated(make, tmp_path, capsys):
    data, out = make(), tmp_path / "out"
    assert train(data, out, "data.hf.train_images=8") == 0
    said = capsys.readouterr().out
    assert "training: a stream of 2 shards, 8 images, 3 classes" in said
    assert "validation: 4 images" in said
    assert [float(row["epoch"]) for row in rows(out / "losses.csv")] == [0.25, 0.5, 0.75, 1.0]
    assert [row["step"] for row in rows(out / "validation.csv")] == ["2", "4"]
    assert load_checkpoint(out).classes.names == SHAPES

    copied = out / "streamed" / "val" / "annotations.json"
    before = copied.stat().st_mtime_ns
    assert main(["eval", str(out), "--data", str(data), "--batch-size", "2"]) == 0
    assert copied.stat().st_mtime_ns == before, "the copy was used"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["images"] == 4
    best = max(float(row["AP"]) for row in rows(out / "validation.csv"))
    assert metrics["AP"] == pytest.approx(best, abs=1e-6)
    ids = {entry["image_id"] for entry in json.loads((out / "detections.json").read_text())}
    assert ids <= {101, 102, 103, 104}, "the ids of the data"
    assert (out / "worst.jpg").is_file()
    # Another share of the images is another copy.
    assert main(["eval", str(out), "--data", str(data), "--split", "train"]) == 0
    assert json.loads((out / "metrics.json").read_text())["images"] == 8


def test_files_and_the_stream_of_the_same_images_validate_alike(make, shapes, tmp_path):
    data = make()
    assert train(data, tmp_path / "out", steps=1) == 0
    assert main(["eval", str(tmp_path / "out"), "--data", str(data)]) == 0
    of_stream = json.loads((tmp_path / "out" / "metrics.json").read_text())
    checkpoint = load_checkpoint(tmp_path / "out")
    from rcnn_ext.data.dataset import DetectionDataset
    from rcnn_ext.metrics.coco import detection_metrics
    from rcnn_ext.metrics.evaluate import evaluate

    files = read_coco(shapes / "annotations" / "instances_val.json", shapes / "val")
    cpu = torch.device("cpu")
    found = evaluate(
        checkpoint.build(cpu), DetectionDataset(files), device=cpu, batch_size=2, workers=0
    )
    summary = detection_metrics(found, files.classes).summary
    assert {name: of_stream[name] for name in summary} == pytest.approx(summary, abs=1e-6)


def test_a_resumed_run_reads_the_stream_from_where_it_stopped(make, tmp_path, monkeypatch, capsys):
    data, option = make(), "data.workers=2"
    assert train(data, tmp_path / "whole", option) == 0
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert train(data, tmp_path / "out", option) == 130
    stopped = load_checkpoint(tmp_path / "out" / "last.ckpt").step
    assert stopped in (2, 3)
    capsys.readouterr()
    assert train(data, tmp_path / "out", option, "--resume") == 0
    assert f"resuming: {2 * stopped} images of the stream are read over" in capsys.readouterr().out
    whole, resumed = (without_time(tmp_path / name / "losses.csv") for name in ("whole", "out"))
    assert whole == resumed
    assert len(whole) == 4


def test_a_resumed_run_may_begin_a_new_order(make, tmp_path, capsys):
    data, out = make(), tmp_path / "out"
    # Steps that do not depend on how many there will be.
    constant = ("schedule.decay=constant", "schedule.warmup_steps=0", "evaluation.val_every=0")
    assert train(data, out, *constant, steps=2) == 0
    assert train(data, out, *constant, "--resume", "data.workers=1") == 2
    assert "a resumed run cannot change data.workers" in capsys.readouterr().err
    assert train(data, out, *constant, "--resume", "data.hf.resume=reshuffle") == 0
    assert "the stream begins anew" in capsys.readouterr().out
    assert train(data, tmp_path / "whole", *constant) == 0
    whole, other = (without_time(tmp_path / name / "losses.csv") for name in ("whole", "out"))
    assert whole[:2] == other[:2]
    assert whole[2:] != other[2:]


def test_two_processes_share_a_stream(make, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data, out = make(), tmp_path / "out"
    command = ["train", "faster_rcnn_synthetic", "--data", str(data), "--out", str(out)]
    codes, outputs = torchrun(1, [*command, "--max-steps", "2", *OVERRIDES])
    assert codes == [0], outputs
    assert [row["step"] for row in rows(out / "losses.csv")] == ["1", "2"]
    assert [row["step"] for row in rows(out / "validation.csv")] == ["2"]
    saved = load_checkpoint(out / "last.ckpt")
    assert saved.state["processes"] == 2


def test_without_a_validation_split(make, tmp_path, capsys):
    data = make(val=None)
    assert train(data, tmp_path / "out", steps=1) == 0
    assert "no validation split" in capsys.readouterr().out
    assert not (tmp_path / "out" / "best.ckpt").exists()
    assert train(data, tmp_path / "other", "data.hf.val_split=held_out", steps=1) == 2
    assert "cannot open the held_out split" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.val_fraction=0.1", "data.val_fraction=0.1 means nothing for a stream"),
        ("data.max_train_images=3", "data.max_train_images=3 means nothing for a stream"),
        ("data.measure_mean_std=true", "data.measure_mean_std=True means nothing for a stream"),
        ("data.repeat_threshold=0.1", "data.repeat_threshold=0.1 means nothing for a stream"),
        ("data.augment.copy_paste=0.5", "data.augment.copy_paste needs masks of objects"),
        ("model.detector=fast_rcnn", "fast_rcnn has to see all images before the first step"),
    ],
)
def test_what_a_stream_cannot_do_is_said(make, tmp_path, capsys, override, message):
    assert train(make(), tmp_path / "out", override) == 2
    assert message in capsys.readouterr().err


def test_check_names_rows(make, tmp_path, capsys):
    assert main(["check", str(make()), "--format", "hf"]) == 0
    said = capsys.readouterr().out
    assert "train: 8 images" in said
    assert "val: 4 images" in said
    assert "0 errors, 0 warnings" in said

    def broken(rows):
        rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:60]
        rows[2]["objects"] = {"bbox": [[50.0, 50.0, 40.0, 10.0]], "category": [1], "area": [400.0]}
        rows[3]["image_id"] = rows[0]["image_id"]
        return rows

    data = make(change=broken)
    pictures = ["--pictures", str(tmp_path / "pictures"), "--json", str(tmp_path / "report.json")]
    with pytest.warns(RuntimeWarning, match="skipped: image 102"):
        code = main(["check", str(data), "--format", "hf", "--split", "train", *pictures])
    assert code == 2
    said = capsys.readouterr().out
    assert f"{data}:2: error: image 102 is damaged: " in said
    assert f"{data}:3: warning: object 0: the box [50, 50, 90, 60] reaches out" in said
    assert f"{data}:4: error: the id 101 is used twice, first by row 1" in said
    assert os.listdir(tmp_path / "pictures") == ["train.jpg"]
    problems = json.loads((tmp_path / "report.json").read_text())["splits"]["train"]["problems"]
    assert sorted(problem["line"] for problem in problems) == [2, 3, 4]


def test_copies_give_way_to_others_and_leave_foreign_folders_alone(make, tmp_path):
    from rcnn_ext.data import DataConfig, copy_split, open_stream
    from rcnn_ext.errors import UserError

    split = open_stream(DataConfig(format="hf"), make(), "val")
    assert len(copy_split(split, tmp_path / "copy", 3)) == 3
    found = copy_split(split, tmp_path / "copy")
    assert len(found) == 4
    assert sorted(os.listdir(tmp_path / "copy" / "images")) == [
        f"0000000{place}.png" for place in (1, 2, 3, 4)
    ]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="holds something other than a copy"):
        copy_split(split, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
