"""From a weights file to detections: train, evaluate, predict, detect in tiles, publish, load."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("lightning", reason="lightning comes with the extra train")
pytest.importorskip("huggingface_hub", reason="huggingface_hub comes with the extra hf")

import rcnn_ext
from rcnn_ext.cli import main
from rcnn_ext.config import load_recipe
from rcnn_ext.models.from_config import build_model
from tests.helpers.made_data import as_coco
from tests.helpers.real_data import REAL, needs_real_data

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = "faster_rcnn_coco_small"
SIZES = (
    "model.backbone=resnet18",
    "model.weights_backbone=null",
    "model.min_size=96",
    "model.max_size=128",
    "model.fixed_size=null",
    "model.pool_size=3",
    "model.box_score_thresh=0",
    "model.rpn_pre_nms_top_n_test=60",
    "model.rpn_post_nms_top_n_test=40",
    "data.batch_size=2",
    "data.workers=0",
    "evaluation.batch_size=4",
    "runtime.device=cpu",
)


@pytest.mark.parametrize("data", ["made", pytest.param("real", marks=needs_real_data)])
def test_from_a_weights_file_to_a_published_model(data, tmp_path, capsys):
    root = REAL / "coco" if data == "real" else as_coco(tmp_path / "coco")
    run, published = tmp_path / "run", tmp_path / "published"
    # Weights of a detector of 91 classes, as those trained on all of COCO.
    model = build_model(load_recipe(RECIPE, SIZES).model, 91, pretrained=False)
    weights = tmp_path / "coco.pth"
    torch.save(model.state_dict(), weights)

    train = ["train", RECIPE, "--data", str(root), "--out", str(run), "--max-steps", "2"]
    assert main([*train, *SIZES, f"model.weights={weights}"]) == 0
    assert main(["eval", str(run), "--data", str(root), "--device", "cpu"]) == 0
    metrics = json.loads((run / "metrics.json").read_text())

    trained = rcnn_ext.load(run, device="cpu")
    pictures = sorted((root / ("images" if data == "real" else "val")).iterdir())[:3]
    found = trained.predict(pictures, min_score=0)
    assert [one.path for one in found] == pictures
    assert all(len(one) for one in found)
    assert {name for one in found for name in one.names} <= set(trained.class_names)

    tiles = ["--tile", "48", "--overlap", "0.1"] if data == "made" else ["--tile", "320"]
    out = tmp_path / "found"
    command = ["detect", str(run), *map(str, pictures), "--out", str(out), "--device", "cpu"]
    assert main([*command, "--min-score", "0", *tiles]) == 0
    results = json.loads((out / "detections.json").read_text())
    assert {entry["file_name"] for entry in results} == {path.name for path in pictures}

    assert main(["push", str(run), "me/first", "--to", str(published)]) == 0
    card = (published / "README.md").read_text()
    assert f"{metrics['images']} images with {metrics['objects']} objects" in card
    again = rcnn_ext.load(published, device="cpu").predict(pictures, min_score=0)
    for one, two in zip(found, again, strict=True):
        assert torch.equal(one.boxes, two.boxes)
        assert one.names == two.names
    capsys.readouterr()
