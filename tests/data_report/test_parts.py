"""The parts of a data report: duplicates, suspicious boxes, anchors and pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from rcnn_ext.config import load_recipe
from rcnn_ext.data.annotations import AnnotationSet, ClassList
from rcnn_ext.data.packed import PackedImages
from rcnn_ext.data.records import ImageRecord
from rcnn_ext.data_report import duplicates
from rcnn_ext.data_report.anchors import fit_anchors, shape_iou
from rcnn_ext.data_report.duplicates import find_duplicates
from rcnn_ext.data_report.fingerprints import Fingerprints, fingerprint
from rcnn_ext.data_report.measures import measure
from rcnn_ext.data_report.samples import StreamThumbnails, spread_over_classes
from rcnn_ext.data_report.suggestions import levels_of, suggest
from rcnn_ext.data_report.suspicious import find_suspicious


def _record(index, boxes, labels=None, size=(1000, 800), crowd=None):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    count = len(boxes)
    return ImageRecord(
        image_id=index,
        path=Path(f"{index}.png"),
        width=size[0],
        height=size[1],
        boxes=boxes,
        labels=np.ones(count, np.int64) if labels is None else np.array(labels, np.int64),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        crowd=np.zeros(count, bool) if crowd is None else np.array(crowd, bool),
    )


def _set(*records, classes=2):
    names = tuple(f"c{index}" for index in range(classes))
    return AnnotationSet(Path("data"), ClassList(names, tuple(range(classes))), records)


def _scene(seed: int, size=(120, 90)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def _split(pictures, prefix):
    taken = Fingerprints()
    paths = [Path(f"{prefix}{index}") for index in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        taken.see(path, picture.tobytes(), picture)
    records = [_record(index, []) for index in range(len(paths))]
    named = [
        ImageRecord(**{**record.__dict__, "path": path})
        for record, path in zip(records, paths, strict=True)
    ]
    return PackedImages.pack(named), taken


def _as_jpeg(picture, quality):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


_CHANGES = {
    "compressed": lambda picture: _as_jpeg(picture, 10),
    "half the size": lambda picture: picture.resize((60, 45)),
    "a square": lambda picture: picture.resize((80, 80)),
    "gray": lambda picture: picture.convert("L").convert("RGB"),
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.6),
    "cropped": lambda picture: picture.crop((1, 1, 119, 89)),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_near_copies_are_found_between_splits_and_others_are_not(change):
    scenes = [_scene(seed) for seed in range(40)]
    changed = [_CHANGES[change](scene) for scene in scenes[:5]]
    fresh = [_scene(seed) for seed in range(100, 120)]
    found = find_duplicates([_split(scenes, "a"), _split([*fresh, *changed], "b")])
    expected = [(1, 20 + index, 0, index, "near") for index in range(5)]
    assert [(d.split, d.row, d.other_split, d.other_row, d.kind) for d in found] == expected


def test_mirrored_ones_copies_and_those_of_one_split():
    scenes = [_scene(seed) for seed in range(10)]
    split = [*scenes, ImageOps.mirror(scenes[3]), scenes[4], scenes[4]]
    found = find_duplicates([_split(split, "a")])
    assert [(d.row, d.other_row, d.kind) for d in found] == [
        (10, 3, "mirrored"),
        (11, 4, "copy"),
        (12, 4, "copy"),
    ]


def test_plain_pictures_are_the_same_only_as_files():
    plain = [Image.new("RGB", (50, 40), (shade, shade, shade)) for shade in (0, 90, 255, 90)]
    found = find_duplicates([_split(plain, "a")])
    assert [(d.row, d.other_row, d.kind) for d in found] == [(3, 1, "copy")]


def test_distances_without_numpy_2(monkeypatch):
    rng = np.random.default_rng(0)
    one = rng.integers(0, 2**64, (5, 1), dtype=np.uint64, endpoint=False)
    other = rng.integers(0, 2**64, (1, 7), dtype=np.uint64, endpoint=False)
    expected = [[(int(a) ^ int(b)).bit_count() for b in other[0]] for a in one[:, 0]]
    assert duplicates._distances(one, other).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert duplicates._distances(one, other).tolist() == expected


def test_pictures_of_other_channels_have_fingerprints():
    gray = _scene(1).convert("L")
    planes = torch.from_numpy(np.asarray(gray).copy())[None].expand(5, -1, -1)
    for tensor in (planes, planes.float() / 255):
        taken = fingerprint(b"", tensor)
        assert not taken.plain
        assert (taken.hash ^ fingerprint(b"", gray).hash).bit_count() <= 2


def test_suspicious_boxes_are_those_of_a_plain_search():
    rng = np.random.default_rng(0)
    records = []
    for index in range(30):
        corners = rng.uniform(0, 500, (40, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(20, 300, (40, 2))], axis=1)
        boxes[20:] = boxes[:20] + rng.uniform(-6, 6, (20, 4))
        records.append(_record(index, boxes.clip(0), rng.integers(1, 3, 40)))
    images = PackedImages.pack(records)
    expected = {"doubled": set(), "two classes": set()}
    for index, record in enumerate(records):
        iou = _pairwise(record.boxes.astype(np.float64))
        for later in range(40):
            near = np.flatnonzero(iou[later, :later] >= 0.9)
            if len(near):
                same = record.labels[near[0]] == record.labels[later]
                kind = "doubled" if same else "two classes"
                expected[kind].add((index * 40 + later, index * 40 + int(near[0])))
    found = {one.kind: one for one in find_suspicious(images)}
    for kind, pairs in expected.items():
        assert pairs
        one = found[kind]
        assert set(zip(one.objects.tolist(), one.partners.tolist(), strict=True)) == pairs


def _pairwise(boxes):
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = (high - low).clip(0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return common / (areas[:, None] + areas[None] - common)


def test_rules_of_suspicious_boxes():
    large = (4000, 3000)
    images = PackedImages.pack(
        [
            _record(0, [(0, 0, 3, 50), (0, 0, 5, 50), (0, 0, 1000, 780), (0, 0, 4, 90)]),
            # 10 pixels are 3.3 once the longer side is 1333.
            _record(1, [(0, 0, 10, 50), (0, 0, 20, 50)], size=large),
            _record(2, [(5, 5, 90, 90), (5, 5, 90, 90)], crowd=[True, False]),
            _record(3, []),
        ]
    )
    found = {one.kind: one.objects.tolist() for one in find_suspicious(images)}
    assert found == {"tiny": [0, 4], "huge": [2], "thin": [3]}
    assert find_suspicious(PackedImages.pack([_record(0, [])])) == []


def test_anchors_find_the_shapes_that_boxes_have():
    rng = np.random.default_rng(0)
    sizes = rng.choice([20, 50, 100, 220, 400], 3000) * rng.uniform(0.95, 1.05, 3000)
    ratios = rng.choice([0.4, 1.0, 3.0], 3000) * rng.uniform(0.95, 1.05, 3000)
    sides = np.stack([sizes / np.sqrt(ratios), sizes * np.sqrt(ratios)], axis=1)
    found = fit_anchors(sides, (32, 64, 128, 256, 512))
    np.testing.assert_allclose(found.sizes, [20, 50, 100, 220, 400], rtol=0.03)
    np.testing.assert_allclose(found.ratios, [0.4, 1.0, 3.0], rtol=0.05)
    assert found.iou > 0.9 > found.default_iou
    own = shape_iou(sides, np.array(found.sizes, float), np.array(found.ratios)).max(axis=1).mean()
    assert found.iou == pytest.approx(own)


@pytest.mark.parametrize("side", [1.0, 64.0, 5000.0])
def test_anchors_of_equal_boxes_are_distinct(side):
    found = fit_anchors(np.full((7, 2), side), (32, 64, 128, 256, 512))
    assert len(set(found.sizes)) == 5
    assert list(found.sizes) == sorted(found.sizes)
    assert len(set(found.ratios)) == 3
    assert all(
        low / 2 <= size <= low * 2
        for size, low in zip(found.sizes, (32, 64, 128, 256, 512), strict=True)
    )


@pytest.mark.parametrize(
    ("overrides", "levels"),
    [
        ([], 4),
        (["model.returned_layers=null"], 5),
        (["model.neck=c4", "model.returned_layers=null"], 1),
    ],
)
def test_anchors_suit_the_levels_of_a_recipe(overrides, levels):
    recipe = load_recipe("faster_rcnn_coco_small", overrides)
    data = _set(_record(0, [(10, 10, 60, 90), (200, 100, 500, 300)]), _record(1, [(0, 0, 30, 40)]))
    found = suggest(data, recipe_name="own", recipe=recipe, default_sizes=levels_of(recipe))
    values = [one.override for one in found.overrides]
    both = load_recipe("faster_rcnn_coco_small", [*overrides, *values])
    assert len(both.model.anchor_sizes) == (levels if levels > 1 else 5)
    # Builds the model with them.
    assert len(levels_of(both)) == levels


def test_suggestions_follow_the_data():
    def values(data, **options):
        return dict(one.override.split("=", 1) for one in suggest(data, **options).overrides)

    large = values(_set(*[_record(i, [(0, 0, 400, 400)], size=(4000, 3000)) for i in range(64)]))
    small = values(_set(*[_record(i, [(0, 0, 100, 90)], size=(320, 240)) for i in range(2000)]))
    assert int(large["model.min_size"]) == 800
    assert int(large["model.max_size"]) == 1088
    assert int(small["model.min_size"]) == 256
    assert int(small["model.max_size"]) == 352
    assert (large["data.batch_size"], small["data.batch_size"]) == ("4", "16")
    assert (large["schedule.epochs"], small["schedule.epochs"]) == ("60", "12")
    assert "data.val_fraction" not in large
    data = _set(_record(0, [(0, 0, 90, 90)]))
    assert values(data, has_validation=False)["data.val_fraction"] == "0.15"
    streamed = values(data, has_validation=False, stream=True)
    assert "data.val_fraction" not in streamed
    assert streamed["schedule.steps"] == "30"
    assert suggest(_set(_record(0, []))) is None
    assert suggest(_set(_record(0, [(0, 0, 9, 9)], crowd=[True]))) is None


def test_the_rate_goes_with_the_batch():
    recipe = load_recipe("faster_rcnn_finetune")
    data = _set(*[_record(i, [(0, 0, 100, 90)], size=(320, 240)) for i in range(2000)])
    found = suggest(data, recipe_name="faster_rcnn_finetune", recipe=recipe)
    assert "optimizer.lr=0.02" in [one.override for one in found.overrides]


def test_rare_classes_and_those_without_objects_are_named():
    labels = [1] * 60 + [2]
    boxes = [(index, 0, index + 30, 30) for index in range(61)]
    advice = " ".join(suggest(_set(_record(0, boxes, labels), classes=3)).advice)
    assert "without an object in training: c2." in advice
    assert "60 times the objects of the rarest: training.class_weights=auto" in advice


def test_measures_count_images_of_each_class_once():
    data = _set(
        _record(0, [(0, 0, 10, 10), (0, 0, 50, 50), (0, 0, 96, 96)], [2, 2, 1]), _record(1, [])
    )
    found = measure("train", data)
    assert found.objects_of_class.tolist() == [1, 2]
    assert found.images_of_class.tolist() == [1, 1]
    assert (found.small, found.medium, found.large) == (1, 1, 1)
    counts = {one.title: dict(zip(one.labels, one.counts, strict=True)) for one in found.histograms}
    assert counts["Boxes per picture"] == {"0": 1, "1": 0, "2": 0, "3": 1}
    assert counts["Width of boxes, pixels"]["8 to 16"] == 1
    assert sum(counts["Height to width of boxes"].values()) == 3


def test_pictures_show_the_rarest_classes_first():
    records = [_record(index, [(0, 0, 9, 9)], [1]) for index in range(50)]
    records[20] = _record(20, [(0, 0, 9, 9), (9, 9, 40, 40)], [2, 1])
    records[30] = _record(30, [])
    rows = list(spread_over_classes(PackedImages.pack(records)))
    assert rows[0] == 20
    assert rows[-1] == 30
    assert sorted(rows) == list(range(50))
    assert rows == list(spread_over_classes(PackedImages.pack(records)))


def test_thumbnails_of_a_stream_are_spread_over_it():
    thumbnails = StreamThumbnails()
    for index in range(1000):
        thumbnails.see(Path(str(index)), torch.zeros(3, 8, 8, dtype=torch.uint8))
    kept = sorted(int(path.name) for path in thumbnails.paths())
    assert 96 < len(kept) <= 192
    assert set(np.diff(kept).tolist()) == {8}
    assert Image.open(io.BytesIO(thumbnails.paths()[Path("0")])).size == (8, 8)
