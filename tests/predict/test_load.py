"""``rcnn_ext.predict.load`` gives a ready model from any file that holds one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights as Weights

from rcnn_ext.cli import main
from rcnn_ext.errors import UserError
from rcnn_ext.export import export
from rcnn_ext.models import Detector, presets
from rcnn_ext.predict.checkpoint import ModelFormatError, ModelNotFoundError, load_checkpoint
from rcnn_ext.predict.detect import detect_to_folder
from rcnn_ext.predict.exported import load_exported
from rcnn_ext.predict.load import load, load_saved

CLASSES = ("circle", "square", "triangle")
IMAGES = [torch.rand(3, 64, 64), torch.rand(3, 40, 56)]


@pytest.fixture(scope="module")
def expected(tiny_run):
    model = load_saved(tiny_run.out / "last.ckpt").build(torch.device("cpu"))
    with torch.inference_mode():
        return model(IMAGES[:1])


def assert_detects(model, expected):
    assert not model.training
    assert model.class_names == CLASSES
    assert model.recipe.model.detector == "faster_rcnn"
    with torch.inference_mode():
        found = model(IMAGES)
    assert len(found) == 2
    assert set(found[1]) == {"boxes", "labels", "scores"}
    for name, value in expected[0].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-3, atol=1e-2)


def test_a_checkpoint_gives_a_prepared_model(tiny_run, expected):
    model = load(tiny_run.out / "last.ckpt", device="cpu")
    assert_detects(model, expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(RuntimeError, match="prepared for inference"):
        model.train()


def test_a_run_gives_its_best_checkpoint(tiny_run, tmp_path, expected):
    shutil.copy(tiny_run.out / "last.ckpt", tmp_path / "last.ckpt")
    assert_detects(load(str(tmp_path), device=torch.device("cpu")), expected)
    best = load_saved(tiny_run.out / "best.ckpt").weights
    model = load(tiny_run.out, device="cpu", prepare=False)
    weights = model.state_dict()
    assert best.keys() == weights.keys()
    assert all(torch.equal(best[name], weights[name]) for name in best)


def test_paths_may_be_text(tiny_run, tmp_path):
    expected = load_saved(tiny_run.out)
    saved = load_checkpoint(str(tiny_run.out))
    assert (saved.path, saved.step) == (expected.path, expected.step)
    assert load_saved(str(tiny_run.out)).path == expected.path
    export(saved, str(tmp_path / "model.safetensors"))
    assert load_exported(str(tmp_path / "model.safetensors")).step == expected.step
    picture = str(tiny_run.data / "val" / "000001.png")
    detect_to_folder(str(tiny_run.out), [picture], str(tmp_path / "found"), draw_score=None)
    assert (tmp_path / "found" / "detections.json").is_file()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt2"])
def test_exported_files_are_loaded(tiny_run, tmp_path, expected, suffix):
    pytest.importorskip("safetensors", reason="safetensors comes with the extra train")
    path = tmp_path / f"model{suffix}"
    export(load_saved(tiny_run.out / "last.ckpt"), path)
    assert_detects(load(path, device="cpu"), expected)


def test_a_model_that_is_not_prepared_can_be_trained(tiny_run, expected):
    model = load(tiny_run.out / "last.ckpt", device="cpu", prepare=False)
    assert_detects(model, expected)
    assert model.train().training
    with pytest.raises(ValueError, match="prepare=True"):
        load(tiny_run.out / "last.ckpt", device="cpu", prepare=False, dtype=torch.bfloat16)


def test_dtype_is_that_of_feature_maps(tiny_run, tmp_path):
    model = load(tiny_run.out / "last.ckpt", device="cpu", dtype=torch.bfloat16)
    assert next(model.backbone.parameters()).dtype == torch.bfloat16
    assert model(IMAGES)[0]["boxes"].dtype == torch.float32
    export(load_saved(tiny_run.out / "last.ckpt"), tmp_path / "model.pt2")
    with pytest.raises(ValueError, match="dtype was chosen when it was exported"):
        load(tmp_path / "model.pt2", device="cpu", dtype=torch.bfloat16)


def test_names_of_torchvision_give_its_weights(monkeypatch):
    fetched = []

    def fetch(weights, **_):
        fetched.append(weights)
        model = presets.fasterrcnn_resnet50_fpn(weights_backbone=None, num_classes=91)
        return model.state_dict()

    monkeypatch.setattr(presets, "fetch_state_dict", fetch)
    model = load("fasterrcnn_resnet50_fpn", device="cpu")
    assert isinstance(model.detector, Detector)
    assert fetched == [Weights.DEFAULT]
    assert not model.training
    assert model.recipe is None
    # Labels of COCO begin at 1, which is a person.
    assert (len(model.class_names), model.class_names[0]) == (90, "person")


def test_the_command_detects_with_published_weights(monkeypatch, tmp_path, capsys):
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    weights = getattr(presets, name)(weights_backbone=None, num_classes=91).state_dict()
    # As if every place were a stop sign, whose label is COCO's category.
    weights["roi_heads.box_predictor.cls_score.bias"][13] = 20
    monkeypatch.setattr(presets, "fetch_state_dict", lambda *_, **__: weights)
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "7.png")
    out = tmp_path / "out"
    assert (
        main(["detect", name, str(tmp_path / "7.png"), "--out", str(out), "--device", "cpu"]) == 0
    )
    results = json.loads((out / "detections.json").read_text())
    assert {(one["category_id"], one["category_name"]) for one in results} == {(13, "stop sign")}
    assert f"{len(results)} detections in 1 images" in capsys.readouterr().out
    # COCO's ids without a class are told apart.
    names = load(name, device="cpu").class_names
    assert len(set(names)) == 90
    assert names[11:13] == ("N/A", "stop sign")


def test_a_download_that_fails_advises_what_load_can_do(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(Weights, "get_state_dict", fail)
    with pytest.raises(UserError, match="no route to host.*put the file from https") as error:
        load("fasterrcnn_resnet50_fpn", device="cpu")
    assert "weights=None" not in str(error.value)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "'gpu' is no device: take auto, cpu, cuda or cuda:<index>"),
        ("cuda:77", "(?i)cuda"),
        (torch.device("cuda", 77), "(?i)cuda"),
        (torch.device("xpu"), "the device xpu cannot be used"),
    ],
)
def test_a_device_that_does_not_exist_is_told(tmp_path, device, message):
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path, device=device)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nowhere", "fasterrcnn_resnet51_fpn", "missing.ckpt"])
def test_what_does_not_exist_is_a_file_not_found(name):
    with pytest.raises(
        FileNotFoundError, match=rf"{name} is no file.*fasterrcnn_resnet50_fpn"
    ) as e:
        load(name)
    assert isinstance(e.value, UserError)


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(ModelNotFoundError, match="has neither best.ckpt nor last.ckpt"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors", "a.pt2", "a.txt"])
def test_what_is_no_model_is_a_value_error(tmp_path, name):
    (tmp_path / name).write_text(json.dumps({"no": "model"}))
    with pytest.raises(ValueError, match=rf"{name} .*(not a checkpoint|not written by)") as error:
        load(tmp_path / name)
    assert isinstance(error.value, ModelFormatError)


def test_a_checkpoint_of_something_else_is_told(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ModelFormatError, match="was not written by rcnn-ext train"):
        load(tmp_path / "other.ckpt")
