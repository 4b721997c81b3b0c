"""Polygons and run lengths as masks, compared with pycocotools."""

from __future__ import annotations

import numpy as np
import pytest

from rcnn_ext.data import Segmentation


def blob(rng, height, width):
    """A mask with a few filled rectangles, which may touch every side."""
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(3):
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, height), x : x + rng.integers(1, width)] = True
    return mask


def box_of(mask):
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_agree_with_pycocotools(seed):
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    mask = blob(rng, 23, 31) if seed else np.ones((23, 31), dtype=bool)
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    found = Segmentation.parse({"counts": encoded["counts"].decode(), "size": [23, 31]})
    for one in (found, Segmentation.from_mask(mask), Segmentation.from_bytes(found.to_bytes())):
        np.testing.assert_array_equal(one.mask(31, 23), mask)
        np.testing.assert_array_equal(one.runs, found.runs)
        assert one.area() == mask.sum()
        assert one.box() == box_of(mask)


def test_polygons_fill_the_pixels_whose_centers_they_hold():
    rectangle = Segmentation.parse([[10, 5, 30, 5, 30, 25, 10, 25]])
    expected = np.zeros((40, 60), dtype=bool)
    expected[5:25, 10:30] = True
    np.testing.assert_array_equal(rectangle.mask(60, 40), expected)
    assert (rectangle.box(), rectangle.area()) == ((10, 5, 30, 25), 400)
    # The right half is outside of the picture.
    np.testing.assert_array_equal(rectangle.mask(20, 40), expected[:, :20])
    two = Segmentation.parse([[10, 5, 20, 5, 20, 15], [40, 20, 50, 20, 50, 30]])
    assert two.box() == (10, 5, 50, 30)
    assert two.mask(60, 40).sum() == pytest.approx(two.area(), abs=10)
    packed = Segmentation.from_bytes(two.to_bytes())
    np.testing.assert_array_equal(packed.mask(60, 40), two.mask(60, 40))


@pytest.mark.parametrize("seed", range(4))
def test_polygons_agree_with_pycocotools_but_for_their_edges(seed):
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.random(12)) * 2 * np.pi
    radii = rng.uniform(10, 30, 12)
    points = np.stack([40 + radii * np.cos(angles), 35 + radii * np.sin(angles)], axis=1)
    ours = Segmentation.parse([points.ravel().tolist()]).mask(80, 70)
    runs = coco.frPyObjects([points.ravel().tolist()], 70, 80)
    theirs = coco.decode(runs)[:, :, 0].astype(bool)
    edge = np.linalg.norm(points - np.roll(points, -1, axis=0), axis=1).sum()
    assert (ours != theirs).sum() < edge


@pytest.mark.parametrize("empty", [None, [], {}, [[]], {"counts": [6], "size": [2, 3]}])
def test_nothing_is_none(empty):
    assert Segmentation.parse(empty) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "neither"),
        ("text", "neither"),
        ([[1, 2, 3]], "3 numbers"),
        ([[1, 2, "3", 4]], "no list of numbers"),
        ([[1, 2, float("nan"), 4]], "not finite"),
        ([[1, 2, 10**400, 4]], "beyond all bounds"),
        ({"counts": [1, 2]}, "without a 'size'"),
        ({"counts": [1, 2], "size": [2, 3]}, "3 pixels together for a mask of 2x3"),
        ({"counts": [-1, 7], "size": [2, 3]}, "neither a list of run lengths"),
        ({"counts": "ü", "size": [2, 3]}, "characters"),
        ({"counts": "o", "size": [2, 3]}, "middle of a number"),
    ],
)
def test_what_is_no_segmentation_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        Segmentation.parse(value)


def test_masks_of_another_size_are_refused():
    with pytest.raises(ValueError, match="the mask is 3x2 pixels, the image 4x2"):
        Segmentation.from_mask(np.ones((2, 3), dtype=bool)).mask(4, 2)
