"""Backbones of timm by name."""

from __future__ import annotations

import errno
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason="timm comes with the extra timm")

import timm

from rcnn_ext import models
from rcnn_ext.config import ModelConfig
from rcnn_ext.errors import UserError
from rcnn_ext.models import timm_backbones
from rcnn_ext.models.feature_maps import measure_feature_maps
from rcnn_ext.models.from_config import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"pool_size": 2, "min_size": 64, "max_size": 64}


@pytest.mark.parametrize(
    ("name", "neck", "strides"),
    [
        ("convnext_atto", "fpn", [4, 8, 16, 32, 64]),
        ("resnet10t", "fpn", [4, 8, 16, 32, 64]),
        ("convnext_atto", "c4", [16]),
        ("mobilenetv3_small_050", "c5", [32]),
    ],
)
def test_maps_and_training(name, neck, strides):
    config = ModelConfig(backbone=f"timm:{name}", neck=neck, in_channels=2, **SMALL)
    model = build_model(config, 3)
    maps = measure_feature_maps(model.backbone)
    assert [one.stride for one in maps.values()] == strides
    target = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
    losses = model.train()([torch.rand(2, 64, 64)] * 2, [target] * 2)
    sum(losses.values()).backward()
    assert next(model.backbone.body.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["convnext_atto", "resnet10t", "mobilenetv3_small_050"])
def test_prepared_models_give_what_they_gave(name):
    model = models.faster_rcnn(f"timm:{name}", num_classes=3, box_score_thresh=0.0, **SMALL).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # batch norms that do something
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.weight, 0.8, 1.2)
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        before = model.backbone(image[None])
        after = model.prepare_for_inference(dtype=None).backbone(image[None])
    assert before.keys() == after.keys()
    for level in before:
        torch.testing.assert_close(after[level], before[level], rtol=1e-3, atol=1e-4)
    assert len(model([image])) == 1


def test_windowed_transformers_keep_channels_last_and_take_any_size():
    backbone = timm_backbones.build_timm_backbone("timm:swin_tiny_patch4_window7_224", "fpn").eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 96, 64))
    assert [tuple(one.shape) for one in maps.values()][:2] == [(1, 256, 24, 16), (1, 256, 12, 8)]


@pytest.mark.parametrize(
    ("name", "layers", "trainable"),
    [
        ("convnext_atto", 1, {"stages_3"}),
        ("resnet10t", 2, {"layer3", "layer4"}),
        ("mobilenetv3_small_050", 5, {"conv_stem", "bn1", "blocks"}),
        ("resnet10t", 0, set()),
    ],
)
def test_stages_are_frozen_by_number(name, layers, trainable):
    backbone = timm_backbones.build_timm_backbone(f"timm:{name}", "fpn", trainable_layers=layers)
    found = {n.split(".")[0] for n, p in backbone.body.named_parameters() if p.requires_grad}
    assert found == trainable


def test_frozen_batch_norms():
    model = models.faster_rcnn("timm:resnet10t", num_classes=2, norm_layer="frozen", **SMALL)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())
    live = models.faster_rcnn("timm:resnet10t", num_classes=2, **SMALL)
    assert any(isinstance(module, nn.BatchNorm2d) for module in live.backbone.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "timm:convnext_atoo"}, "no backbone timm:convnext_atoo; did you mean .*atto"),
        ({"backbone": "timm:convnext_atto", "returned_layers": [7]}, "from 0 to 3"),
        ({"backbone": "timm:vit_tiny_patch16_224", "neck": "c5"}, "stride 32.*strides 16"),
    ],
)
def test_what_does_not_exist_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        build_model(ModelConfig(**{**SMALL, **changes}), 2)
    with pytest.raises(ValueError, match=r"must lie in \[0, 4\]"):
        timm_backbones.build_timm_backbone("timm:convnext_atto", "fpn", trainable_layers=9)


def test_weights_that_cannot_be_fetched(monkeypatch):
    create = timm.create_model

    def offline(name, **options):
        if options["pretrained"]:
            raise OSError("no network")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    config = ModelConfig(backbone="timm:resnet10t", weights_backbone="DEFAULT", **SMALL)
    with pytest.raises(UserError) as raised:
        build_model(config, 2)
    message = str(raised.value)
    assert "https://huggingface.co/timm/resnet10t" in message
    assert "hf download timm/resnet10t" in message
    assert "model.weights_backbone=null" in message
    assert "\n" not in message
    # A checkpoint that follows needs none, and has the frozen norms of the weights.
    model = build_model(config, 2, pretrained=False)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())


def test_without_a_network_the_error_comes_at_once(monkeypatch, tmp_path):
    constants = pytest.importorskip(
        "huggingface_hub.constants", reason="huggingface_hub comes with the extra hf"
    )
    tried = []

    def refuse(*arguments, **options):
        tried.append(arguments)
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = ModelConfig(backbone="timm:resnet10t", weights_backbone="DEFAULT", **SMALL)
    with pytest.raises(UserError, match=r"cannot be fetched from https://huggingface\.co/timm/"):
        build_model(config, 2)
    assert len(tried) <= 1  # None through a proxy.
    assert constants.HF_HUB_OFFLINE is False


def test_timm_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'rcnn-ext\[timm\]'"):
        models.faster_rcnn("timm:convnext_atto", num_classes=2)
