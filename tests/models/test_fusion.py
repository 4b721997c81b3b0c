"""Fused networks: the same results, with equal bits for any number of threads."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import (
    fcos_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    retinanet_resnet50_fpn,
    ssd300_vgg16,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from rcnn_ext import models
from rcnn_ext.models.fusion import classes, fuse_model
from tests.helpers.fused import DTYPES, assert_near, needs_onednn
from tests.models.test_folding import randomize

pytestmark = needs_onednn

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


BACKBONES = {
    "resnet18": lambda: torchvision.models.resnet18(),
    "resnet50": lambda: torchvision.models.resnet50(width_per_group=16),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(width_mult=0.5),
    "mobilenet_v3_large": lambda: torchvision.models.mobilenet_v3_large(width_mult=0.5),
    "vgg": lambda: torchvision.models.vgg11_bn().features,
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 16),
    "efficientnet": lambda: torchvision.models.efficientnet_b0(),
    "regnet": lambda: torchvision.models.regnet_y_400mf(),
    "pyramid": lambda: resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d
    ),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_networks(name, onednn_calls):
    network = BACKBONES[name]().eval()
    randomize(network)
    plain = copy.deepcopy(network)
    report = fuse_model(network)
    assert report.packed
    assert report.packed_bytes > 0
    for size in ((1, 3, 65, 47), (2, 3, 64, 96)):
        x = torch.rand(size)
        kept = x.clone()
        assert_near(network(x), plain(x), 2e-5)
        assert torch.equal(x, kept)
    assert len(onednn_calls) > 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_threads_give_equal_bits(dtype):
    network = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d)
    head = nn.Sequential(nn.Flatten(), nn.Linear(256 * 49, 64), nn.ReLU(), nn.Linear(64, 30))
    randomize(network)
    both = nn.ModuleList([network, head]).to(dtype)
    fuse_model(both)
    x, pooled = torch.rand(1, 3, 160, 96).to(dtype), torch.randn(70, 256 * 49).to(dtype)
    results = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        results.append([*network(x).values(), head(pooled)])
    for one, two, again in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, again)


def test_two_preparations_give_equal_bits():
    network = torchvision.models.resnet18()
    x = torch.rand(1, 3, 64, 64)
    outputs = []
    for _ in range(2):
        prepared = copy.deepcopy(network)
        fuse_model(prepared)
        outputs.append(prepared(x))
    fuse_model(prepared)
    assert torch.equal(*outputs)
    assert torch.equal(prepared(x), outputs[0]), "preparing twice"


_OPTIONS = {"weights": None, "weights_backbone": None, "num_classes": 3}
_SMALL = {"min_size": 64, "max_size": 96}
DETECTORS = {
    "fcos": lambda: fcos_resnet50_fpn(**_OPTIONS, **_SMALL, score_thresh=0.0),
    "mask": lambda: maskrcnn_resnet50_fpn(**_OPTIONS, **_SMALL, box_score_thresh=0.0),
    "retinanet": lambda: retinanet_resnet50_fpn(**_OPTIONS, **_SMALL, score_thresh=0.0),
    "ssd": lambda: ssd300_vgg16(**_OPTIONS, score_thresh=0.0),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_of_torchvision(name, onednn_calls):
    model = DETECTORS[name]().eval()
    randomize(model)
    images = [torch.rand(3, 60, 80)]
    expected = model(images)
    report = fuse_model(model)
    found = model(images)
    assert len(expected[0]["boxes"]) > 20
    torch.testing.assert_close(found[0]["scores"], expected[0]["scores"], rtol=1e-3, atol=1e-4)
    assert len(onednn_calls) > 20
    assert not [name for name, reason in report.kept.items() if "Conv2d" in reason]


def test_detector_keeps_its_report():
    model = models.faster_rcnn("resnet18", num_classes=3, min_size=64, max_size=96)
    assert model.preparation_report is None
    state = list(model.state_dict())
    model.prepare_for_inference(dtype=None)
    report = model.preparation_report
    assert report.kept == {}
    assert len(report.packed) == len(
        [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    )
    assert report.fused["rpn.head"] == "RPNHead"
    # The norms are gone, and convolutions have biases instead.
    assert {key for key in model.state_dict() if key.endswith("weight")} < set(state)
    model.prepare_for_inference(dtype=None, channels_last=False)
    assert model.preparation_report.kept == {"": "packed weights need channels_last"}
    assert not any(isinstance(layer, classes.FusedLayer) for layer in model.modules())
    model.prepare_for_inference(dtype=None)
    assert model.preparation_report.packed == report.packed
