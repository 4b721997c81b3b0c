from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from rcnn_ext import models
from rcnn_ext.models.backbones import build_c4_backbone, build_fpn_backbone
from rcnn_ext.models.feature_maps import measure_feature_maps
from rcnn_ext.models.folding import FoldedFrozenBatchNorm2d

# Channels of the map of stride 16 and of the last stage.
C4_CHANNELS = {"resnet18": (256, 512), "resnet50": (1024, 2048), "mobilenet_v3_large": (112, 960)}


@pytest.mark.parametrize("name", C4_CHANNELS)
def test_c4(name):
    backbone, stage = build_c4_backbone(name)
    channels, stage_channels = C4_CHANNELS[name]
    assert backbone.out_channels == channels
    assert measure_feature_maps(backbone) == {"0": (channels, 16.0)}
    backbone.eval()
    stage.eval()
    features = backbone(torch.rand(2, 3, 64, 96))
    assert features.shape == (2, channels, 4, 6)
    assert stage(features).shape == (2, stage_channels, 2, 3)


def test_c4_names_are_the_networks():
    backbone, stage = build_c4_backbone("resnet18")
    names = [f"body.{n}" for n in ("conv1.weight", "bn1.weight", "layer3.1.conv2.weight")]
    assert set(names) <= set(backbone.state_dict())
    assert "layer4.0.conv1.weight" in stage.state_dict()
    assert not any("fc" in name for name in {**backbone.state_dict(), **stage.state_dict()})


@pytest.mark.parametrize(
    ("name", "layers", "strides"),
    [
        ("resnet18", None, [4, 8, 16, 32, 64]),
        ("resnet18", (2, 3), [8, 16, 32]),
        ("mobilenet_v3_large", None, [32, 32, 64]),
        ("mobilenet_v3_large", (1, 2, 3, 5), [4, 8, 16, 32, 64]),
    ],
)
def test_fpn(name, layers, strides):
    backbone = build_fpn_backbone(name, returned_layers=layers)
    maps = measure_feature_maps(backbone)
    assert list(maps) == [*map(str, range(len(strides) - 1)), "pool"]
    assert [m.stride for m in maps.values()] == strides
    assert {m.channels for m in maps.values()} == {256} == {backbone.out_channels}


@pytest.mark.parametrize(("trainable", "learning"), [(None, 5), (5, 5), (4, 4), (2, 2), (0, 0)])
def test_trainable_layers_count_from_the_last(trainable, learning):
    backbone = build_fpn_backbone("resnet18", trainable_layers=trainable)
    stages = [["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]]
    expected = {name for stage in stages[5 - learning :] for name in stage}
    found = {n.split(".")[0] for n, p in backbone.body.named_parameters() if p.requires_grad}
    assert found == expected
    frozen = {n.split(".")[0] for n, p in backbone.body.named_parameters() if not p.requires_grad}
    assert not frozen & expected
    assert all(p.requires_grad for p in backbone.fpn.parameters())


def test_trainable_layers_of_c4_include_the_last_stage():
    backbone, stage = build_c4_backbone("resnet18", trainable_layers=1)
    assert all(p.requires_grad for p in stage.parameters())
    assert not any(p.requires_grad for p in backbone.parameters())
    backbone, stage = build_c4_backbone("resnet18", trainable_layers=0)
    assert not any(p.requires_grad for p in stage.parameters())


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("auto", nn.BatchNorm2d),
        ("batch", nn.BatchNorm2d),
        ("frozen", FoldedFrozenBatchNorm2d),
        (lambda channels: nn.GroupNorm(8, channels), nn.GroupNorm),
    ],
)
def test_norm_layers(norm, kind):
    backbone = build_fpn_backbone("resnet18", norm_layer=norm)
    kinds = (nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm)
    found = {type(layer) for layer in backbone.modules() if isinstance(layer, kinds)}
    assert found == {kind}


def test_measuring_leaves_the_statistics_alone():
    backbone = build_fpn_backbone("resnet18").train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    measure_feature_maps(backbone)
    assert backbone.training
    assert all(torch.equal(before[name], v) for name, v in backbone.state_dict().items())


def test_stride_is_exact_without_padding():
    # 128 pixels give 30 positions, 256 give 62: the ratio of the sizes is not the stride.
    network = nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.Conv2d(4, 6, 3, stride=2))
    assert measure_feature_maps(network) == {"0": (6, 4.0)}


def test_map_without_a_stride():
    class Global(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, images):
            return OrderedDict(whole=self.conv(images).mean(dim=(2, 3), keepdim=True))

    with pytest.raises(ValueError, match="feature map 'whole' of the backbone"):
        measure_feature_maps(Global())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet19"}, "no backbone 'resnet19'; there are resnet18"),
        ({"norm_layer": "layer"}, "norm_layer must be"),
        ({"trainable_layers": 6}, r"must lie in \[0, 5\], got 6"),
        ({"trainable_layers": -1}, r"must lie in \[0, 5\], got -1"),
        ({"returned_layers": (0, 1)}, r"from 1 to 4, got \(0, 1\)"),
        ({"returned_layers": (3, 2)}, "ascending"),
        ({"returned_layers": ()}, "ascending"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        build_fpn_backbone(**{"name": "resnet18", **options})


def test_backbone_of_the_user_must_say_its_channels():
    with pytest.raises(ValueError, match=r"\(Sequential\) needs an attribute out_channels"):
        models.FasterRCNN(nn.Sequential(nn.Conv2d(3, 4, 1)), 2)
