"""Modes fast and quality: against a plain NumPy version, and what holds for every image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rcnn_ext import _extension
from rcnn_ext.selective_search import SearchSettings, find_regions, native, selective_search
from rcnn_ext.selective_search.images import UNIT, gaussian_weights
from tests.helpers.made_images import smooth_noise

MODES = ("fast", "quality")


def settings_of(mode: str, seed: int = 0) -> SearchSettings:
    """Scales for images of 60 x 80."""
    return SearchSettings(mode=mode, scale=(20, 60), min_size=8, seed=seed)


def grouping(image: np.ndarray, space: str, measures: str) -> tuple[np.ndarray, np.ndarray]:
    module = native.load()
    names = {"C": "COLOR", "T": "TEXTURE", "S": "SIZE", "F": "FILL"}
    ((boxes, sizes),) = module.diversified_search(
        image,
        factor=UNIT,
        spaces=[space],
        weights=gaussian_weights(0.8),
        texture_weights=gaussian_weights(1.0),
        scales=[(30.0, 20)],
        strategies=[sum(getattr(module, names[letter]) for letter in measures)],
    )
    return boxes, sizes


class PlainSearch:
    """The same search without any cleverness, on an image in hue, saturation and value."""

    def __init__(self, rgb: np.ndarray, measures: str) -> None:
        color = pytest.importorskip("skimage.color")
        ndimage = pytest.importorskip("scipy.ndimage")
        self.measures = measures
        self.area = rgb.shape[0] * rgb.shape[1]
        planes = color.rgb2hsv(rgb).transpose(2, 0, 1) * 255.0
        labels = native.load().felzenszwalb(
            np.ascontiguousarray(planes.transpose(1, 2, 0)), UNIT, gaussian_weights(0.8), 30.0, 20
        )
        bins = np.floor(planes * 25 / 256)
        slopes = []
        for plane in planes:
            smooth = np.pad(ndimage.gaussian_filter(plane, 1.0, mode="reflect"), 1, "edge")
            dx = (smooth[1:-1, 2:] - smooth[1:-1, :-2]) / 2
            dy = (smooth[2:, 1:-1] - smooth[:-2, 1:-1]) / 2
            for angle in np.arange(8) * np.pi / 4:
                slope = np.maximum(np.cos(angle) * dx + np.sin(angle) * dy, 0)
                slopes.append(np.minimum(np.floor(np.sqrt(slope * 100 / 101.8)), 9))
        self.regions = []
        for label in range(labels.max() + 1):
            inside = labels == label
            ys, xs = np.nonzero(inside)
            colors = [np.bincount(b[inside].astype(int), minlength=25) for b in bins]
            textures = [np.bincount(s[inside].astype(int), minlength=10) for s in slopes]
            self.regions.append(
                {
                    "box": (xs.min(), ys.min(), xs.max(), ys.max()),
                    "size": len(xs),
                    "C": np.concatenate(colors) / len(xs) / 3,
                    "T": np.concatenate(textures) / len(xs) / 24,
                }
            )
        pairs = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
        meeting = {
            (min(a, b), max(a, b))
            for one, other in pairs
            for a, b in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True)
            if a != b
        }
        self.neighbors = sorted(meeting)  # in order of age

    def similarity(self, a: int, b: int) -> float:
        x, y = self.regions[a], self.regions[b]
        size = x["size"] + y["size"]
        box = self.enclose(x["box"], y["box"])
        parts = {
            "C": np.minimum(x["C"], y["C"]).sum(),
            "T": np.minimum(x["T"], y["T"]).sum(),
            "S": 1 - size / self.area,
            "F": 1 - ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) - size) / self.area,
        }
        return sum(parts[letter] for letter in self.measures)

    @staticmethod
    def enclose(a: tuple, b: tuple) -> tuple:
        return (*np.minimum(a[:2], b[:2]), *np.maximum(a[2:], b[2:]))

    def run(self) -> None:
        while self.neighbors:
            scores = [self.similarity(*pair) for pair in self.neighbors]
            # The youngest of equals.
            best = max(range(len(scores)), key=lambda i: (scores[i], i))
            a, b = self.neighbors[best]
            x, y = self.regions[a], self.regions[b]
            size = x["size"] + y["size"]
            united = {"box": self.enclose(x["box"], y["box"]), "size": size}
            for part in "CT":
                united[part] = (x[part] * x["size"] + y[part] * y["size"]) / size
            new = len(self.regions)
            self.regions.append(united)
            touched = [pair for pair in self.neighbors if {a, b} & set(pair)]
            others = [r for pair in touched for r in pair if r not in (a, b)]
            self.neighbors = [pair for pair in self.neighbors if pair not in touched]
            self.neighbors += [(new, other) for other in dict.fromkeys(others)]


@pytest.mark.parametrize("measures", ["CTSF", "TSF", "F", "S", "C"])
def test_same_regions_as_a_plain_version(image: np.ndarray, measures: str) -> None:
    plain = PlainSearch(image, measures)
    assert len(plain.regions) > 20
    plain.run()
    boxes, sizes = grouping(image, "hsv", measures)
    assert boxes.tolist() == [list(map(int, region["box"])) for region in plain.regions]
    assert sizes.tolist() == [region["size"] for region in plain.regions]


@pytest.mark.parametrize("space", ["hsv", "lab", "rgi", "h", "i"])
def test_every_grouping_ends_in_the_whole_image(image: np.ndarray, space: str) -> None:
    boxes, sizes = grouping(image, space, "CTSF")
    segments = (len(sizes) + 1) // 2
    assert sizes[:segments].sum() == image.shape[0] * image.shape[1]
    assert len(sizes) == 2 * segments - 1
    assert boxes[-1].tolist() == [0, 0, 79, 59]
    assert sizes[-1] == 4800


def test_unknown_color_space_is_named(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected hsv, lab, rgi, h or i, got 'cmyk'"):
        grouping(image, "cmyk", "CTSF")


@pytest.mark.parametrize("mode", MODES)
def test_boxes_are_unique_and_inside(image: np.ndarray, mode: str) -> None:
    regions = find_regions(image, settings_of(mode))
    assert len(np.unique(regions.boxes, axis=0)) == len(regions) > 100
    assert (regions.boxes[:, :2] <= regions.boxes[:, 2:]).all()
    assert (regions.boxes >= 0).all()
    assert (regions.boxes <= [79, 59, 79, 59]).all()
    sides = regions.boxes[:, 2:].astype(int) - regions.boxes[:, :2] + 1
    assert (regions.sizes <= sides.prod(axis=1)).all()
    assert [0, 0, 79, 59] in regions.boxes.tolist()


@pytest.mark.parametrize("mode", MODES)
def test_seed_changes_the_order_only(image: np.ndarray, mode: str) -> None:
    first, again = (find_regions(image, settings_of(mode)) for _ in range(2))
    np.testing.assert_array_equal(first.boxes, again.boxes)
    other = find_regions(image, settings_of(mode, seed=1))
    assert first.boxes.tolist() != other.boxes.tolist()
    assert sorted(first.boxes.tolist()) == sorted(other.boxes.tolist())


def test_large_regions_tend_to_come_first(image: np.ndarray) -> None:
    sizes = find_regions(image, settings_of("quality")).sizes
    half = len(sizes) // 2
    assert sizes[:half].mean() > 1.5 * sizes[half:].mean()


def test_quality_finds_what_fast_does(image: np.ndarray) -> None:
    fast = {tuple(box) for box in find_regions(image, settings_of("fast")).boxes.tolist()}
    quality = {tuple(box) for box in find_regions(image, settings_of("quality")).boxes.tolist()}
    assert fast < quality


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 1), (2, 2), (3, 900)])
@pytest.mark.parametrize("mode", MODES)
def test_thin_images(mode: str, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    boxes = selective_search(image, mode=mode, enclose=True)
    assert [0, 0, shape[1], shape[0]] in boxes.tolist()


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_images(value: int) -> None:
    boxes = selective_search(np.full((20, 30, 3), value, np.uint8), mode="quality")
    assert boxes.tolist() == [[0, 0, 29, 19]]


@pytest.mark.parametrize("mode", ["single", *MODES])
def test_instruction_sets_agree(mode: str) -> None:
    image = smooth_noise(3, 61, 83)
    settings = SearchSettings(mode=mode)
    best = native.instruction_set()
    expected = find_regions(image, settings)
    try:
        for name in _extension.instruction_sets():
            assert native.instruction_set(name) == name
            got = find_regions(image, settings)
            np.testing.assert_array_equal(got.boxes, expected.boxes)
            np.testing.assert_array_equal(got.sizes, expected.sizes)
    finally:
        native.instruction_set(best)


def test_threads_do_not_disturb_each_other() -> None:
    images = [smooth_noise(seed, 90 + seed, 120 - seed) for seed in range(8)]
    expected = [find_regions(image).boxes for image in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(find_regions, images))
            for regions, boxes in zip(found, expected, strict=True):
                np.testing.assert_array_equal(regions.boxes, boxes)


def test_enclosing_boxes_reach_the_border(image: np.ndarray) -> None:
    closed = selective_search(image)
    enclosing = selective_search(image, enclose=True)
    assert enclosing.dtype == np.float32
    np.testing.assert_array_equal(enclosing, closed + [0, 0, 1, 1])
    assert enclosing[-1].tolist() == [0, 0, 80, 60]
