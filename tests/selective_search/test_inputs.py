"""What a search accepts, and how it refuses the rest."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.selective_search import SearchSettings, compat, find_regions, selective_search


def test_gray_is_three_equal_channels(image: np.ndarray) -> None:
    gray = image[:, :, 0]
    expected = selective_search(np.stack([gray] * 3, axis=2))
    np.testing.assert_array_equal(selective_search(gray), expected)
    np.testing.assert_array_equal(selective_search(gray[:, :, None]), expected)
    np.testing.assert_array_equal(selective_search(Image.fromarray(gray)), expected)


def test_alpha_is_left_out(image: np.ndarray) -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (*image.shape[:2], 1), np.uint8)
    rgba = np.concatenate([image, alpha], axis=2)
    np.testing.assert_array_equal(selective_search(rgba), selective_search(image))


def test_16_bits_and_floats_mean_what_8_bits_do(image: np.ndarray) -> None:
    expected = selective_search(image, scale=50)
    assert len(expected) > 50
    for same in (image.astype(np.uint16) * 257, image / 255.0):
        np.testing.assert_array_equal(selective_search(same, scale=50), expected)
    rounded = selective_search((image / 255.0).astype(np.float32), scale=50)
    common = {tuple(box) for box in rounded} & {tuple(box) for box in expected}
    assert len(common) >= 0.8 * len({tuple(box) for box in expected})


def test_layout_does_not_matter(image: np.ndarray) -> None:
    expected = selective_search(image)
    wide = np.repeat(image, 2, axis=1)
    for same in (np.asfortranarray(image), wide[:, ::2], image[::-1].copy()[::-1]):
        before = same.copy()
        np.testing.assert_array_equal(selective_search(same), expected)
        np.testing.assert_array_equal(same, before)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3), (3, 4000), (4000, 3)])
@pytest.mark.parametrize("constant", [True, False])
def test_thin_and_constant_images(shape: tuple[int, int], constant: bool) -> None:
    random = np.random.default_rng(1)
    image = np.full((*shape, 3), 9, np.uint8)
    if not constant:
        image = random.integers(0, 256, image.shape, np.uint8)
    regions = find_regions(image)
    last = [shape[1] - 1, shape[0] - 1] * 2
    assert (regions.boxes >= 0).all()
    assert (regions.boxes <= last).all()
    assert (regions.boxes[:, :2] <= regions.boxes[:, 2:]).all()
    if constant:
        assert regions.boxes.tolist() == [[0, 0, shape[1] - 1, shape[0] - 1]]
        assert regions.sizes.tolist() == [shape[0] * shape[1]]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (
            np.zeros((4, 5, 2), np.uint8),
            ValueError,
            r"image: expected the shape .* got \(4, 5, 2\)",
        ),
        (np.zeros((3, 40, 50), np.uint8), ValueError, r"got \(3, 40, 50\)"),
        (np.zeros(7, np.uint8), ValueError, r"got \(7,\)"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, "at least one pixel"),
        (np.zeros((5, 0), np.uint8), ValueError, "at least one pixel"),
        (np.zeros((4, 5, 3), np.int64), TypeError, "expected uint8, uint16 or floats .* got int64"),
        (np.zeros((4, 5, 3), bool), TypeError, "got bool"),
        (np.zeros((4, 5, 3), complex), TypeError, "got complex128"),
        (np.array([["a", "b"]]), TypeError, "got <U1"),
        (np.full((4, 5, 3), math.nan), ValueError, r"floats in \[0, 1\], got values from nan"),
        (np.full((4, 5, 3), math.inf), ValueError, "from inf to inf"),
        (np.full((4, 5, 3), 200.0), ValueError, "from 200 to 200"),
        (np.full((4, 5, 3), -0.1), ValueError, "from -0.1 to -0.1"),
        (None, ValueError, r"image: expected the shape .* got \(\)"),
    ],
)
def test_bad_images_are_refused(bad: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        selective_search(bad)


def test_one_nan_pixel_is_refused(image: np.ndarray) -> None:
    values = image / 255.0
    values[7, 9, 1] = math.nan
    with pytest.raises(ValueError, match="nan"):
        selective_search(values)
    with pytest.raises(ValueError, match="im_orig: expected finite values"):
        compat.selective_search(values)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": -1}, ValueError, "scale: expected a finite number of at least 0, got -1"),
        ({"scale": math.nan}, ValueError, "scale: .* got nan"),
        ({"scale": math.inf}, ValueError, "scale: .* got inf"),
        ({"scale": (100, 200)}, ValueError, "scale: expected one number for mode 'single'"),
        ({"scale": ()}, ValueError, "scale: expected one number"),
        ({"scale": ("a",)}, TypeError, "scale: expected a number, got 'a'"),
        ({"sigma": -0.1}, ValueError, "sigma: expected a finite number from 0 to 1000, got -0.1"),
        ({"sigma": 1e9}, ValueError, "sigma: .* got 1e\\+09|sigma: .* got 1000000000.0"),
        ({"min_size": -3}, ValueError, "min_size: .* got -3"),
        ({"mode": "best"}, ValueError, "mode: expected one of single, fast, quality, got 'best'"),
        ({"backend": "gpu"}, ValueError, "backend: expected one of native, package, opencv"),
        ({"seed": -1}, ValueError, "seed: expected a whole number of at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused(
    image: np.ndarray, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        selective_search(image, **arguments)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.zeros((4, 5), np.uint8), ValueError, r"im_orig: expected the shape \(H, W, 3\)"),
        (np.zeros((4, 5, 4), np.uint8), ValueError, r"got \(4, 5, 4\)"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, "at least one pixel"),
        (np.full((4, 5, 3), -1), ValueError, "at least 0, got values from -1"),
        (np.zeros((4, 5, 3), complex), TypeError, "im_orig: expected integers, floats or bool"),
    ],
)
def test_compat_refuses_bad_images(bad: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compat.selective_search(bad)


def test_settings_are_filled_from_the_mode() -> None:
    assert SearchSettings().resolved() == {
        "backend": "native",
        "mode": "single",
        "scales": (500.0,),
        "sigma": 0.9,
        "min_size": 10,
        "seed": 0,
    }
    fast = SearchSettings(mode="fast")
    assert (fast.scales, fast.smoothing_sigma) == ((50.0, 100.0), 0.8)
    assert fast.resolved()["min_size"] is None
    assert fast.min_size_at(100.0) == 100
    assert SearchSettings(mode="quality", scale=80, min_size=5).min_size_at(80.0) == 5


def test_equal_searches_resolve_alike() -> None:
    said = SearchSettings("native", "single", [500], np.float32(0.5), 9.5, 0)
    assert said == SearchSettings(scale=(500.0,), sigma=0.5, min_size=10)
    assert said.resolved() == SearchSettings(scale=500, sigma=0.5).resolved()


def test_settings_go_through_json() -> None:
    settings = SearchSettings(mode="quality", scale=(80, 90), seed=3)
    values = json.loads(json.dumps(dataclasses.asdict(settings)))
    assert SearchSettings(**values) == settings
    assert SearchSettings(**values).resolved() == settings.resolved()
