"""Checkpoints of detectron2, by state dicts of its names and shapes.

detectron2 itself is no dependency: what its layers compute is written out here, from its
documentation.
"""

from __future__ import annotations

import collections
import copy
import functools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from rcnn_ext import models
from rcnn_ext.errors import UserError
from rcnn_ext.models import convert_detectron2, load_detectron2
from rcnn_ext.models.anchors import AnchorGenerator
from rcnn_ext.models.pickles import read_arrays

BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
CLASSES = 5  # without background
SMALL = {"min_size": 64, "max_size": 64}


class Weights(dict):
    """A state dict of detectron2, filled with random numbers of a trained network's size."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise
        self.used = 0

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers; drawing millions anew for every tensor would take most of the time."""
        self.used += 1
        start = 4999 * self.used % 1_000_000
        return self.noise[start : start + math.prod(shape)].view(shape)

    def conv(self, name: str, outputs: int, inputs: int, side: int, *, norm: bool) -> None:
        scale = (2 / (inputs * side * side)) ** 0.5
        shape = (outputs, inputs, side, side)
        self[f"{name}.weight"] = scale * self.normal(*shape)
        if not norm:
            self[f"{name}.bias"] = 0.1 * self.normal(outputs)
            return
        for kind in ("weight", "running_var"):
            self[f"{name}.norm.{kind}"] = 0.8 + 0.2 * self.normal(outputs).sigmoid()
        for kind in ("bias", "running_mean"):
            self[f"{name}.norm.{kind}"] = 0.1 * self.normal(outputs)

    def linear(self, name: str, outputs: int, inputs: int) -> None:
        self[f"{name}.weight"] = self.normal(outputs, inputs) / inputs**0.5
        self[f"{name}.bias"] = 0.1 * self.normal(outputs)

    def stage(self, name: str, number: int) -> None:
        width = 64 * 2 ** (number - 2)
        inputs = 64 if number == 2 else width * 2
        for block in range(BLOCKS[number]):
            if block == 0:
                self.conv(f"{name}.0.shortcut", width * 4, inputs, 1, norm=True)
            self.conv(f"{name}.{block}.conv1", width, inputs, 1, norm=True)
            self.conv(f"{name}.{block}.conv2", width, width, 3, norm=True)
            self.conv(f"{name}.{block}.conv3", width * 4, width, 1, norm=True)
            inputs = width * 4


@functools.cache
def noise() -> Tensor:
    return torch.randn(14_000_000, generator=torch.Generator().manual_seed(0))


