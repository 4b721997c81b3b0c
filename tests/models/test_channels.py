"""Images of 1 to 12 channels: the first convolution, the normalization, and training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rcnn_ext import models
from rcnn_ext.config import ModelConfig
from rcnn_ext.errors import UserError
from rcnn_ext.models import backbones
from rcnn_ext.models.channels import adapt_channels, imagenet_statistics
from rcnn_ext.models.from_config import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"backbone": "resnet18", "pool_size": 2, "min_size": 64, "max_size": 64}


def test_gray_images_give_what_equal_channels_gave():
    weight = torch.randn(4, 3, 3, 3)
    gray = torch.rand(1, 1, 8, 8)
    expected = nn.functional.conv2d(gray.expand(1, 3, 8, 8), weight)
    torch.testing.assert_close(nn.functional.conv2d(gray, adapt_channels(weight, 1)), expected)


@pytest.mark.parametrize("channels", [2, 4, 5, 6, 12])
def test_red_green_and_blue_take_turns_and_keep_the_magnitude(channels):
    weight = torch.randn(4, 3, 3, 3)
    adapted = adapt_channels(weight, channels)
    assert adapted.shape == (4, channels, 3, 3)
    for index in range(channels):
        torch.testing.assert_close(adapted[:, index], weight[:, index % 3] * 3 / channels)


def test_weights_of_three_channels_stay_and_others_are_refused():
    weight = torch.randn(4, 3, 3, 3)
    assert adapt_channels(weight, 3) is weight
    with pytest.raises(ValueError, match="on 5 channels is not one on RGB"):
        adapt_channels(torch.randn(4, 5, 3, 3), 3)


def test_timm_adapts_alike():
    timm = pytest.importorskip("timm", reason="timm comes with the extra timm")
    weight = torch.randn(4, 3, 3, 3)
    for channels in (1, 2, 5, 12):
        theirs = timm.models.adapt_input_conv(channels, weight.clone())
        torch.testing.assert_close(adapt_channels(weight, channels), theirs)


@pytest.mark.parametrize(
    ("channels", "mean"), [(1, [0.449]), (2, [0.485, 0.456]), (4, [0.485, 0.456, 0.406, 0.485])]
)
def test_default_statistics(channels, mean):
    assert imagenet_statistics(channels)[0] == pytest.approx(mean)


@pytest.mark.parametrize("channels", [1, 5, 12])
@pytest.mark.parametrize(
    ("backbone", "neck"),
    [("resnet18", "fpn"), ("resnet18", "c4"), ("mobilenet_v3_large", "c5")],
)
def test_detectors_take_images_of_their_channels(channels, backbone, neck):
    config = ModelConfig(**{**SMALL, "backbone": backbone, "neck": neck, "in_channels": channels})
    model = build_model(config, 3)
    assert len(model.transform.image_mean) == len(model.transform.image_std) == channels
    target = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
    losses = model.train()([torch.rand(channels, 64, 64)] * 2, [target] * 2)
    sum(losses.values()).backward()
    first = next(p for p in model.backbone.parameters() if p.dim() == 4)
    assert first.shape[1] == channels
    assert first.grad.abs().sum() > 0
    assert len(model.eval()([torch.rand(channels, 50, 60)])) == 1
    with pytest.raises(ValueError, match=rf"expected \[{channels}, height, width\]"):
        model([torch.rand(3, 64, 64)])


@pytest.mark.parametrize("backbone", ["cnn", "resnet18_fpn"])
def test_localizers_take_images_of_their_channels(backbone):
    config = ModelConfig(
        detector="localizer", backbone=backbone, fixed_size=(48, 32), in_channels=2
    )
    model = build_model(config, 3).eval()
    assert len(model([torch.rand(2, 50, 60)])) == 1


def test_published_weights_are_adapted(monkeypatch):
    state = backbones.torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(backbones, "fetch_state_dict", lambda *args, **options: state)
    options = {"num_classes": 2, "weights_backbone": "DEFAULT", "pool_size": 2}
    model = models.faster_rcnn("resnet18", in_channels=1, **options)
    torch.testing.assert_close(
        model.backbone.body["conv1"].weight, state["conv1.weight"].sum(1, keepdim=True)
    )
    # Frozen as the rest of the stem.
    assert not model.backbone.body["conv1"].weight.requires_grad


def test_statistics_of_other_channels_are_refused():
    config = ModelConfig(**SMALL, in_channels=4, image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(UserError, match="image_mean has 3 numbers, and images have 4 channels"):
        build_model(config, 2)
    with pytest.raises(ValueError, match="in_channels must be from 1 to 12"):
        ModelConfig(in_channels=13)


def test_an_own_backbone_says_its_channels():
    body = nn.Conv2d(4, 8, 3, stride=16, padding=1)
    model = models.faster_rcnn(body, num_classes=2, in_channels=4, pool_size=2).eval()
    assert len(model([torch.rand(4, 64, 64)])) == 1
