"""Fused models as modules: weights, copies, gradients, export and the report."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from rcnn_ext.models import fusion
from rcnn_ext.models.fusion import classes, fuse_model, onednn
from tests.helpers.fused import assert_near, needs_onednn

pytestmark = needs_onednn

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def test_weights_may_be_written_after_packing():
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(128, 8)
    )
    fuse_model(network)
    x = torch.randn(9, 4, 6, 6)
    network(x)

    def check():
        plain = copy.deepcopy(network)
        classes.restore_classes(plain)
        assert type(plain[0]) is nn.Conv2d
        assert_near(network(x), plain(x))
        return network(x)

    outputs = [check()]
    other = {name: torch.randn_like(value) for name, value in network.state_dict().items()}
    network.load_state_dict(other)
    outputs.append(check())
    network.load_state_dict({name: v.neg() for name, v in other.items()}, assign=True)
    outputs.append(check())
    network[0].weight.mul_(2)
    outputs.append(check())
    network[2].weight.data = torch.randn(8, 8, 1, 1)
    outputs.append(check())
    network[4].weight = nn.Parameter(torch.randn(8, 128))
    outputs.append(check())
    for one, two in zip(outputs, outputs[1:], strict=False):
        assert not torch.allclose(one, two)
    # To another type and back.
    network.double()
    assert network(x.double()).dtype == torch.float64
    network.float()
    check()


def test_copies_have_weights_of_their_own():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))
    fuse_model(network)
    x = torch.rand(1, 3, 8, 8)
    before = network(x)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert type(other[0]) is type(network[0])
        assert isinstance(other[0], nn.Conv2d)
        assert torch.equal(other(x), before)
        other[2].bias.add_(7.0)
        assert_near(other(x), before + 7)
        assert torch.equal(network(x), before)
    assert repr(network) == repr(nn.Sequential(*(eval(f"nn.{layer}") for layer in network)))


def test_gradients_of_images_are_recorded(onednn_calls):
    network = torchvision.models.resnet18().eval()
    plain = copy.deepcopy(network)
    fuse_model(network)
    with torch.enable_grad():
        grads = []
        for module in (network, plain):
            x = torch.ones(1, 3, 40, 40, requires_grad=True)
            module(x).square().sum().backward()
            grads.append(x.grad)
    assert_near(*grads, 1e-4)
    assert not onednn_calls


def test_compile_export_and_tracing_see_public_operators():
    network = nn.Sequential(
        resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)
    ).eval()
    fuse_model(network)
    x = torch.rand(1, 3, 64, 64)
    expected = network(x)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert_near(compiled(x), expected)
    exported = torch.export.export(network, (x,))
    assert not [node for node in exported.graph.nodes if "mkldnn" in str(node.target)]
    assert_near(exported.module()(x), expected)
    traced = torch.jit.trace(network, x, strict=False)
    assert "mkldnn" not in str(traced.inlined_graph)
    assert_near(traced(x), expected)
    graph = torch.fx.symbolic_trace(network[0].body.layer1)
    pooled = torch.rand(1, 64, 16, 16)
    assert_near(graph(pooled), network[0].body.layer1(pooled))


def test_autocast_vmap_and_disabled_onednn(onednn_calls):
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU())
    fuse_model(network)
    x = torch.rand(2, 1, 4, 9, 9)
    expected = network(x[0])
    onednn_calls.clear()
    assert_near(torch.func.vmap(network)(x)[0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x[0]).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert_near(network(x[0]), expected)
    assert network(torch.rand(4, 9, 9)).shape == (8, 7, 7)
    assert network(torch.rand(0, 4, 9, 9)).shape == (0, 8, 7, 7)
    assert not onednn_calls
    with torch.inference_mode():
        assert_near(network(x[0]), expected)
    assert len(onednn_calls) == 1


def test_training_mode_of_a_fused_network_drops():
    network = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Dropout(0.5))
    fuse_model(network)
    assert (network.train()(torch.ones(50, 20)) == 0).sum() > (
        network.eval()(torch.ones(50, 20)) == 0
    ).sum()


class OddConv2d(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).neg()


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.odd = OddConv2d(4, 4, 1)
        self.reflected = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.uneven = nn.Conv2d(4, 4, 2, padding="same")
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.uneven(self.reflected(self.odd(self.first(x).relu()))))


def test_report_names_what_was_left_and_why():
    network = Unknown().eval()
    plain = copy.deepcopy(network)
    report = fuse_model(network)
    assert report.packed == ("first",)
    assert report.fused == {}
    assert {name: reason.split(",")[0] for name, reason in report.kept.items()} == {
        "odd": "OddConv2d computes in its own way",
        "reflected": "oneDNN does not pad in the mode 'reflect'",
        "uneven": "it pads one side more than the other",
        "norm": "no convolution before this batch norm could take it into its weights",
        "": "Unknown is no block known here",
    }
    text = str(report)
    assert text.startswith("1 layers compute with packed weights (0.0 MiB")
    assert "as before: the whole model (1): Unknown is no block known here" in text
    x = torch.rand(2, 3, 9, 9)
    assert_near(network(x), plain(x))
    double = fuse_model(nn.Conv2d(3, 4, 3).double())
    assert double.kept == {"": "oneDNN does not compute in float64"}


def test_without_the_operators_models_compute_as_before(monkeypatch):
    monkeypatch.setattr(onednn, "_OPERATORS", ("_renamed_in_another_version",))
    onednn.why_unavailable.cache_clear()
    try:
        network = torchvision.models.resnet18()
        report = fuse_model(network)
        reason = "this version of PyTorch has no mkldnn::_renamed_in_another_version"
        assert report == fusion.FusionReport(kept={"": reason})
        assert str(report).endswith(f"as before: the whole model (1): {reason}")
        assert type(network.conv1) is nn.Conv2d
    finally:
        onednn.why_unavailable.cache_clear()
