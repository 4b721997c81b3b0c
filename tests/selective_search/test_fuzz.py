"""Any image and any parameters: a result that holds together, and is the package's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rcnn_ext.selective_search import SearchSettings, compat, find_regions, native
from rcnn_ext.selective_search.images import UNIT, gaussian_weights
from tests.helpers.made_images import smooth_noise

# Few values give many ties, in costs and similarities; all of them give none.
IMAGES = st.one_of(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)),
        elements=st.sampled_from(values),
    )
    for values in ([0, 255], [10, 12, 200], list(range(256)))
)
SCALES = st.one_of(st.just(0.0), st.floats(1e-3, 1e6))
SIGMAS = st.one_of(st.just(0.0), st.floats(0.01, 12.0))
SIZES = st.integers(0, 700)


@settings(deadline=None, derandomize=True)
@given(image=IMAGES, scale=SCALES, sigma=SIGMAS, min_size=SIZES)
def test_regions_hold_together(
    image: np.ndarray, scale: float, sigma: float, min_size: int
) -> None:
    labeled, regions = compat.selective_search(image, scale, sigma, min_size)
    labels = labeled[:, :, 3].astype(int)
    np.testing.assert_array_equal(labeled[:, :, :3], image)
    # Labels count up in the order of their first pixels.
    _, first = np.unique(labels.ravel(), return_index=True)
    assert (np.diff(first) > 0).all()
    assert labels.max() == len(first) - 1
    segments = len(first)
    sizes = np.bincount(labels.ravel())
    if segments > 1:
        assert sizes.min() >= min_size
    merged = set()
    for index, region in enumerate(regions):
        members = [int(label) for label in region["labels"]]
        assert len(set(members)) == len(members)
        assert region["size"] == sizes[members].sum()
        ys, xs = np.nonzero(np.isin(labels, members))
        x, y, width, height = region["rect"]
        assert (x, y, x + width, y + height) == (xs.min(), ys.min(), xs.max(), ys.max())
        if index < segments:
            assert members == [index]
        merged.add(frozenset(members))
    # No union comes twice, and none overlaps another without containing it.
    assert len(merged) == len(regions)
    for one in merged:
        assert all(one <= other or other <= one or not one & other for other in merged)


def labels_of_segments(
    image: np.ndarray, scale: float, sigma: float, min_size: int, tile_pixels: int | None
) -> np.ndarray:
    return native.load().felzenszwalb(
        image, UNIT, gaussian_weights(sigma), scale, min_size, tile_pixels
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    image=IMAGES,
    scale=SCALES,
    sigma=SIGMAS,
    min_size=st.integers(0, 40),
    tile_pixels=st.integers(1, 100),
)
def test_tiles_do_not_show(
    image: np.ndarray, scale: float, sigma: float, min_size: int, tile_pixels: int
) -> None:
    """Large images are segmented tile by tile; the tiles of these are a few pixels."""
    np.testing.assert_array_equal(
        labels_of_segments(image, scale, sigma, min_size, tile_pixels),
        labels_of_segments(image, scale, sigma, min_size, image.size),
    )


@pytest.mark.parametrize("scale", [5.0, 60.0, 700.0])
@pytest.mark.parametrize("min_size", [0, 20, 300])
def test_tiles_of_a_smooth_image_do_not_show(scale: float, min_size: int) -> None:
    image = smooth_noise(3, 130, 210)
    whole = labels_of_segments(image, scale, 0.8, min_size, image.size)
    for tile_pixels in (64, 900, 5000):
        tiled = labels_of_segments(image, scale, 0.8, min_size, tile_pixels)
        np.testing.assert_array_equal(tiled, whole)


@pytest.mark.parametrize("shape", [(1000, 1600), (3, 600_000), (600_000, 3), (1, 1_600_000)])
def test_large_images_are_cut_without_trace(shape: tuple[int, int]) -> None:
    image = smooth_noise(5, *shape)
    whole = labels_of_segments(image, 200.0, 0.8, 20, image.size)
    assert whole.max() > 100
    np.testing.assert_array_equal(labels_of_segments(image, 200.0, 0.8, 20, None), whole)


def test_tile_pixels_are_checked() -> None:
    with pytest.raises(ValueError, match="tile_pixels: expected at least 1"):
        labels_of_segments(smooth_noise(0, 8, 8), 5.0, 0.8, 0, 0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(image=IMAGES, scale=SCALES, sigma=st.floats(0.3, 3.0), min_size=SIZES)
def test_diversified_regions_hold_together(
    image: np.ndarray, scale: float, sigma: float, min_size: int
) -> None:
    for mode in ("fast", "quality"):
        found = find_regions(
            image, SearchSettings(mode=mode, scale=scale, sigma=sigma, min_size=min_size)
        )
        height, width = image.shape[:2]
        boxes = {tuple(box) for box in found.boxes.tolist()}
        assert len(boxes) == len(found)
        assert (0, 0, width - 1, height - 1) in boxes
        assert (found.boxes >= 0).all()
        assert (found.boxes < [width, height, width, height]).all()
        sides = found.boxes[:, 2:].astype(int) - found.boxes[:, :2] + 1
        assert (found.sizes >= 1).all()
        assert (found.sizes <= sides.prod(axis=1)).all()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_same_regions_as_the_package(package) -> None:
    # Not with fixtures of a function: hypothesis would share one of them among its examples.
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(image=IMAGES, scale=SCALES, sigma=st.floats(0.2, 4.0), min_size=st.integers(0, 60))
    def compare(image: np.ndarray, scale: float, sigma: float, min_size: int) -> None:
        expected_image, expected = package(image, scale, sigma, min_size)
        got_image, got = compat.selective_search(image, scale, sigma, min_size)
        np.testing.assert_array_equal(got_image, expected_image)
        assert got == expected

    compare()
