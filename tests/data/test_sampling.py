"""The order of training images: repeat factors of rare classes, and places that need no history."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from rcnn_ext.config import DataConfig
from rcnn_ext.data import AnnotationSet, ClassList, ImageRecord, TrainingStream, training_loader
from rcnn_ext.data.packed import PackedImages
from rcnn_ext.data.sampling import SampleOrder, repeat_factors
from tests.data.test_dataset import annotation_set, image_id_of, record


def images_with(*labels):
    return PackedImages.pack(
        ImageRecord(
            image_id=index,
            path=Path(f"{index}.png"),
            width=10,
            height=10,
            boxes=np.tile(np.array([[1, 1, 5, 5]], dtype=np.float32), (len(of_image), 1)),
            labels=np.array(of_image, dtype=np.int64),
            areas=np.full(len(of_image), 16, dtype=np.float32),
            crowd=np.zeros(len(of_image), dtype=bool),
        )
        for index, of_image in enumerate(labels)
    )


def test_factors_are_those_of_lvis():
    # Class 1 is in 8 of 10 images, class 2 in two, class 5 in one; objects do not count, images do.
    images = images_with([1], [1, 1], [1, 2, 2, 2], [1], [1], [1, 5], [1], [1], [2], [])
    factors = repeat_factors(images, 0.4)
    rare, rarest = math.sqrt(0.4 / 0.2), math.sqrt(0.4 / 0.1)
    np.testing.assert_allclose(factors, [1, 1, rare, 1, 1, rarest, 1, 1, rare, 1])
    assert (repeat_factors(images, 0.1) == 1).all()
    assert repeat_factors(images_with([], []), 0.5).tolist() == [1, 1]
    assert repeat_factors(images_with(), 0.5).tolist() == []


@pytest.mark.parametrize("seed", [0, 5])
def test_an_epoch_has_each_image_by_its_factor(seed):
    factors = np.array([1.0, 1.25, 2.5, 1.0, 3.9, 1.01])
    order = SampleOrder(len(factors), seed, factors)
    assert order.positions_per_epoch == pytest.approx(factors.sum(), abs=1e-5)
    epochs = 400
    by_epoch = [[] for _ in range(epochs + 1)]
    for position in range(math.floor(epochs * factors.sum())):
        epoch, place = order.place(position)
        assert place == len(by_epoch[epoch])
        by_epoch[epoch].append(order.index(position))
    counts = np.array([np.bincount(one, minlength=len(factors)) for one in by_epoch[: epochs - 1]])
    assert {10, 11} == set(counts.sum(axis=1).tolist())
    # Systematic sampling: an epoch differs from the factors by less than one.
    assert (counts >= np.floor(factors)).all()
    assert (counts <= np.ceil(factors)).all()
    np.testing.assert_allclose(counts.mean(axis=0), factors, atol=0.1)


def test_a_place_needs_no_history():
    factors = 1 + np.random.default_rng(1).random(50) * 3
    order = SampleOrder(50, 3, factors)
    found = [order.index(position) for position in range(700)]
    backwards = SampleOrder(50, 3, factors)
    assert [backwards.index(position) for position in reversed(range(700))] == found[::-1]
    far = 10**12 + 17
    assert SampleOrder(50, 3, factors).index(far) == order.index(far)
    assert [SampleOrder(50, 4, factors).index(i) for i in range(50)] != found[:50]
    # Repeats are spread over the epoch, not side by side.
    assert sum(a == b for a, b in zip(found, found[1:], strict=False)) < 40


def test_without_rare_classes_the_order_is_that_without_factors():
    plain, ones = SampleOrder(7, 2), SampleOrder(7, 2, np.ones(7))
    assert [plain.index(i) for i in range(30)] == [ones.index(i) for i in range(30)]
    assert ones.positions_per_epoch == 7


def test_random_images_are_drawn_by_factor():
    order = SampleOrder(3, 0, np.array([1.0, 2.0, 5.0]))
    counts = Counter(order.draw() for _ in range(8000))
    for index, wanted in enumerate((1000, 2000, 5000)):
        assert counts[index] == pytest.approx(wanted, rel=0.12)


@pytest.fixture
def rare(tmp_path):
    """Ten images of class a, the last of which has class b too."""
    records = [record(tmp_path, i, [[1, 2, 11, 12]]) for i in range(9)]
    records.append(record(tmp_path, 9, [[1, 2, 11, 12], [15, 5, 35, 25]]))
    return annotation_set(tmp_path, *records)


def test_a_stream_repeats_images_with_rare_classes(rare):
    stream = TrainingStream(rare, v2.Identity(), seed=0, repeat_threshold=0.9)
    assert stream.images_per_epoch == 12
    assert stream.note == (
        "data.repeat_threshold=0.9: 1 of 10 images are repeated, up to 3 times; "
        "an epoch has 12 images"
    )
    ids = [image_id_of(stream[i]) for i in range(24)]
    assert Counter(ids[:12]) == Counter([*range(9), 9, 9, 9]) == Counter(ids[12:])
    assert TrainingStream(rare, v2.Identity(), seed=0).note == ""


def test_processes_workers_and_a_resumed_run_share_the_order(rare):
    stream = TrainingStream(rare, v2.Identity(), seed=0, repeat_threshold=0.5, mosaic=0.3)
    wanted = [stream[i] for i in range(32)]

    def ids(workers, start, rank, processes, batches):
        loader = iter(training_loader(stream, 4, workers, start, False, rank, processes))
        return [
            torch.equal(image, wanted[position][0])
            for batch in range(start, start + batches)
            for image, position in zip(
                next(loader)[0],
                range(4 * batch + rank * 4 // processes, 4 * batch + (rank + 1) * 4 // processes),
                strict=True,
            )
        ]

    assert all(ids(0, 0, 0, 1, 8))
    assert all(ids(2, 5, 0, 1, 3))
    assert all(ids(0, 2, 0, 2, 6))
    assert all(ids(1, 2, 1, 2, 6))


def test_crowds_and_left_out_objects_are_not_counted(tmp_path):
    records = [record(tmp_path, i, [[1, 2, 11, 12]]) for i in range(3)]
    records.append(record(tmp_path, 3, [[1, 2, 11, 12], [15, 5, 35, 25]], crowd=[1]))
    stream = TrainingStream(
        annotation_set(tmp_path, *records), v2.Identity(), seed=0, repeat_threshold=0.9
    )
    assert stream.images_per_epoch == 4


@pytest.mark.parametrize("value", [0, -0.1, 1.5])
def test_thresholds_that_are_wrong(value):
    with pytest.raises(ValueError, match="repeat_threshold must be null, or above 0"):
        DataConfig(repeat_threshold=value)


def test_factors_of_many_objects():
    classes = ClassList(tuple(f"c{i}" for i in range(200)), tuple(range(1, 201)))
    generator = np.random.default_rng(0)
    labels = [generator.zipf(1.5, size=4).clip(1, 200) for _ in range(500)]
    images = AnnotationSet(Path("made"), classes, images_with(*labels)).images
    seen = Counter(label for one in labels for label in set(one.tolist()))
    wanted = [
        max(max(1.0, math.sqrt(0.05 / (seen[label] / 500))) for label in one.tolist())
        for one in labels
    ]
    np.testing.assert_allclose(repeat_factors(images, 0.05), wanted)