@functools.cache
def make_checkpoint(fpn: bool, rpn: bool, agnostic: bool, pixels: bool) -> Weights:
    state = Weights(noise())
    if pixels:  # Checkpoints of 2019 and 2020 hold these.
        state["pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
        state["pixel_std"] = torch.ones(3, 1, 1)
        state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(15, 4)
    body = "backbone.bottom_up" if fpn else "backbone"
    if fpn:
        for number in BLOCKS:
            channels = 64 * 2**number
            state.conv(f"backbone.fpn_lateral{number}", 256, channels, 1, norm=False)
            state.conv(f"backbone.fpn_output{number}", 256, 256, 3, norm=False)
    state.conv(f"{body}.stem.conv1", 64, 3, 7, norm=True)
    for number in (2, 3, 4, 5) if fpn else (2, 3, 4):
        state.stage(f"{body}.res{number}", number)
    if not fpn:
        state.stage("roi_heads.res5", 5)
    if rpn:
        channels, anchors = (256, 3) if fpn else (1024, 15)
        head = "proposal_generator.rpn_head"
        state.conv(f"{head}.conv", channels, channels, 3, norm=False)
        state.conv(f"{head}.objectness_logits", anchors, channels, 1, norm=False)
        state.conv(f"{head}.anchor_deltas", anchors * 4, channels, 1, norm=False)
    if fpn:
        state.linear("roi_heads.box_head.fc1", 1024, 256 * 49)
        state.linear("roi_heads.box_head.fc2", 1024, 1024)
    features = 1024 if fpn else 2048
    state.linear("roi_heads.box_predictor.cls_score", CLASSES + 1, features)
    state.linear("roi_heads.box_predictor.bbox_pred", 4 if agnostic else CLASSES * 4, features)
    return state


class Detectron2:
    """The computations of detectron2 with such weights."""

    def __init__(self, state: dict[str, Tensor], prefix: str, stride_in_1x1: bool) -> None:
        self.state, self.prefix, self.stride_in_1x1 = state, prefix, stride_in_1x1

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        x = F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)
        if f"{name}.norm.weight" not in self.state:
            return x
        norm = [self.state[f"{name}.norm.{k}"] for k in ("running_mean", "running_var")]
        scale, shift = (self.state[f"{name}.norm.{k}"] for k in ("weight", "bias"))
        return F.batch_norm(x, *norm, scale, shift, training=False, eps=1e-5)

    def stage(self, name: str, number: int, x: Tensor) -> Tensor:
        for block in range(BLOCKS[number]):
            stride = 2 if block == 0 and number > 2 else 1
            first, second = (stride, 1) if self.stride_in_1x1 else (1, stride)
            y = self.conv(f"{name}.{block}.conv1", x, first).relu()
            y = self.conv(f"{name}.{block}.conv2", y, second).relu()
            y = self.conv(f"{name}.{block}.conv3", y)
            shortcut = self.conv(f"{name}.0.shortcut", x, stride) if block == 0 else x
            x = (y + shortcut).relu()
        return x

    def features(self, image: Tensor, order: str, mean: Tensor, std: Tensor) -> list[Tensor]:
        """Maps of res2 to the last stage, from an RGB image [3, H, W] in [0, 1]."""
        pixels = (image.flip(0) if order == "BGR" else image) * 255
        x = ((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))[None]
        x = self.conv(f"{self.prefix}.stem.conv1", x, 2).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        maps = []
        for number in BLOCKS:
            if f"{self.prefix}.res{number}.0.conv1.weight" in self.state:
                x = self.stage(f"{self.prefix}.res{number}", number, x)
                maps.append(x)
        return maps

    def pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        """P2 to P6."""
        merged: list[Tensor] = []
        for number, feature in zip((5, 4, 3, 2), reversed(maps), strict=True):
            lateral = self.conv(f"backbone.fpn_lateral{number}", feature)
            if merged:
                lateral = lateral + F.interpolate(merged[-1], scale_factor=2.0, mode="nearest")
            merged.append(lateral)
        outputs = [
            self.conv(f"backbone.fpn_output{n}", m)
            for n, m in zip((5, 4, 3, 2), merged, strict=True)
        ][::-1]
        return [*outputs, F.max_pool2d(outputs[-1], 1, 2)]


def checkpoint(
    *, fpn: bool, rpn: bool = True, agnostic: bool = False, pixels: bool = False
) -> Weights:
    """Names and shapes of detectron2's R50 Faster R-CNN (or Fast R-CNN), C4 or FPN."""
    return copy.copy(make_checkpoint(fpn, rpn, agnostic, pixels))


@pytest.mark.parametrize(
    ("fpn", "rpn", "agnostic"),
    [(True, True, False), (True, False, True), (False, True, True), (False, False, False)],
)
def test_kind_of_detector_is_read_off_the_weights(fpn, rpn, agnostic):
    state = checkpoint(fpn=fpn, rpn=rpn, agnostic=agnostic, pixels=True)
    model = load_detectron2(state)
    assert isinstance(model, models.FasterRCNN if rpn else models.FastRCNN)
    assert not model.training
    pooler = model.roi_heads.box_roi_pool
    assert pooler.output_size == ((7, 7) if fpn else (14, 14))
    assert pooler.aligned if fpn else pooler.operator.aligned
    assert (pooler if fpn else pooler.operator).sampling_ratio == 0
    predictor = model.roi_heads.box_predictor
    assert predictor.cls_score.out_features == CLASSES + 1
    assert predictor.bbox_pred.out_features == (4 if agnostic else 4 * (CLASSES + 1))
    assert all(m.eps == 1e-5 for m in model.modules() if isinstance(m, FrozenBatchNorm2d))


