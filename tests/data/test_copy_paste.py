"""Copy-paste: what is pasted, what it hides, and whose boxes are left."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from rcnn_ext.data import (
    AnnotationSet,
    AugmentConfig,
    ClassList,
    DataConfig,
    ImageRecord,
    Segmentation,
    TrainingStream,
    build_augmentation,
    open_split,
    training_loader,
)
from rcnn_ext.data.copy_paste import copy_paste
from rcnn_ext.data.samples import raw_sample
from rcnn_ext.errors import UserError
from tests.helpers.made_data import as_pennfudan
from tests.helpers.real_data import REAL, needs_real_data

PLAIN = build_augmentation(AugmentConfig(horizontal_flip=0))


def diamond(x, y, radius):
    return [x, y - radius, x + radius, y, x, y + radius, x - radius, y]


def record(folder, index, size, colors, outlines, halo=0, first_label=1):
    """A picture in which each object has one color, for ``halo`` pixels beyond its mask too."""
    masks = [outline.mask(*size) for outline in outlines]
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    for color, mask in zip(colors, masks, strict=True):
        rows, columns = np.nonzero(mask)
        grown = mask.copy()
        if halo:
            grown[
                max(0, rows.min() - halo) : rows.max() + halo + 1,
                max(0, columns.min() - halo) : columns.max() + halo + 1,
            ] = True
        pixels[grown] = color
    path = folder / f"{index}.png"
    Image.fromarray(pixels).save(path)
    boxes = np.array([box_of(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)
    return ImageRecord(
        index,
        path,
        *size,
        boxes,
        np.arange(len(masks)) + first_label,
        np.array([mask.sum() for mask in masks], dtype=np.float32),
        np.zeros(len(masks), dtype=bool),
        segmentations=tuple(outlines),
    )


def box_of(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def base(folder, index=0):
    outlines = [
        Segmentation.parse([diamond(30, 30, 24)]),
        Segmentation.from_mask(np.pad(np.ones((20, 40), bool), ((70, 10), (20, 60)))),
        Segmentation.parse([diamond(95, 30, 15)]),
    ]
    return record(folder, index, (120, 100), [20, 40, 60], outlines)


def other(folder, index=1):
    outlines = [
        Segmentation.parse([diamond(25, 30, 12)]),
        Segmentation.parse([diamond(70, 25, 9)]),
        Segmentation.from_mask(np.pad(np.ones((14, 30), bool), ((55, 11), (40, 20)))),
    ]
    return record(folder, index, (90, 80), [150, 180, 210], outlines, halo=8, first_label=4)


def block(folder, index=1):
    square = Segmentation.from_mask(np.pad(np.ones((20, 25), bool), ((20, 20), (5, 30))))
    return record(folder, index, (60, 60), [210], [square], halo=4, first_label=4)


def annotated(folder, *records):
    return AnnotationSet(folder, ClassList(tuple("abcdef"), tuple(range(1, 7))), records)


def test_boxes_are_those_of_what_is_seen(tmp_path):
    """Objects are told by their color, and boxes found in the picture itself."""
    first, second = base(tmp_path), other(tmp_path)
    samples = raw_sample(first), raw_sample(second)
    seen = {"pasted": 0, "changed": 0, "dropped": 0, "half": 0}
    for seed in range(150):
        torch.manual_seed(seed)
        image, target = copy_paste(samples[0], first, samples[1], second)
        assert image.shape == (3, 100, 120)
        assert int(target["image_id"]) == 0
        places = {label: place for place, label in enumerate(target["labels"].tolist())}
        for color, label in ((20, 1), (40, 2), (60, 3), (150, 4), (180, 5), (210, 6)):
            mask = (image[0] == color).numpy()
            place = places.get(label)
            whole = int((samples[0][0][0] == color).sum())
            if place is None:
                if color < 100:
                    seen["dropped"] += 1
                    assert mask.sum() < 0.2 * whole or min(sides(mask)) < 2
                else:
                    assert mask.sum() == 0, "what is dropped is not pasted either"
                continue
            assert target["boxes"][place].tolist() == box_of(mask), (seed, color)
            assert float(target["areas"][place]) == pytest.approx(mask.sum())
            seen["pasted"] += color > 100
            seen["changed"] += color < 100 and mask.sum() < whole
            seen["half"] += color < 100 and mask.sum() < whole / 2
        assert len(places) == len(target["boxes"]) == len(target["labels"]) == len(target["crowd"])
        assert len(target["difficult"]) == len(target["areas"]) == len(places)
    assert seen["pasted"] > 150
    assert seen["changed"] > 60
    assert seen["half"] > 5
    assert seen["dropped"] > 5


def sides(mask):
    if not mask.any():
        return 0, 0
    x1, y1, x2, y2 = box_of(mask)
    return x2 - x1, y2 - y1


def test_objects_are_scaled_mirrored_and_chosen_at_random(tmp_path):
    first = record(tmp_path, 0, (200, 200), [], [])
    half = np.pad(np.ones((20, 20), bool), ((20, 20), (5, 35)))
    second = record(tmp_path, 1, (60, 60), [200], [Segmentation.from_mask(half)], halo=4)
    samples = raw_sample(first), raw_sample(second)
    factors, centers = [], []
    for seed in range(200):
        torch.manual_seed(seed)
        _, target = copy_paste(samples[0], first, samples[1], second)
        for x1, y1, x2, y2 in target["boxes"].tolist():
            centers.append((x1 + x2) / 2 / 200)
            if min(x1, y1) > 0 and max(x2, y2) < 200:
                assert abs((x2 - x1) - (y2 - y1)) <= 1
                factors.append((x2 - x1) / 20 / (200 / 60))
    assert 0.49 < min(factors) < 0.6
    assert 1.5 < max(factors) < 2.05
    assert min(centers) < 0.2
    assert max(centers) > 0.8
    assert np.median(factors) == pytest.approx(1, abs=0.35)


def test_small_objects_lie_on_top_of_large_ones(tmp_path):
    first = record(tmp_path, 0, (60, 60), [], [])
    large = Segmentation.from_mask(np.ones((60, 60), bool))
    small = Segmentation.from_mask(np.pad(np.ones((20, 20), bool), 20))
    second = record(tmp_path, 1, (60, 60), [100, 200], [large, small])
    second = second.select(np.array([1, 0]))
    samples = raw_sample(first), raw_sample(second)
    both = 0
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = copy_paste(samples[0], first, samples[1], second)
        both += sorted(target["labels"].tolist()) == [1, 2]
        if 2 in target["labels"].tolist():
            assert (image[0] == 200).any()
    assert both > 5


def test_objects_without_a_mask_are_hidden_by_their_box_and_never_pasted(tmp_path):
    first, second = base(tmp_path), other(tmp_path)
    none = (None, None, None)
    bare = ImageRecord(**{**vars(first), "segmentations": none})
    samples = raw_sample(first), raw_sample(second)
    assert copy_paste(samples[1], second, samples[0], bare) is samples[1]
    unknown = ImageRecord(**{**vars(first), "segmentations": None})
    assert copy_paste(samples[1], second, samples[0], unknown) is samples[1]
    one = block(tmp_path, 2)
    one = ImageRecord(
        **{
            **vars(one),
            "boxes": np.concatenate([one.boxes, [[1, 1, 9, 9]]]).astype(np.float32),
            **{name: np.repeat(getattr(one, name), 2) for name in ("areas", "crowd", "difficult")},
            "labels": np.array([4, 5]),
            "segmentations": (*one.segmentations, None),
        }
    )
    samples = samples[0], raw_sample(one)
    changed = 0
    for seed in range(100):
        torch.manual_seed(seed)
        image, target = copy_paste(samples[0], bare, samples[1], one)
        labels = target["labels"].tolist()
        assert 5 not in labels
        x1, y1, x2, y2 = map(int, first.boxes[2])
        left = (image[0, y1:y2, x1:x2] != 210).numpy()
        if 3 in labels and not left.all():
            a, b, c, d = box_of(left)
            found = target["boxes"][labels.index(3)].tolist()
            assert found == [x1 + a, y1 + b, x1 + c, y1 + d]
            changed += found != first.boxes[2].tolist()
    assert changed > 3


class Proposals:
    def __init__(self, *records):
        self.known = {record.path: record.boxes for record in records}

    def boxes(self, image):
        return np.concatenate([self.known[image], [[0, 0, 3, 3]]])


def test_proposals_of_what_is_pasted_come_along(tmp_path):
    first, second = base(tmp_path), block(tmp_path)
    source = Proposals(first, second)
    samples = raw_sample(first, source), raw_sample(second, source)
    whole = 0
    for seed in range(60):
        torch.manual_seed(seed)
        _, target = copy_paste(samples[0], first, samples[1], second)
        proposals = target["proposals"]
        assert proposals[:4].tolist() == samples[0][1]["proposals"].tolist()
        added = proposals[4:]
        assert len(added) <= 1, "that of the corner shows nothing of what is pasted"
        x1, y1, x2, y2 = target["boxes"][-1].tolist()
        pasted = 4 in target["labels"].tolist()
        if pasted and min(x1, y1) > 0 and x2 < 120 and y2 < 100:
            torch.testing.assert_close(added, target["boxes"][-1:].float(), atol=1, rtol=0)
            whole += 1
    assert whole > 10


@pytest.fixture
def three(tmp_path):
    return annotated(tmp_path, base(tmp_path, 0), other(tmp_path, 1), base(tmp_path, 2))


def equal(first, second):
    return torch.equal(first[0], second[0]) and all(
        torch.equal(first[1][key], second[1][key]) for key in first[1]
    )


@pytest.mark.parametrize("mosaic", [0.0, 0.5])
def test_a_stream_pastes_by_position_alone(three, mosaic):
    augmentation = build_augmentation(AugmentConfig(scale_jitter=(0.5, 1.5), color=0.3))

    def stream(probability=0.5, seed=0):
        return TrainingStream(
            three,
            augmentation,
            seed,
            mosaic=mosaic,
            copy_paste=probability,
            repeat_threshold=0.5,
        )

    wanted = [stream()[position] for position in range(12)]
    one = stream()
    assert all(equal(one[position], wanted[position]) for position in reversed(range(12)))
    loader = iter(training_loader(stream(), 4, 2, 1, False))
    for batch in (1, 2):
        images, targets = next(loader)
        for place, sample in enumerate(zip(images, targets, strict=True)):
            assert equal(sample, wanted[4 * batch + place])
    never = [stream(0.0)[position] for position in range(12)]
    differing = sum(not equal(a, b) for a, b in zip(never, wanted, strict=True))
    assert differing > 2
    for _, target in wanted:
        boxes = target["boxes"]
        assert (boxes[:, 2:] - boxes[:, :2] >= 2).all()


def test_broken_pictures_and_masks_stop_or_are_passed_over(tmp_path):
    wrong = Segmentation.from_mask(np.ones((5, 7), bool))
    good, bad = base(tmp_path, 0), other(tmp_path, 1)
    bad = ImageRecord(**{**vars(bad), "segmentations": (wrong,) * 3})
    found = annotated(tmp_path, good, bad)
    strict = TrainingStream(found, PLAIN, seed=0, copy_paste=1.0)
    with pytest.raises(UserError, match=r"1\.png: object \d: the mask is 7x5 pixels"):
        [strict[position] for position in range(12)]
    lenient = TrainingStream(found, PLAIN, seed=0, copy_paste=1.0, on_error="skip")
    with pytest.warns(RuntimeWarning, match=r"skipped: .*1\.png: object"):
        assert len([lenient[position] for position in range(12)]) == 12
    bad.path.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"skipped: .*1\.png"):
        ids = {int(lenient[position][1]["image_id"]) for position in range(12)}
    assert ids == {0}


def test_data_without_masks_are_refused_by_name(tmp_path):
    bare = ImageRecord(**{**vars(base(tmp_path)), "segmentations": None})
    for records in ([bare], [ImageRecord(**{**vars(bare), "segmentations": (None,) * 3})]):
        with pytest.raises(UserError, match=r"data\.augment\.copy_paste needs outlines or masks"):
            TrainingStream(annotated(tmp_path, *records), PLAIN, seed=0, copy_paste=0.5)
    TrainingStream(annotated(tmp_path, bare), PLAIN, seed=0)
    with pytest.raises(ValueError, match="copy_paste must be from 0 to 1"):
        AugmentConfig(copy_paste=1.5)


def test_the_key_reads_masks_of_training_images(tmp_path):
    root = as_pennfudan(tmp_path)
    plain = open_split(DataConfig(), root, "train")
    assert not plain.images.has_segmentations
    config = DataConfig(augment=AugmentConfig(copy_paste=0.5))
    train = open_split(config, root, "train")
    assert train.images.segmented.all()
    assert len(train.images.boxes) == len(plain.images.boxes)
    stream = TrainingStream(train, PLAIN, seed=0, copy_paste=1.0)
    more = sum(len(stream[i][1]["boxes"]) for i in range(len(train)))
    assert more > len(train.images.boxes)


def test_other_channels(tmp_path):
    first, second = base(tmp_path), other(tmp_path)
    samples = []
    for one in (first, second):
        image, target = raw_sample(one)
        unit = type(image)(torch.cat([image, image[:2]]).float() / 255)
        samples.append((unit, target))
    torch.manual_seed(0)
    image, _ = copy_paste(samples[0], first, samples[1], second)
    assert image.shape == (5, 100, 120)
    assert image.dtype == torch.float32
    assert math.isclose(float(image.max()), 210 / 255, rel_tol=0.2)


@needs_real_data
def test_real_pictures():
    config = DataConfig(augment=AugmentConfig(copy_paste=1.0))
    train = open_split(config, REAL / "PennFudanPed", "train")
    stream = TrainingStream(train, PLAIN, seed=0, copy_paste=1.0)
    plain = TrainingStream(train, PLAIN, seed=0)
    for position in range(4):
        (image, target), (before, own) = stream[position], plain[position]
        assert image.shape == before.shape
        height, width = image.shape[1:]
        boxes = target["boxes"]
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        unchanged = [box for box in own["boxes"].tolist() if box in boxes.tolist()]
        assert len(boxes) > len(unchanged)
