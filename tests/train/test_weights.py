"""``model.weights``: every source by its names and shapes, and what a run says and writes."""

from __future__ import annotations

import argparse
import pickle
import shutil

import numpy as np
import pytest
import torch
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from rcnn_ext.cli import main
from rcnn_ext.config import ModelConfig, load_recipe
from rcnn_ext.errors import UserError
from rcnn_ext.models import weights as published
from rcnn_ext.models.from_config import build_model
from rcnn_ext.predict.checkpoint import load_checkpoint
from rcnn_ext.train import weights
from rcnn_ext.train.weights import load_weights, open_weights, with_options_of
from tests.helpers.detectron2_checkpoints import checkpoint
from tests.helpers.made_data import as_coco

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"backbone": "resnet18", "min_size": 64, "max_size": 64}
COCO = weights._COCO_ROWS


@pytest.fixture(scope="module")
def torchvisions():
    """The state dict of a detector that torchvision made, with COCO's 91 rows."""
    torch.manual_seed(1)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    return detection.FasterRCNN(backbone, num_classes=91).state_dict()


def opened(path, **changes):
    config = ModelConfig(**{**SMALL, **changes}, weights=str(path))
    return config, open_weights(config)


def test_a_file_of_torchvision(tmp_path, torchvisions):
    path = tmp_path / "detector.pth"
    torch.save(torchvisions, path)
    config, source = opened(path)
    model = build_model(config, 4)
    report = load_weights(model, source, ("person", "unicorn", "Traffic light"))
    assert report.classes == ["person", "Traffic light"]
    assert not report.new
    assert not report.unused
    state = model.state_dict()
    name = "roi_heads.box_predictor.cls_score.bias"
    person, light = COCO.index("person"), COCO.index("traffic light")
    assert torch.equal(state[name][[0, 1, 3]], torchvisions[name][[0, person, light]])
    for name in report.loaded:
        assert torch.equal(state[name], torchvisions[name])
    # As of weights of the backbone, the first stages are frozen, with their batch norms.
    assert any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    assert not model.backbone.body["conv1"].weight.requires_grad


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "args": argparse.Namespace(lr=0.1), "epoch": 3},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {
            name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
            .replace("inner_blocks.0.0.", "inner_blocks.0.")
            .replace("layer_blocks.3.0.", "layer_blocks.3."): value
            for name, value in state.items()
        },
    ],
    ids=["of a training script", "of a wrapped model", "old names"],
)
def test_forms_of_files(tmp_path, torchvisions, wrap):
    torch.save(wrap(torchvisions), tmp_path / "detector.pth")
    _, source = opened(tmp_path / "detector.pth")
    assert source.tensors.keys() == torchvisions.keys()


@pytest.mark.parametrize(
    ("changes", "name", "expected"),
    [
        ({}, "DEFAULT", detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1),
        ({"head": "conv"}, "DEFAULT", detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1),
        ({"rpn_conv_depth": 2}, "COCO_V1", detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1),
        (
            {"backbone": "mobilenet_v3_large"},
            "COCO_V1",
            detection.FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1,
        ),
        (
            {"backbone": "mobilenet_v3_large", "max_size": 640},
            "DEFAULT",
            detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1,
        ),
        (
            {"backbone": "resnet18"},
            "FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1",
            detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
        ),
        (
            {"neck": "c4"},
            "fasterrcnn_resnet50_fpn",
            detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
        ),
        (
            {},
            "MaskRCNN_ResNet50_FPN_Weights.DEFAULT",
            detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
        ),
    ],
)
def test_names_of_torchvision(monkeypatch, torchvisions, changes, name, expected):
    asked = []

    def fetch(wanted, **options):
        asked.append(wanted)
        return torchvisions

    monkeypatch.setattr(weights, "fetch_state_dict", fetch)
    source = open_weights(ModelConfig(**{"backbone": "resnet50", **changes}, weights=name))
    assert asked == [expected]
    assert source.class_names[1] == "person"
    assert source.class_names.count("") == COCO.count("N/A")


