"""The native search against the `selectivesearch` package. benchmarks/selective_search.py takes
all photographs; here are a few pieces of them and made images."""

from __future__ import annotations

import numpy as np
import pytest

from rcnn_ext.config.selective_search import SearchSettings
from rcnn_ext.selective_search import compat, find_regions, selective_search
from tests.helpers.made_images import PackageSearch, smooth_noise


def assert_same(package: PackageSearch, image: np.ndarray, *parameters: float) -> None:
    expected_image, expected = package(image, *parameters)
    got_image, got = compat.selective_search(image, *parameters)
    assert got_image.dtype == expected_image.dtype
    np.testing.assert_array_equal(got_image, expected_image)
    assert got == expected  # rects, sizes and label lists, in order


@pytest.mark.parametrize("parameters", [(500, 0.9, 10), (100, 0.5, 40), (1.0, 0.8, 50), (30, 0, 0)])
def test_same_regions_on_made_images(package: PackageSearch, parameters: tuple[float, ...]) -> None:
    for seed, shape in enumerate([(60, 80), (33, 97), (90, 20)]):
        assert_same(package, smooth_noise(seed, *shape), *parameters)


def test_same_regions_on_photographs(package: PackageSearch, coco_images: list[np.ndarray]) -> None:
    for image in coco_images:
        assert_same(package, image, 500, 0.9, 10)


def test_defaults_are_the_packages(package: PackageSearch, image: np.ndarray) -> None:
    expected_image, expected = package(image)
    got_image, got = compat.selective_search(image)
    np.testing.assert_array_equal(got_image, expected_image)
    assert got == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 2), (3, 200)])
def test_same_regions_on_thin_images(package: PackageSearch, shape: tuple[int, int]) -> None:
    random = np.random.default_rng(sum(shape))
    image = random.integers(0, 256, (*shape, 3), np.uint8)
    assert_same(package, image, 20, 0.9, 2)
    assert_same(package, image, 500, 3.0, 10)  # the kernel is longer than the image


def test_same_regions_where_all_costs_are_equal(package: PackageSearch) -> None:
    """Ties in cost and in similarity decide everything here."""
    assert_same(package, np.full((12, 17, 3), 77, np.uint8), 500, 0.9, 10)
    checks = np.indices((24, 36)).sum(axis=0) // 4 % 2 * 200
    assert_same(package, np.repeat(checks[:, :, None], 3, axis=2).astype(np.uint8), 1, 0, 4)
    tiles = np.kron(np.arange(24).reshape(4, 6) % 5 * 50, np.ones((9, 9), int))
    assert_same(package, np.repeat(tiles[:, :, None], 3, axis=2).astype(np.uint8), 50, 0.5, 20)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_same_regions_of_other_dtypes(
    package: PackageSearch, image: np.ndarray, dtype: type
) -> None:
    scaled = image / 255.0
    if not np.issubdtype(dtype, np.floating):
        scaled = scaled * np.iinfo(dtype).max
    assert_same(package, scaled.astype(dtype), 300, 0.9, 10)


def test_fractional_min_size(package: PackageSearch, image: np.ndarray) -> None:
    assert_same(package, image, 100.5, 0.8, 20)


def test_backends_agree(package: PackageSearch, image: np.ndarray) -> None:
    for prepared in (image, image[:, :, 0], image[:, ::2], image / 255.0):
        native = find_regions(prepared, SearchSettings(backend="native"))
        other = find_regions(prepared, SearchSettings(backend="package"))
        np.testing.assert_array_equal(native.boxes, other.boxes)
        np.testing.assert_array_equal(native.sizes, other.sizes)


def test_boxes_are_the_packages_rects(package: PackageSearch, image: np.ndarray) -> None:
    _, expected = package(image, 500, 0.9, 10)
    rects = np.array([region["rect"] for region in expected], float)
    boxes = selective_search(image, 500, 0.9, 10)
    assert boxes.dtype == np.float32
    np.testing.assert_array_equal(boxes[:, :2], rects[:, :2])
    np.testing.assert_array_equal(boxes[:, 2:] - boxes[:, :2], rects[:, 2:])
