"""Checkpoints of detectron2, by state dicts of its names and shapes.

detectron2 itself is no dependency: what its layers compute is written out here, from its
documentation.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from rcnn_ext import models
from rcnn_ext.models import load_detectron2
from rcnn_ext.models.anchors import AnchorGenerator
from tests.helpers.detectron2_checkpoints import (
    CLASSES,
    Detectron2,
    checkpoint,
)

SMALL = {"min_size": 64, "max_size": 64}


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