def test_published_weights_without_an_epsilon_keep_their_features(tmp_path, torchvisions):
    path = tmp_path / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
    theirs = dict(torchvisions)
    theirs["backbone.body.bn1.running_var"] = torch.full((64,), 1e-6)
    torch.save(theirs, path)
    config, source = opened(path)
    model = build_model(config, 91)
    load_weights(model, source, tuple("x" if one == "N/A" else one for one in COCO[1:]))
    x = torch.randn(1, 64, 4, 4)
    norm = FrozenBatchNorm2d(64, eps=0.0)
    norm.load_state_dict(
        {
            name: theirs[f"backbone.body.bn1.{name}"]
            for name in ("weight", "bias", "running_mean", "running_var")
        }
    )
    ours = FrozenBatchNorm2d(64)
    ours.load_state_dict(model.backbone.body["bn1"].state_dict())
    torch.testing.assert_close(ours(x), norm(x), rtol=1e-4, atol=1e-4)


def test_the_second_version_fits_the_recipe(tmp_path):
    torch.manual_seed(0)
    model = detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), tmp_path / "v2.pth")
    recipe = load_recipe("faster_rcnn_finetune", [f"model.weights={tmp_path / 'v2.pth'}"])
    source = open_weights(recipe.model)
    report = load_weights(build_model(recipe.model, 3), source, ("person", "horse"))
    assert report.classes == ["person", "horse"]
    assert not report.new
    assert not report.unused
    assert len(report.adapted) == 4


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_files_of_detectron2(tmp_path, suffix):
    state = checkpoint(fpn=True)
    path = tmp_path / f"model_final.{suffix}"
    if suffix == "pth":
        torch.save({"model": dict(state)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": {k: np.asarray(v) for k, v in state.items()}}))
    config, source = opened(path, backbone="resnet50")
    config = with_options_of(config, source)
    assert config.stride_in_1x1 is True
    assert config.conventions == "detectron2"
    model = build_model(config, 4)
    block = model.backbone.body["layer2"][0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    assert model.roi_heads.box_roi_pool.aligned
    assert model.roi_heads.box_roi_pool.sampling_ratio == 0
    assert not model.rpn.anchor_generator.whole_pixels
    report = load_weights(model, source, ("a", "b", "c"))
    assert not report.unused
    assert {name.rpartition(".")[0] for name in report.new} == {
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
    }
    # Pixels of 0-255 in the order BGR there, normalized RGB in [0, 1] here.
    weight = model.state_dict()["backbone.body.conv1.weight"]
    scale = 255 * torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    expected = state["backbone.bottom_up.stem.conv1.weight"].flip(1) * scale
    torch.testing.assert_close(weight, expected)
    # What the recipe says outright stays.
    told = ModelConfig(**{**SMALL, "stride_in_1x1": False}, weights=str(path))
    assert with_options_of(told, source).stride_in_1x1 is False


def train(run, out, *more):
    arguments = ["train", "faster_rcnn_synthetic", "--data", str(run.data), "--out", str(out)]
    return main([*arguments, "--max-steps", "1", *run.overrides, "evaluation.val_every=0", *more])


@pytest.mark.parametrize("kind", ["folder", "checkpoint", "safetensors"])
def test_runs(tiny_run, tmp_path, capsys, kind):
    given = tiny_run.out
    if kind == "checkpoint":
        given = tiny_run.out / "last.ckpt"
    if kind == "safetensors":
        given = tmp_path / "detector.safetensors"
        assert main(["export", str(tiny_run.out), "--out", str(given)]) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    more = (f"model.weights={given}", "data.classes=[square, circle]", "model.norm_layer=batch")
    assert train(tiny_run, out, *more, "optimizer.lr=1e-12") == 0
    said = capsys.readouterr()
    assert "model.weights: classes taken over by name: square, circle" in said.out
    assert " tensors loaded, 4 adapted, 0 new, 0 unused" in said.out
    table = (out / "weights.txt").read_text()
    assert "adapted roi_heads.box_predictor.cls_score.weight [3, 1024] from [4, 1024]\n" in table
    source = load_checkpoint(tiny_run.out / ("last.ckpt" if kind == "checkpoint" else ""))
    found = load_checkpoint(out / "last.ckpt")
    assert found.recipe.model.weights == str(given)
    name = "roi_heads.box_predictor.cls_score.bias"
    rows = [0, *(1 + source.classes.names.index(one) for one in ("square", "circle"))]
    torch.testing.assert_close(found.weights[name], source.weights[name][rows])


def test_a_run_needs_its_source_no_more(tiny_run, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny_run.out, source)
    weights = f"model.weights={source}"
    arguments = ["train", "faster_rcnn_synthetic", "--data", str(tiny_run.data), "--out", str(out)]
    arguments += [*tiny_run.overrides, "evaluation.val_every=0", "model.norm_layer=batch"]
    assert main([*arguments, weights, "--max-steps", "1"]) == 0
    shutil.rmtree(source)
    resume = ["train", "--data", str(tiny_run.data), "--out", str(out), "--resume"]
    assert main([*resume, "schedule.steps=2"]) == 0
    load_checkpoint(out).build(torch.device("cpu"))


def test_errors_come_before_the_data_are_read_and_in_one_line(tmp_path, capsys, monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(published.WeightsEnum, "get_state_dict", offline)
    (tmp_path / "text.pth").write_text("nothing")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing at all")
    (tmp_path / "program.pt2").write_bytes(b"nothing")
    (tmp_path / "code.pkl").write_bytes(pickle.dumps(print))
    (tmp_path / "folder").mkdir()
    for given, words in (
        ("DEFAULT", "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_v2_coco-"),
        ("DEFAULT", "model.weights=FILE with that file"),
        ("COCO_V2", "no such file or folder"),
        ("FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V2", "has COCO_V1"),
        (tmp_path / "text.pth", "is not a checkpoint, or is damaged: it is no file of torch.save"),
        (tmp_path / "empty.pth", "holds no state dict"),
        (tmp_path / "bad.safetensors", "is not a .safetensors file"),
        (tmp_path / "program.pt2", "cannot be trained"),
        (tmp_path / "code.pkl", "is a pickle"),
        (tmp_path / "folder", "has neither best.ckpt nor last.ckpt"),
        (tmp_path / "gone.pth", "no such file or folder"),
        ("hub:nobody", "is no id of the Hugging Face Hub"),
    ):
        arguments = ["train", "faster_rcnn_finetune", "--data", str(tmp_path / "no data")]
        assert main([*arguments, "--out", str(tmp_path / "out"), f"model.weights={given}"]) == 2
        error = capsys.readouterr().err.strip()
        assert words in error
        assert len(error.splitlines()) == 1


def test_models_that_torchvision_does_not_publish():
    with pytest.raises(UserError, match=r"this one is resnet18 .* the full name, such as"):
        opened("DEFAULT")
    with pytest.raises(UserError, match="this one is resnet50 with neck c4"):
        opened("COCO_V1", backbone="resnet50", neck="c4")


def test_weights_that_do_not_fit_are_refused(tmp_path, torchvisions):
    torch.save({"other.weight": torch.zeros(3, 4)}, tmp_path / "other.pth")
    config, source = opened(tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"no tensor .* fits this model; .*other\.weight \[3, 4\]"):
        load_weights(build_model(config, 3), source, ("a", "b"))
    torch.save(torchvisions, tmp_path / "resnet18.pth")
    config, source = opened(tmp_path / "resnet18.pth", backbone="resnet34", trainable_layers=1)
    with pytest.raises(UserError, match=r"which this recipe freezes: they would stay random"):
        load_weights(build_model(config, 3), source, ("a", "b"))


def test_the_hub(hub, tmp_path, torchvisions):
    from safetensors.torch import save_file

    save_file(torchvisions, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    hub.files["owner/detector"] = {"model.safetensors": content}
    _, source = opened("hub:owner/detector")
    assert source.name == "hub:owner/detector"
    assert source.tensors.keys() == torchvisions.keys()


def test_the_recipe_runs_on_a_few_images_from_a_file(tmp_path, torchvisions, capsys):
    torch.save(torchvisions, tmp_path / "coco.pth")
    data, out = as_coco(tmp_path / "data"), tmp_path / "out"
    arguments = ["train", "faster_rcnn_finetune", "--data", str(data), "--out", str(out)]
    small = (
        f"model.weights={tmp_path / 'coco.pth'}",
        "model.backbone=resnet18",
        "model.min_size=64",
        "model.max_size=64",
        "model.rpn_post_nms_top_n_train=40",
        "model.box_batch_size_per_image=8",
        "model.pool_size=2",
        "schedule.epochs=0.5",
        "data.workers=0",
        "runtime.device=cpu",
        "runtime.loggers=[csv]",
    )
    assert main([*arguments, *small]) == 0
    said = capsys.readouterr().out
    assert "schedule.epochs=0.5: " in said
    assert "model.weights: " in said
    assert "new: backbone.fpn.inner_blocks.0.1.weight [256]" in said
    saved = load_checkpoint(out / "last.ckpt")
    assert saved.recipe.training.ema.decay == 0.999
    assert saved.num_averaged == saved.step
    # The stem is frozen, as it came.
    assert torch.equal(
        saved.weights["backbone.body.conv1.weight"], torchvisions["backbone.body.conv1.weight"]
    )
