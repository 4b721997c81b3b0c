from __future__ import annotations

from urllib.error import HTTPError, URLError

import pytest
import torch
from torchvision.models import ResNet18_Weights, ResNet50_Weights, resnet18
from torchvision.ops import FrozenBatchNorm2d

from rcnn_ext import models
from rcnn_ext.errors import UserError
from rcnn_ext.models.weights import resolve_weights


def fail_with(monkeypatch, error):
    def load(*args, **kwargs):
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)


@pytest.mark.parametrize(
    "error",
    [
        URLError(OSError("Name or service not known")),
        HTTPError("https://example.org", 403, "Forbidden", None, None),
        TimeoutError("timed out"),
    ],
)
def test_offline(monkeypatch, error):
    fail_with(monkeypatch, error)
    with pytest.raises(UserError) as caught:
        models.fasterrcnn_resnet50_fpn(num_classes=3)
    message = str(caught.value)
    assert "the download of ResNet50_Weights.IMAGENET1K_V1 failed" in message
    assert ResNet50_Weights.IMAGENET1K_V1.url in message
    assert "weights_backbone=None" in message

    with pytest.raises(UserError, match="FasterRCNN_ResNet50_FPN_Weights.COCO_V1 failed"):
        models.fasterrcnn_resnet50_fpn(weights="DEFAULT")
    with pytest.raises(UserError, match="ResNet18_Weights.IMAGENET1K_V1 failed"):
        models.fast_rcnn("resnet18", num_classes=3, weights_backbone="DEFAULT")


def test_damaged_file(monkeypatch):
    fail_with(monkeypatch, RuntimeError('invalid hash value (expected "f37072fd", got "00")'))
    with pytest.raises(UserError, match="file of ResNet18_Weights.IMAGENET1K_V1 is damaged"):
        models.faster_rcnn("resnet18", num_classes=3, weights_backbone="DEFAULT")


def test_pretrained_backbone_is_loaded_and_frozen(monkeypatch):
    state = resnet18().state_dict()
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(state)
    )
    for build in (models.faster_rcnn, models.fast_rcnn):
        model = build("resnet18", num_classes=3, weights_backbone=ResNet18_Weights.DEFAULT)
        assert torch.equal(model.backbone.body.conv1.weight, state["conv1.weight"])
        learning = {n for n, p in model.named_parameters() if p.requires_grad}
        assert "backbone.body.layer2.0.conv1.weight" in learning
        assert "backbone.body.layer1.0.conv1.weight" not in learning
        assert isinstance(model.backbone.body.bn1, FrozenBatchNorm2d)
    # Fast R-CNN's head is the pretrained last stage.
    assert torch.equal(
        model.roi_heads.box_head.stage.layer4[0].conv1.weight, state["layer4.0.conv1.weight"]
    )


@pytest.mark.parametrize("name", ["IMAGENET1K_V2", "ResNet50_Weights.IMAGENET1K_V2", "DEFAULT"])
def test_weights_by_name(name):
    assert resolve_weights(name, ResNet50_Weights) is ResNet50_Weights.IMAGENET1K_V2


@pytest.mark.parametrize("weights", ["IMAGENET1K_V7", ResNet18_Weights.DEFAULT, True, ""])
def test_unknown_weights(weights):
    with pytest.raises(UserError, match="ResNet50_Weights has IMAGENET1K_V1"):
        resolve_weights(weights, ResNet50_Weights)


def test_number_of_classes_is_that_of_the_weights():
    with pytest.raises(ValueError, match="has 91 classes, not 5"):
        models.fasterrcnn_resnet50_fpn(weights="COCO_V1", num_classes=5)