@pytest.mark.parametrize(
    ("options", "order", "mean", "std", "in_1x1"),
    [
        ({}, "BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), True),
        (
            {
                "input_format": "RGB",
                "pixel_mean": (123.675, 116.28, 103.53),
                "pixel_std": (58.395, 57.12, 57.375),
            },
            "RGB",
            (123.675, 116.28, 103.53),
            (58.395, 57.12, 57.375),
            False,
        ),
        ({"stride_in_1x1": False}, "BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), False),
    ],
    ids=["caffe", "torchvision", "told"],
)
@pytest.mark.parametrize("fpn", [True, False])
def test_features(fpn, options, order, mean, std, in_1x1):
    state = checkpoint(fpn=fpn)
    model = load_detectron2(state, **SMALL, **options)
    peer = Detectron2(state, "backbone.bottom_up" if fpn else "backbone", in_1x1)
    image = torch.rand(3, 64, 64)  # neither resized nor padded
    with torch.no_grad():
        maps = peer.features(image, order, torch.tensor(mean), torch.tensor(std))
        expected = peer.pyramid(maps) if fpn else maps[-1:]
        features = model.backbone(model.transform([image])[0].tensors)
        actual = list(features.values()) if fpn else [features]
    assert len(actual) == len(expected) == (5 if fpn else 1)
    for mine, other in zip(actual, expected, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("fpn", [True, False])
def test_rpn_gives_each_anchor_its_prediction(fpn):
    state = checkpoint(fpn=fpn)
    model = load_detectron2(state)
    channels = 256 if fpn else 1024
    feature = torch.randn(1, channels, 4, 5)
    head = "proposal_generator.rpn_head"
    peer = Detectron2(state, "", True)
    with torch.no_grad():
        hidden = peer.conv(f"{head}.conv", feature).relu()
        logits = peer.conv(f"{head}.objectness_logits", hidden)[0]  # [A, 4, 5]
        deltas = peer.conv(f"{head}.anchor_deltas", hidden)[0].unflatten(0, (-1, 4))
        (our_logits,), (our_deltas,) = model.rpn.head([feature])
    # detectron2's anchors: sizes first, then ratios, not rounded.
    sizes = (32,) if fpn else (32, 64, 128, 256, 512)
    theirs = {}
    for i, (size, ratio) in enumerate((s, r) for s in sizes for r in (0.5, 1.0, 2.0)):
        width = math.sqrt(size**2 / ratio)
        theirs[(round(width, 2), round(width * ratio, 2))] = i
    cells = model.rpn.anchor_generator._cell_anchors(0)
    assert len(cells) == len(theirs)
    for mine, (x1, y1, x2, y2) in enumerate(cells.tolist()):
        other = theirs[(round(x2 - x1, 2), round(y2 - y1, 2))]
        torch.testing.assert_close(our_logits[0, mine], logits[other], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            our_deltas[0].unflatten(0, (-1, 4))[mine], deltas[other], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(("fpn", "agnostic"), [(True, False), (False, True)])
def test_box_head_and_classes(fpn, agnostic):
    state = checkpoint(fpn=fpn, agnostic=agnostic)
    model = load_detectron2(state)
    peer = Detectron2(state, "", True)
    pooled = torch.randn(2, 256, 7, 7) if fpn else torch.randn(2, 1024, 14, 14).relu()

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    with torch.no_grad():
        if fpn:
            hidden = linear("roi_heads.box_head.fc1", pooled.flatten(1)).relu()
            hidden = linear("roi_heads.box_head.fc2", hidden).relu()
        else:
            hidden = peer.stage("roi_heads.res5", 5, pooled).mean(dim=(2, 3))
        scores = linear("roi_heads.box_predictor.cls_score", hidden)
        deltas = linear("roi_heads.box_predictor.bbox_pred", hidden)
        our_scores, our_deltas = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(our_scores[:, 0], scores[:, CLASSES], **close)  # the background
    torch.testing.assert_close(our_scores[:, 1:], scores[:, :CLASSES], **close)
    torch.testing.assert_close(our_deltas if agnostic else our_deltas[:, 4:], deltas, **close)


def test_detects():
    def tame(state):
        # The features of random weights are large; boxes should stay about where they start.
        for name in state:
            if "anchor_deltas" in name or "bbox_pred" in name or "cls_score" in name:
                state[name] = state[name] * 1e-3
        return load_detectron2(state, box_score_thresh=0.0, rpn_post_nms_top_n_test=20, **SMALL)

    image = torch.rand(3, 64, 80)
    with torch.no_grad():
        (found,) = tame(checkpoint(fpn=True))([image])
    assert len(found["boxes"]) > 0
    assert found["boxes"].isfinite().all()
    assert set(found["labels"].tolist()) == set(range(1, CLASSES + 1))


def test_pixel_statistics_of_the_file_count():
    state = checkpoint(fpn=True, rpn=False)
    state["pixel_mean"] = torch.tensor([10.0, 20.0, 30.0])
    state["pixel_std"] = torch.tensor([2.0, 3.0, 4.0])
    model = load_detectron2(state)
    assert model.transform.image_mean == [30 / 255, 20 / 255, 10 / 255]
    assert model.transform.image_std == [4 / 255, 3 / 255, 2 / 255]
    # Scaled pixels are not those of the caffe networks.
    assert model.backbone.body["layer2"][0].conv2.stride == (2, 2)


@pytest.mark.parametrize("nested", [True, False])
def test_file(tmp_path, nested):
    state = dict(checkpoint(fpn=False))
    path = tmp_path / "model_final.pth"
    torch.save({"model": state, "iteration": 7} if nested else state, path)
    model = load_detectron2(path)
    expected = convert_detectron2(state)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_of_arrays(tmp_path, protocol):
    path = tmp_path / "arrays.pkl"
    small = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "big-endian, by columns": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
        "nested": [(np.float64(2.5), np.array(7))],
    }
    path.write_bytes(pickle.dumps(collections.OrderedDict(small), protocol))
    found = read_arrays(path)
    assert found["nested"][0][0] == 2.5
    assert found["nested"][0][1] == 7
    for name in ("half", "big-endian, by columns"):
        assert found[name].dtype == small[name].dtype
        np.testing.assert_array_equal(found[name], small[name])


def test_files_of_the_model_zoo(tmp_path):
    state = checkpoint(fpn=False)
    arrays = {name: np.asarray(value) for name, value in state.items()}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Model Zoo"}, 2))
    model = load_detectron2(path)
    expected = convert_detectron2(state)
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)


@pytest.mark.parametrize("values", [np.array([print]), np.zeros(2, "i4,i4"), np.array(["text"])])
def test_pickles_of_other_arrays_are_refused(tmp_path, values):
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": {"weight": values}}))
    with pytest.raises(UserError, match=r"model_final\.pkl is"):
        load_detectron2(path)


def test_bad_checkpoints(tmp_path):
    pickled = tmp_path / "model_final_b275ba.pkl"
    pickled.write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match="is not a pickle of arrays, or is damaged"):
        load_detectron2(pickled)
    pickled.write_bytes(pickle.dumps({"model": print}))
    with pytest.raises(UserError, match=r"is a pickle, which runs code .* asks for \S*\.print"):
        load_detectron2(pickled)
    with pytest.raises(UserError, match=r"cannot read .*missing\.pth"):
        load_detectron2(tmp_path / "missing.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(UserError, match="is not a checkpoint, or is damaged"):
        load_detectron2(tmp_path / "text.pth")
    with pytest.raises(UserError, match="holds no state dict of tensors"):
        load_detectron2({"model": {"step": 3}})
    with pytest.raises(UserError, match=r"has no roi_heads\.box_predictor\.cls_score"):
        load_detectron2({"head.weight": torch.zeros(2)})
    incomplete = checkpoint(fpn=True)
    del incomplete["backbone.bottom_up.res3.1.conv2.weight"]
    with pytest.raises(UserError, match=r"no Faster or Fast.*layer2\.1\.conv2\.weight"):
        load_detectron2(incomplete)
    other = checkpoint(fpn=True)
    other.conv("roi_heads.mask_head.mask_fcn1", 256, 256, 3, norm=False)
    with pytest.raises(UserError, match=r"roi_heads\.mask_head\.mask_fcn1"):
        load_detectron2(other)


def test_bad_arguments():
    with pytest.raises(ValueError, match="'BGR' or 'RGB', got 'GBR'"):
        load_detectron2({}, input_format="GBR")
    with pytest.raises(ValueError, match="pixel_mean must have one number for each of three"):
        load_detectron2(checkpoint(fpn=False), pixel_mean=(1.0,))


def test_anchors_have_detectron2s_strides():
    generator = load_detectron2(checkpoint(fpn=True)).rpn.anchor_generator
    assert generator.strides == (4, 8, 16, 32, 64)
    generator = load_detectron2(checkpoint(fpn=False)).rpn.anchor_generator
    assert generator.strides == (16,)


def test_anchors_of_fractions_of_a_pixel():
    exact = AnchorGenerator(((32,),), ((0.5,),), whole_pixels=False)
    width = math.sqrt(32 * 32 / 0.5)
    torch.testing.assert_close(
        exact._cell_anchors(0), torch.tensor([[-width, -width / 2, width, width / 2]]) / 2
    )
