"""Fused blocks: what hooks and replaced layers see, and what was left out."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.resnet import BasicBlock, Bottleneck

from rcnn_ext.models.fusion import classes, fuse_model
from tests.helpers.fused import assert_near, needs_onednn
from tests.models.test_folding import randomize

pytestmark = needs_onednn

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_residual_blocks_never_write_over_their_input(block):
    channels = 4 * block.expansion
    stage = nn.Sequential(block(channels, 4), block(channels, 4), block(channels, 4)).eval()
    randomize(stage)
    plain = copy.deepcopy(stage)
    fuse_model(stage)
    for size in (4, 40):
        x = torch.randn(1, channels, size, size).contiguous(memory_format=LAST)
        kept = x.clone()
        expected = plain(x)
        assert_near(stage(x), expected)
        assert torch.equal(x, kept)
        # A hook sees the output of a block as it was.
        seen = []
        hook = stage[0].register_forward_hook(lambda *call, to=seen: to.append(call[-1]))
        assert_near(stage(x), expected)
        hook.remove()
        assert_near(seen[0], plain[0](x))


def test_hooked_layers_return_what_they_compute():
    network = torchvision.models.resnet18().eval()
    randomize(network)
    plain = copy.deepcopy(network)
    fuse_model(network)
    x = torch.rand(1, 3, 64, 64)
    expected = plain(x)
    names = ("conv1", "layer1.0.conv1", "layer1.0.relu", "layer2.0.downsample.0", "layer3", "fc")
    for name in names:
        found = []
        # Norms are gone, so a convolution is compared by its sum with its norm.
        layer = network.get_submodule(name)
        hook = layer.register_forward_hook(lambda *call, to=found: to.append(call[-1].clone()))
        assert_near(network(x), expected)
        hook.remove()
        assert found, name
        if "conv" in name:
            assert float(found[0].min()) < 0, "an activation inside"


def test_replaced_layers_are_run():
    network = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d
    ).eval()
    fuse_model(network)
    plain = copy.deepcopy(network)
    classes.restore_classes(plain)
    for module in (network, plain):
        torch.manual_seed(1)
        module.body["layer1"][0].conv1 = nn.Conv2d(64, 64, 5, padding=2)
        module.body["layer2"][0].relu = nn.Softplus()
        module.fpn.inner_blocks[0] = nn.Sequential(nn.Conv2d(64, 256, 1), nn.Tanh())
        module.eval()
    x = torch.rand(1, 3, 64, 64)
    assert_near(network(x), plain(x))
