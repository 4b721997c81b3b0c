"""Fused layers: results of convolutions, linear layers and activations from packed weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rcnn_ext.models.fusion import fuse_model, layers, winograd
from rcnn_ext.models.fusion.buffers import MapBuffers
from rcnn_ext.ops import conv_winograd
from tests.helpers.fused import DTYPES, assert_near, needs_onednn

pytestmark = needs_onednn

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


CONVOLUTIONS = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "padding": 1},
    {"kernel_size": 1, "groups": 4},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "bias": False},
    {"kernel_size": 3, "stride": (2, 1), "padding": (0, 1)},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": (3, 1), "padding": "valid"},
    {"kernel_size": 3, "padding": 1, "groups": 8},
    {"kernel_size": 7, "stride": 2, "padding": 3},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolutions_with_sum_and_activation(options, dtype, onednn_calls):
    conv = nn.Conv2d(8, 16, **options).to(dtype)
    plain = copy.deepcopy(conv)
    report = fuse_model(conv)
    assert report.packed == ("",)
    bound = 1e-6 if dtype is torch.float32 else 6e-3
    for size in ((1, 8, 9, 13), (3, 8, 32, 17)):
        x = torch.randn(size).to(dtype)
        expected = F.conv2d(
            x.double(),
            plain.weight.double(),
            None if plain.bias is None else plain.bias.double(),
            plain.stride,
            plain.padding,
            plain.dilation,
            plain.groups,
        )
        other = torch.randn(expected.shape).to(dtype)
        assert_near(conv(x).double(), expected, bound)
        both = conv.run(x, other, nn.ReLU())
        assert_near(both.double(), (expected + other.double()).relu(), bound)
        assert both.is_contiguous(memory_format=LAST)
        kept = other.clone()
        assert_near(conv.run(x, other, nn.ReLU()), both, bound)
        assert torch.equal(other, kept), "written over without leave"
        assert_near(
            conv.run(x, other.contiguous(memory_format=LAST), overwrite=True).double(),
            expected + kept.double(),
            bound,
        )
    assert onednn_calls


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.Hardtanh(-0.3, 0.7),
        nn.LeakyReLU(0.2),
        nn.Hardswish(),
        nn.SiLU(),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.GELU(),
        nn.GELU("tanh"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_activations_run_in_the_layer_before_them(activation, kernel_size, monkeypatch):
    network = nn.Sequential(nn.Conv2d(4, 8, kernel_size), nn.Identity(), copy.copy(activation))
    plain = copy.deepcopy(network)
    fuse_model(network)
    x = torch.randn(2, 4, 11, 7)
    assert_near(network(x), plain(x), 2e-6)
    runs = []
    monkeypatch.setattr(type(activation), "forward", lambda self, x: runs.append(x))
    network(x)
    assert not runs
    network[2].forward = torch.sign
    assert set(network(x).unique().tolist()) <= {-1.0, 0.0, 1.0}, "replaced, so it runs"


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_layers(rows, dtype, monkeypatch):
    network = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 5, bias=False)).to(dtype)
    plain = copy.deepcopy(network)
    fuse_model(network)
    x = torch.randn(rows, 30).to(dtype)
    bound = 1e-6 if dtype is torch.float32 else 1e-2
    assert_near(network(x), plain(x), bound)
    assert_near(network[0](x[None]), plain[0](x[None]), bound)
    monkeypatch.setattr(layers, "_MAX_PACKED_BYTES", 0)
    assert_near(network(x), plain(x), bound)


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.LeakyReLU(0.1), nn.Hardswish()], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_activations_after_a_sum_and_of_large_maps(kernel_size, activation, monkeypatch):
    monkeypatch.setattr(MapBuffers, "MIN_BYTES", 2**12)
    conv = nn.Conv2d(8, 16, kernel_size, padding=kernel_size // 2)
    plain = copy.deepcopy(conv)
    fuse_model(conv)
    for size in (8, 40):
        x, other = torch.randn(1, 8, size, size), torch.randn(1, 16, size, size)
        assert_near(conv.run(x, None, activation), activation(plain(x)), 2e-6)
        expected = activation(plain(x) + other)
        assert_near(conv.run(x, other, activation), expected, 2e-6)
        last = other.contiguous(memory_format=LAST)
        assert_near(conv.run(x, last, activation, overwrite=True), expected, 2e-6)


@pytest.mark.parametrize("size", [9, 40])
def test_winograd_adds_in_the_memory_of_the_sum(size, monkeypatch):
    monkeypatch.setattr(layers, "_MIN_WINOGRAD_BYTES", 2**12)
    if not conv_winograd.can_take(torch.empty(64, 64, 3, 3), torch.float32):
        pytest.skip("no kernel for this processor")
    conv = nn.Conv2d(64, 64, 3, padding=1)
    plain = copy.deepcopy(conv)
    fuse_model(conv)
    x, other = torch.randn(1, 64, size, size), torch.randn(1, 64, size, size)
    expected = (plain(x) + other).relu()
    last = other.contiguous(memory_format=LAST)
    kept = conv.run(x, last, nn.ReLU())
    assert_near(kept, expected, 1e-5)
    assert torch.equal(last, other)
    found = conv.run(x, last, nn.ReLU(), overwrite=True)
    assert found.data_ptr() == last.data_ptr()
    assert torch.equal(found, kept)
    assert torch.equal(conv.run(x, other, nn.ReLU(), overwrite=True), kept), "another layout"


WINOGRAD = [
    (torch.float32, 64, 4),
    (torch.float32, 63, None),
    (torch.bfloat16, 128, 2),
    (torch.bfloat16, 64, None),
    (torch.float64, 64, None),
]


@pytest.mark.parametrize(("dtype", "channels", "tile"), WINOGRAD)
def test_choice_of_winograd(dtype, channels, tile):
    for options, expected in (
        ({"padding": 1}, tile),
        ({"padding": "same"}, tile),
        ({"padding": 0}, None),
        ({"padding": 1, "stride": 2}, None),
        ({"padding": 2, "dilation": 2}, None),
        ({"padding": 1, "groups": channels}, None),
    ):
        conv = nn.Conv2d(channels, channels, 3, **options).to(dtype)
        if expected is not None and not conv_winograd.can_take(conv.weight, dtype):
            expected = None
        assert winograd.find_tile(conv, dtype) == expected, options


@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.SiLU()], ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_winograd_runs_on_all_but_small_maps(dtype, bound, activation, monkeypatch):
    conv = nn.Conv2d(128, 160, 3, padding=1).to(dtype)
    if not conv_winograd.can_take(conv.weight, dtype):
        pytest.skip("this processor has no kernel for it")
    plain = copy.deepcopy(conv)
    fuse_model(conv)
    tiles = []
    run = conv_winograd.conv

    def counted(*args, **kwargs):
        tiles.append(args[5])
        return run(*args, **kwargs)

    monkeypatch.setattr(conv_winograd, "conv", counted)
    for size, expected in (((1, 128, 9, 13), 1), ((3, 128, 32, 17), 1), ((1, 128, 7, 9), 0)):
        x, tiles[:] = torch.randn(size).to(dtype), []
        other = torch.randn(size[0], 160, *size[2:]).to(dtype)
        direct = plain.double()(x.double())
        assert_near(conv(x).double(), direct, bound)
        summed = direct + other.double()
        summed = summed if activation is None else activation(summed)
        assert_near(conv.run(x, other, activation).double(), summed, bound)
        assert tiles == [4 if dtype is torch.float32 else 2] * (2 * expected)
