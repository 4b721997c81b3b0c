"""Models go to folders and to the Hub and come back, against a server on this machine."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import rcnn_ext
from rcnn_ext.cli import main
from rcnn_ext.config import recipe_from_dict
from rcnn_ext.errors import UserError
from rcnn_ext.export import export
from rcnn_ext.models import faster_rcnn
from rcnn_ext.predict import publish
from rcnn_ext.predict.load import load, load_saved
from rcnn_ext.predict.predictor import Predictor
from tests.helpers.hub_server import COMMIT

pytest.importorskip("huggingface_hub", reason="huggingface_hub comes with the extra hf")
pytest.importorskip("safetensors", reason="safetensors comes with the extra train")

FILES = ["README.md", "config.json", "model.safetensors", "recipe.yaml"]
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def saved(tiny_run):
    return load_saved(tiny_run.out / "best.ckpt")


@pytest.fixture(scope="module")
def expected(tiny_run):
    return load(tiny_run.out, device="cpu").predict(PICTURE, min_score=0)


def assert_same(model, expected):
    assert model.class_names == ("circle", "square", "triangle")
    assert model.recipe.model.detector == "faster_rcnn"
    found = model.predict(PICTURE, min_score=0)
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)


def card_of(folder):
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_folder_has_all_and_is_loaded_again(tiny_run, tmp_path, expected):
    folder = tmp_path / "shapes"
    written = load(tiny_run.out, device="cpu").save_pretrained(folder, license="apache-2.0")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert sorted(written) == sorted(folder.iterdir())
    assert_same(load(folder, device="cpu"), expected)
    assert_same(load(folder / "model.safetensors", device="cpu"), expected)
    assert_same(Predictor.from_pretrained(folder, device="cpu"), expected)
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"1": "circle", "2": "square", "3": "triangle"}
    recipe = recipe_from_dict(yaml.safe_load((folder / "recipe.yaml").read_text()))
    assert recipe.model.backbone == "mobilenet_v3_large"
    front, text = card_of(folder)
    assert front["library_name"] == "rcnn_ext"
    assert front["pipeline_tag"] == "object-detection"
    assert front["license"] == "apache-2.0"
    assert "object-detection" in front["tags"]
    assert "Classes (3): circle, square, triangle." in text


def test_a_card_that_was_edited_is_kept(saved, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    publish.save_pretrained(saved, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "notes.txt"])


def test_the_card_has_the_metrics_of_eval_of_this_model_only(saved, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    checkpoint = run / "best.ckpt"
    checkpoint.write_bytes(saved.path.read_bytes())
    metrics = {
        "AP": 0.51234,
        "AP_small": None,
        "images": 4,
        "objects": 9,
        "step": saved.step,
        "seconds": 1.5,
        "annotations": "/home/me/secret/instances_val.json",
        "per_class": {"circle": {"objects": 5, "AP": 0.5}, "square": {"objects": 4, "AP": None}},
    }
    (run / "metrics.json").write_text(json.dumps(metrics))
    publish.save_pretrained(load_saved(run), tmp_path / "first", repo_id="me/shapes")
    front, text = card_of(tmp_path / "first")
    (result,) = front["model-index"][0]["results"]
    assert front["model-index"][0]["name"] == "shapes"
    assert result["dataset"]["name"] == "instances_val"
    assert [(one["type"], one["value"]) for one in result["metrics"]] == [("AP", 0.51234)]
    assert "| AP | 0.512 |" in text
    assert "| circle | 5 | 0.500 |" in text
    assert "| square | 4 | - |" in text
    assert "4 images with 9 objects" in text
    assert 'rcnn_ext.load("hub:me/shapes")' in text
    assert "/home/me" not in (tmp_path / "first" / "README.md").read_text()
    (run / "metrics.json").write_text(json.dumps({**metrics, "step": saved.step + 1}))
    publish.save_pretrained(load_saved(run), tmp_path / "second")
    assert "model-index" not in card_of(tmp_path / "second")[0]


def test_a_model_goes_to_the_hub_and_comes_back(tiny_run, hub, expected):
    url = load(tiny_run.out, device="cpu").push_to_hub("me/shapes", commit_message="First")
    assert url == f"{hub.url}/me/shapes/commit/{COMMIT}"
    assert sorted(hub.files["me/shapes"]) == FILES
    assert hub.last_commit["summary"] == "First"
    for text in ("hub:me/shapes", "hub:me/shapes@main", "hub:me/shapes/model.safetensors"):
        assert_same(rcnn_ext.load(text, device="cpu"), expected)
    again = rcnn_ext.Predictor.from_pretrained("me/shapes", revision="v1", device="cpu")
    assert_same(again, expected)
    # What was fetched can be pushed on, and the files are those of the first.
    again.push_to_hub("me/copy")
    assert hub.files["me/copy"]["config.json"] == hub.files["me/shapes"]["config.json"]
    assert_same(rcnn_ext.load("hub:me/copy", device="cpu"), expected)


def test_weights_that_were_trained_on_are_what_is_written(tiny_run, tmp_path):
    model = load(tiny_run.out, device="cpu", prepare=False)
    with torch.no_grad():
        model.roi_heads.box_predictor.bbox_pred.bias += 1
    model.save_pretrained(tmp_path)
    weights = load_saved(tmp_path).weights
    name = "roi_heads.box_predictor.bbox_pred.bias"
    assert torch.equal(weights[name], load_saved(tiny_run.out).weights[name] + 1)


def test_the_commands_push_detect_and_eval(tiny_run, hub, tmp_path, capsys):
    run = str(tiny_run.out)
    assert main(["push", run, "me/shapes", "--license", "mit", "--private"]) == 0
    assert f"pushed to {hub.url}/me/shapes/commit/" in capsys.readouterr().out
    assert main(["push", run, "me/shapes", "--to", str(tmp_path / "folder")]) == 0
    assert f"wrote {tmp_path / 'folder' / 'model.safetensors'}" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == FILES
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    for model in ("hub:me/shapes", str(tmp_path / "folder")):
        out = ["--out", str(tmp_path / "found"), "--device", "cpu"]
        assert main(["detect", model, str(tmp_path / "a.png"), *out]) == 0
    assert (tmp_path / "found" / "detections.json").exists()
    assert main(["eval", "hub:me/shapes", "--data", str(tiny_run.data)]) == 2
    assert "hub:me/shapes has no folder to write to: add --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a repository (owner/name) or a folder (--to FOLDER)"),
        (["shapes"], "'hub:shapes' is no id of the Hugging Face Hub: write hub:owner/name"),
        (["me/shapes@v1"], "me/shapes@v1 must be owner/name: a branch is given separately"),
    ],
)
def test_a_wrong_command_is_one_line(tiny_run, hub, capsys, arguments, message):
    assert main(["push", str(tiny_run.out), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_who_may_not_push_is_told(saved, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(
        UserError, match="cannot push to hub:me/shapes: you may not do this: run hf"
    ):
        publish.push_to_hub(saved, "me/shapes")


def test_without_a_network_the_remedy_is_told(saved, hub):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match="no connection to the Hub; .* write a folder"):
        publish.push_to_hub(saved, "me/shapes")
    with pytest.raises(UserError, match="cannot fetch me/shapes: .* run hf download me/shapes"):
        publish.from_pretrained("me/shapes")


def test_what_cannot_be_published_is_told(saved, tmp_path, monkeypatch):
    torch.manual_seed(0)
    own = Predictor(faster_rcnn("resnet18", num_classes=2, min_size=64).eval(), ["cat"])
    with pytest.raises(UserError, match="only a model that was trained by a recipe"):
        own.save_pretrained(tmp_path)
    export(saved, tmp_path / "model.pt2")
    with pytest.raises(UserError, match="model.pt2 is a program"):
        load(tmp_path / "model.pt2", device="cpu").save_pretrained(tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot make the folder"):
        publish.save_pretrained(saved, tmp_path / "file" / "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no model.safetensors"):
        publish.from_pretrained(tmp_path / "empty")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'rcnn-ext\[hf\]'"):
        publish.save_pretrained(saved, tmp_path / "out")
