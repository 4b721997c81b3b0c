"""Frozen batch norms are folded into the weights of the convolutions before them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d

from rcnn_ext import models
from rcnn_ext.models.folding import fold_frozen_norms, fold_norms


def randomize(module: nn.Module) -> None:
    """Set statistics and scales of norms that change their input."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d):
                layer.running_mean.normal_(std=0.3)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(std=0.3)


@pytest.fixture
def norm_runs(monkeypatch):
    """Counts how often a frozen norm passes over a feature map."""
    runs = []
    forward = FrozenBatchNorm2d.forward

    def counted(self, x):
        runs.append(self)
        return forward(self, x)

    monkeypatch.setattr(FrozenBatchNorm2d, "forward", counted)
    return runs


@pytest.mark.parametrize("trainable", [0, 2, 5])
def test_results_and_gradients_are_those_of_the_layers(norm_runs, trainable):
    network = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=trainable
    )
    randomize(network)
    folded = copy.deepcopy(network)
    fold_frozen_norms(folded)
    assert list(folded.state_dict()) == list(network.state_dict())
    image = torch.rand(2, 3, 64, 64)
    outputs = []
    for module in (network, folded):
        norm_runs.clear()
        maps = module.train()(image)
        assert len(norm_runs) == (20 if module is network else 0)
        sum(feature.square().mean() for feature in maps.values()).backward()
        outputs.append(maps)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    expected = dict(network.named_parameters())
    for name, parameter in folded.named_parameters():
        other = expected[name].grad
        assert (parameter.grad is None) == (other is None), name
        if other is not None:
            scale = other.abs().max().item()
            torch.testing.assert_close(parameter.grad, other, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large"])
def test_frozen_backbones_come_folded(norm_runs, name, make_batch):
    model = models.faster_rcnn(name, num_classes=3, norm_layer="frozen", min_size=96, max_size=128)
    norm_runs.clear()  # The builder has run the backbone, to measure it.
    images, targets = make_batch([(96, 96)], [2], 3)
    sum(model.train()(images, targets).values()).backward()
    assert norm_runs == []


class NamedFrozenBatchNorm2d(FrozenBatchNorm2d):
    """A norm of somebody's own."""


def test_derived_norms_and_new_neighbors_are_folded(norm_runs):
    network = nn.Sequential(nn.Conv2d(4, 4, 1), NamedFrozenBatchNorm2d(4))
    randomize(network)
    image = torch.rand(2, 4, 5, 5)
    expected = network(image)
    norm_runs.clear()
    fold_frozen_norms(network)
    torch.testing.assert_close(network(image), expected)
    assert not norm_runs
    network[0] = nn.Conv2d(4, 4, 1)
    expected = network(image)
    norm_runs.clear()
    fold_frozen_norms(network)
    torch.testing.assert_close(network(image), expected)
    assert not norm_runs


def test_constructors_leave_layers_alone():
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    kinds = [type(layer) for layer in backbone.modules()]
    models.FasterRCNN(backbone, num_classes=3)
    assert [type(layer) for layer in backbone.modules()] == kinds
    assert not [layer for layer in backbone.modules() if "forward" in vars(layer)]


def test_buffers_may_change_after_folding():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4))
    fold_frozen_norms(network)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4))
    randomize(plain)
    plain[1].eps = 0.5
    network[1].eps = 0.5
    network.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(network(image), plain(image))


@pytest.mark.parametrize("place", [0, 1])
def test_a_replaced_layer_ends_the_pair(place):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.ReLU())
    randomize(network)
    plain = copy.deepcopy(network)
    fold_frozen_norms(network)
    new = (nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4))[place]
    randomize(nn.Sequential(new))
    network[place] = plain[place] = new
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(network(image), plain(image))


def test_copies_use_their_own_layers():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4))
    fold_frozen_norms(network)
    image = torch.rand(1, 3, 8, 8)
    before = network(image)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(other(image), before)
        other[1].bias.fill_(7.0)
        torch.testing.assert_close(other(image), before + 7)
        torch.testing.assert_close(network(image), before)


@pytest.mark.parametrize("build", [resnet18, resnet50])
def test_folding_for_inference_leaves_no_norm(build):
    network = build().eval()
    randomize(network)
    folded = copy.deepcopy(network)
    fold_norms(folded)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(image)
        torch.testing.assert_close(
            folded(image), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()
        )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_grouped_convolutions_with_and_without_bias(bias, norm):
    network = Conv2dNormActivation(6, 12, groups=3, norm_layer=norm, bias=bias).eval()
    randomize(network)
    folded = copy.deepcopy(network)
    fold_norms(folded)
    assert isinstance(folded[1], nn.Identity)
    image = torch.rand(1, 6, 8, 8)
    torch.testing.assert_close(folded(image), network(image))


def shared_convolution() -> nn.Module:
    conv = nn.Conv2d(4, 4, 1)
    return nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(4)), nn.Sequential(conv, nn.ReLU()))


def hooked_convolution() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    network[0].register_forward_hook(lambda *_: None)
    return network


@pytest.mark.parametrize(
    "build",
    [
        shared_convolution,
        hooked_convolution,
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
    ],
    ids=["shared", "hook", "statistics of the batch", "activation between"],
)
def test_what_cannot_be_folded_stays(build):
    network = build().eval()
    if network[-1].__class__ is not nn.BatchNorm2d or network[-1].track_running_stats:
        randomize(network)
    folded = copy.deepcopy(network)
    fold_norms(folded)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    image = torch.rand(2, 4, 5, 5)
    torch.testing.assert_close(folded(image), network(image))
