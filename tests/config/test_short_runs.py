"""A short version of every recipe, through the command line: train, evaluate, draw."""

from __future__ import annotations

import csv
import json
import math

import pytest

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from PIL import Image

from rcnn_ext.cli import main
from rcnn_ext.config import recipe_names
from rcnn_ext.train.loggers import LOSSES, read_csv
from tests.helpers.made_data import as_coco, as_csv, as_pennfudan, as_voc

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 12

_SMALL = (
    "model.weights_backbone=null",
    "model.backbone=resnet18",
    "data.batch_size=4",
    "data.workers=0",
    "data.augment.color=0",
    "optimizer.name=adamw",
    "optimizer.lr=0.0005",
    "optimizer.lr_overrides={}",
    "schedule.warmup_steps=2",
    "evaluation.val_every=0",
    "evaluation.batch_size=4",
    "runtime.device=cpu",
    "runtime.log_every=1",
    "runtime.loggers=[csv]",
)
_DETECTOR = (
    *_SMALL,
    "model.min_size=64",
    "model.max_size=64",
    "model.pool_size=3",
    "model.box_batch_size_per_image=16",
)
_FAST = (
    *_DETECTOR,
    "selective_search.mode=single",
    "selective_search.min_side=6",
    "selective_search.max_boxes=60",
)
_RPN = (
    "model.rpn_pre_nms_top_n_train=60",
    "model.rpn_pre_nms_top_n_test=60",
    "model.rpn_post_nms_top_n_train=40",
    "model.rpn_post_nms_top_n_test=40",
)
CASES = {
    "fast_rcnn_voc": (as_voc, (*_FAST, f"schedule.steps={STEPS - 2}", "data.val_fraction=0.25")),
    # Half of the outputs dropped, at random, is more than so short a run can learn against.
    "fast_rcnn_pennfudan": (as_pennfudan, (*_FAST, "data.val_fraction=0.25", "model.dropout=0.1")),
    "faster_rcnn_coco": (
        as_coco,
        (
            *_DETECTOR,
            *_RPN,
            "model.fixed_size=[64, 64]",
            "model.anchor_sizes=[8, 16, 32, 48, 64]",
        ),
    ),
    "faster_rcnn_roipool": (
        as_coco,
        (*_DETECTOR, *_RPN, "model.anchor_sizes=[16, 32, 48]"),
    ),
    "faster_rcnn_finetune": (
        as_coco,
        (
            *_DETECTOR,
            *_RPN,
            "model.weights=null",
            "model.anchor_sizes=[8, 16, 32, 48, 64]",
            "training.ema.decay=0.5",
        ),
    ),
    "localizer_csv": (
        as_csv,
        (*_SMALL, "model.backbone=cnn", "model.fixed_size=[64, 64]", "data.val_fraction=0.25"),
    ),
}


def test_every_recipe_that_stands_for_something_has_a_short_version():
    assert set(CASES) == set(recipe_names()) - {"faster_rcnn_coco_small", "faster_rcnn_synthetic"}


@pytest.mark.parametrize("name", CASES)
def test_a_short_run_learns_evaluates_and_draws(name, tmp_path, capsys):
    make, overrides = CASES[name]
    data, run, found = make(tmp_path / "data"), tmp_path / "run", tmp_path / "found"
    train = ["train", name, "--data", str(data), "--out", str(run), "--max-steps", str(STEPS)]
    assert main([*train, *overrides]) == 0
    rows = read_csv(run / LOSSES)
    losses = [float(row["loss"]) for row in rows if int(row["step"]) <= STEPS]
    assert all(math.isfinite(loss) for loss in losses)
    # A line of few images is noisy: a third of them at either end.
    third = len(losses) // 3
    assert sum(losses[-third:]) < 0.9 * sum(losses[:third])

    assert main(["eval", str(run), "--data", str(data), "--batch-size", "4"]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    monitor = "score" if name == "localizer_csv" else "AP50"
    assert 0 <= metrics[monitor] <= 1
    assert (run / "best.jpg").is_file()

    picture = next(p for p in sorted(data.rglob("*")) if p.suffix in (".png", ".jpg"))
    assert main(["detect", str(run), str(picture), "--out", str(found), "--draw-score", "0"]) == 0
    assert len(list((found / "pictures").iterdir())) == 1
    if name == "localizer_csv":
        assert (run / "grid.jpg").is_file()
        (row,) = csv.DictReader((found / "submission.csv").open())
        assert row["filename"] == picture.name
        assert row["class"] in ("circle", "square")
        assert 0 <= float(row["xmin"]) < float(row["xmax"]) <= 64
        submits_a_list(data, run, tmp_path)
    if name.startswith("fast_"):
        assert list((run / "selective_search").rglob("*.safetensors"))


def submits_a_list(data, run, tmp_path):
    """A test set is a table of names; its pictures are larger than what the network sees."""
    names = sorted(path.name for path in (data / "images").iterdir())[:3][::-1]
    for name in names:
        with Image.open(data / "images" / name) as picture:
            picture.resize((200, 100)).save(data / "images" / f"large-{name}")
    listed = [f"large-{name}" for name in names]
    (data / "test.csv").write_text("id,filename\n" + "".join(f"7,{n}\n" for n in listed))
    out = tmp_path / "submission"
    assert main(["detect", str(run), str(data / "test.csv"), "--out", str(out)]) == 0
    rows = list(csv.DictReader((out / "submission.csv").open()))
    assert [row["filename"] for row in rows] == listed, "a row each, in the order of the list"
    corners = [[float(row[name]) for name in ("xmin", "ymin", "xmax", "ymax")] for row in rows]
    assert all(0 <= x1 < x2 <= 200 and 0 <= y1 < y2 <= 100 for x1, y1, x2, y2 in corners)
    assert max(corner[2] for corner in corners) > 64, "pixels of the picture on disk"
    (data / "test.csv").write_text("filename\ngone.png\n" + f"{listed[0]}\n")
    assert main(["detect", str(run), str(data / "test.csv"), "--out", str(out)]) == 2
    assert len((out / "submission.csv").read_text().splitlines()) == 2, "the others are done"
    arguments = ["eval", str(run), "--data", str(data), "--split", "test"]
    assert main(arguments) == 2


def test_proposals_that_are_missing_can_be_an_error(tmp_path, capsys):
    make, overrides = CASES["fast_rcnn_voc"]
    data = make(tmp_path / "data")
    train = ["train", "fast_rcnn_voc", "--data", str(data), "--out", str(tmp_path / "run")]
    folder = tmp_path / "searched"
    wanted = (
        *overrides,
        "selective_search.missing=error",
        f"selective_search.folder={folder}",
        "refine=null",
    )
    assert main([*train, "--max-steps", "1", *wanted]) == 2
    assert "compute them with: rcnn-ext selective-search" in capsys.readouterr().err
    assert main(["selective-search", str(data), "--out", str(folder)]) == 0
    assert main([*train, "--overwrite", "--max-steps", "1", *wanted]) == 0
    assert not (tmp_path / "run" / "selective_search").exists()
