from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from rcnn_ext import models
from rcnn_ext.models import AnchorGenerator

SIZES = ((32,), (64, 90), (128, 17))
RATIOS = ((0.5, 1.0, 2.0), (1.0,), (0.3, 3.0))


def batch(height: int, width: int, count: int = 2, dtype: torch.dtype = torch.float32) -> ImageList:
    return ImageList(torch.zeros(count, 3, height, width, dtype=dtype), [(height, width)] * count)


def maps(height: int, width: int, strides: tuple[int, ...] = (4, 8, 16), **kwargs):
    return [torch.zeros(2, 1, -(-height // s), -(-width // s), **kwargs) for s in strides]


def test_hand_computed_case():
    generator = AnchorGenerator(((4,),), ((1.0,),))
    (anchors, _) = generator(batch(16, 24), [torch.zeros(2, 1, 2, 3)])
    # Stride 8: centers at 0, 8, 16 in x and 0, 8 in y; row by row.
    expected = [[x - 2, y - 2, x + 2, y + 2] for y in (0, 8) for x in (0, 8, 16)]
    assert anchors.tolist() == expected


def test_ratio_is_height_over_width_at_equal_area():
    anchors = AnchorGenerator(((32,),), ((0.25, 4.0),))(batch(8, 8, 1), [torch.zeros(1, 1, 1, 1)])
    assert anchors[0].tolist() == [[-32, -8, 32, 8], [-8, -32, 8, 32]]


@pytest.mark.parametrize("size", [(128, 160), (100, 131)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torchvision(size, dtype):
    images, features = batch(*size, dtype=dtype), maps(*size, dtype=dtype)
    expected = TorchvisionAnchors(SIZES, RATIOS)(images, features)
    actual = AnchorGenerator(SIZES, RATIOS, strides="floor")(images, features)
    assert len(actual) == 2
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, theirs)


# Strides of a pyramid, the last of which halves the map before it and rounds up.
PYRAMID = (4, 8, 16, 32, 64)


def last_centers(anchors: torch.Tensor, features: list[torch.Tensor]) -> list[list[float]]:
    """Return the largest center (x, y) of each level's anchors, one per position."""
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    levels = centers.split([f.shape[2] * f.shape[3] for f in features])
    return [level.amax(dim=0).tolist() for level in levels]


@pytest.mark.parametrize("strides", [None, PYRAMID, tuple(map(float, PYRAMID))])
@pytest.mark.parametrize(
    "size", [(800, 1344), (800, 1088), (736, 992), (1344, 800), (96, 96), (1024, 64), (37, 501)]
)
def test_anchors_lie_where_their_cells_are(size, strides):
    features = maps(*size, strides=PYRAMID)
    generator = AnchorGenerator(tuple((2 * s,) for s in PYRAMID), (1.0,), strides=strides)
    (anchors,) = generator(batch(*size, count=1), features)
    expected = [
        [s * (f.shape[3] - 1), s * (f.shape[2] - 1)] for s, f in zip(PYRAMID, features, strict=True)
    ]
    assert last_centers(anchors, features) == expected


def test_torchvisions_strides_are_rounded_down():
    generator = AnchorGenerator((128,), (1.0,), strides="floor")
    features = [torch.zeros(1, 1, 13, 21)]
    (anchors,) = generator(batch(800, 1344, count=1), features)
    assert last_centers(anchors, features) == [[64 * 20, 61 * 12]]


@pytest.mark.parametrize(("stride", "cells"), [(14, 16), (20, 9), (10.5, 12)])
def test_strides_that_are_no_power_of_two(stride, cells):
    # Found where they divide the image, and always where they are given.
    side = int(stride * cells)
    features = [torch.zeros(1, 1, cells, cells)]
    given = AnchorGenerator((8,), (1.0,), strides=[stride])
    assert last_centers(given(batch(side, side, 1), features)[0], features) == [
        [stride * (cells - 1)] * 2
    ]
    if stride == int(stride):
        found = AnchorGenerator((8,), (1.0,))
        assert torch.equal(
            found(batch(side, side, 1), features)[0], given(batch(side, side, 1), features)[0]
        )


def test_builders_use_exact_strides_and_torchvisions_presets_its_own():
    options = {"num_classes": 2, "weights_backbone": None}
    own = models.faster_rcnn("resnet18", num_classes=2)
    like = models.faster_rcnn("resnet18", num_classes=2, conventions="torchvision")
    preset = models.fasterrcnn_resnet50_fpn(**options)
    mobile = models.fasterrcnn_mobilenet_v3_large_320_fpn(**options)
    assert own.rpn.anchor_generator.strides == PYRAMID
    assert [m.rpn.anchor_generator.strides for m in (like, preset, mobile)] == ["floor"] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_get_exact_anchors(dtype):
    # bfloat16 cannot represent all of these coordinates.
    exact = AnchorGenerator(SIZES, RATIOS)(batch(512, 512), maps(512, 512))
    half = AnchorGenerator(SIZES, RATIOS)(batch(512, 512), maps(512, 512, dtype=dtype))
    assert half[0].dtype == torch.float32
    assert torch.equal(half[0], exact[0])


def test_plain_numbers():
    short = AnchorGenerator((32, 64, 128), (0.5, 1.0))
    long = AnchorGenerator(((32,), (64,), (128,)), ((0.5, 1.0),) * 3)
    assert short.num_anchors_per_location() == [2, 2, 2]
    images, features = batch(64, 64), maps(64, 64)
    assert torch.equal(short(images, features)[0], long(images, features)[0])


def test_cache():
    generator = AnchorGenerator(SIZES, RATIOS)
    first = generator(batch(64, 64), maps(64, 64))[0]
    assert generator(batch(64, 64, 3), maps(64, 64))[2] is first
    assert generator(batch(64, 96), maps(64, 96))[0].shape != first.shape
    # Equal grids at another stride are other anchors.
    assert not torch.equal(generator(batch(128, 128), maps(64, 64))[0], first)
    assert generator(batch(64, 64), maps(64, 64, dtype=torch.float64))[0].dtype == torch.float64


def test_cache_is_bounded_and_not_copied():
    generator = AnchorGenerator((8,), (1.0,))
    for rows in range(1, 60):
        generator(batch(rows, 8), [torch.zeros(1, 1, rows, 1)])
    assert len(generator._cache) < 30
    assert len(copy.deepcopy(generator)._cache) == 0
    restored = pickle.loads(pickle.dumps(generator))
    assert len(restored._cache) == 0
    assert restored(batch(8, 8, 1), [torch.zeros(1, 1, 1, 1)])[0].tolist() == [[-4, -4, 4, 4]]


def test_anchors_made_in_inference_mode_serve_training():
    generator = AnchorGenerator((8,), (1.0,))
    features = [torch.zeros(1, 1, 2, 2)]
    with torch.inference_mode():
        generator(batch(8, 8, 1), features)
    weight = torch.ones(4, 4, requires_grad=True)
    (generator(batch(8, 8, 1), features)[0] * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("sizes", "ratios", "message"),
    [
        ((), (1.0,), "must not be empty"),
        (((32,), (64,)), ((1.0,),), "2 feature maps, aspect ratios for 1"),
        (((32, -1),), ((1.0,),), "must be positive"),
        (((),), ((1.0,),), "must be positive"),
    ],
)
def test_bad_arguments(sizes, ratios, message):
    with pytest.raises(ValueError, match=message):
        AnchorGenerator(sizes, ratios)


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        ((4,), "for 3 feature maps, strides for 1"),
        ((4, 0, 8), "must be positive"),
        ((4, float("inf"), 8), "must be positive"),
        ("ceil", "'floor' or None, got 'ceil'"),
    ],
)
def test_bad_strides(strides, message):
    with pytest.raises(ValueError, match=message):
        AnchorGenerator(SIZES, RATIOS, strides=strides)


def test_wrong_number_of_feature_maps():
    with pytest.raises(ValueError, match="for 3 feature maps, the backbone gives 2"):
        AnchorGenerator(SIZES, RATIOS)(batch(64, 64), maps(64, 64)[:2])
