from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from rcnn_ext.data import (
    AnnotationSet,
    AugmentConfig,
    ClassList,
    DetectionDataset,
    ImageRecord,
    TrainingStream,
    build_augmentation,
    evaluation_loader,
    training_loader,
)
from rcnn_ext.errors import UserError


def record(path, image_id, boxes, crowd=()):
    """An image of 40x30 whose left half is dark and right half bright."""
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[:, 20:] = 200
    pixels[:, :, 0] = image_id
    file = path / f"{image_id}.png"
    Image.fromarray(pixels).save(file)
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    flags = np.zeros(len(boxes), dtype=bool)
    flags[list(crowd)] = True
    return ImageRecord(
        image_id=image_id,
        path=file,
        width=40,
        height=30,
        boxes=boxes,
        labels=np.arange(1, len(boxes) + 1),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        crowd=flags,
    )


def annotation_set(path, *records):
    return AnnotationSet(path, ClassList(("a", "b", "c"), (1, 2, 3)), tuple(records))


@pytest.fixture
def five(tmp_path):
    return annotation_set(
        tmp_path, *(record(tmp_path, i, [[1, 2, 11, 12], [15, 5, 35, 25]]) for i in range(5))
    )


def image_id_of(sample):
    return round(float(sample[0][0, 0, 0]) * 255)


def equal(first, second):
    return torch.equal(first[0], second[0]) and all(
        torch.equal(first[1][key], second[1][key]) for key in first[1]
    )


def test_samples_for_evaluation_are_plain_tensors_with_crowds(tmp_path):
    one = record(tmp_path, 9, [[1, 2, 11, 12], [15, 5, 35, 25]], crowd=[1])
    image, target = DetectionDataset(annotation_set(tmp_path, one))[0]
    assert type(image) is torch.Tensor
    assert image.shape == (3, 30, 40)
    assert image.dtype == torch.float32
    assert image[1, 0, 0] == 0
    assert image[1, 0, 39] == pytest.approx(200 / 255)
    assert {type(value) for value in target.values()} == {torch.Tensor}
    assert target["boxes"].tolist() == [[1, 2, 11, 12], [15, 5, 35, 25]]
    assert target["labels"].tolist() == [1, 2]
    assert target["areas"].tolist() == [100, 400]
    assert target["crowd"].tolist() == [False, True]


def test_every_image_comes_once_in_an_epoch_and_orders_differ(five):
    stream = TrainingStream(five, v2.Identity(), seed=1)
    orders = [[image_id_of(stream[5 * epoch + i]) for i in range(5)] for epoch in range(4)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    other = TrainingStream(five, v2.Identity(), seed=2)
    assert [image_id_of(other[i]) for i in range(20)] != sum(orders, [])


def test_a_sample_depends_on_its_position_alone(five):
    augmentation = build_augmentation(AugmentConfig(color=0.5, zoom=(0.5, 1.5), shift=0.2))
    forwards = TrainingStream(five, augmentation, seed=3)
    backwards = TrainingStream(five, augmentation, seed=3)
    expected = [forwards[position] for position in range(12)]
    torch.manual_seed(99)
    before = torch.get_rng_state()
    for position in reversed(range(12)):
        assert equal(backwards[position], expected[position])
    assert torch.equal(torch.get_rng_state(), before), "the model's generator was disturbed"
    images = [sample[0] for sample in expected]
    assert not any(torch.equal(images[0], image) for image in images[1:])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_can_start_anywhere_with_any_number_of_workers(five, workers):
    stream = TrainingStream(five, build_augmentation(AugmentConfig(color=0.3)), seed=0)
    batches = iter(training_loader(stream, 2, workers, start=3, pin_memory=False))
    for first in (6, 8):
        images, targets = next(batches)
        for offset in (0, 1):
            assert equal((images[offset], targets[offset]), stream[first + offset])


def test_evaluation_batches_are_in_order_and_end(five):
    batches = list(evaluation_loader(DetectionDataset(five), 2, 0, pin_memory=False))
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    ids = [image_id_of((image, None)) for images, _ in batches for image in images]
    assert ids == [0, 1, 2, 3, 4]


def test_crowds_are_not_trained_on(tmp_path):
    found = annotation_set(
        tmp_path,
        record(tmp_path, 1, [[1, 1, 9, 9], [2, 2, 30, 20]], crowd=[0]),
        record(tmp_path, 2, [[1, 1, 9, 9]], crowd=[0]),  # Only a crowd: no use at all.
        record(tmp_path, 3, []),
    )
    stream = TrainingStream(found, v2.Identity(), seed=0)
    samples = {image_id_of(stream[i]): stream[i][1] for i in range(stream.images_per_epoch)}
    assert samples.keys() == {1, 3}
    assert samples[1]["boxes"].tolist() == [[2, 2, 30, 20]]
    assert samples[1]["labels"].tolist() == [2]
    assert samples[3]["boxes"].shape == (0, 4)
    without_empty = TrainingStream(found, v2.Identity(), seed=0, keep_empty=False)
    assert without_empty.images_per_epoch == 1
    nothing = annotation_set(tmp_path, found.images[1], found.images[2])
    with pytest.raises(UserError, match="no objects to train on"):
        TrainingStream(nothing, v2.Identity(), seed=0)


def test_pictures_of_another_size_than_annotated_are_refused(tmp_path):
    one = record(tmp_path, 1, [[1, 1, 9, 9]])
    Image.new("RGB", (41, 30)).save(one.path)
    with pytest.raises(UserError, match="41x30 pixels, but its annotations say 40x30"):
        DetectionDataset(annotation_set(tmp_path, one))[0]


def test_flips_move_boxes_with_the_pixels(tmp_path):
    one = annotation_set(tmp_path, record(tmp_path, 0, [[1, 2, 11, 12]]))
    mirror = build_augmentation(AugmentConfig(horizontal_flip=1.0))
    image, target = TrainingStream(one, mirror, seed=0)[0]
    assert target["boxes"].tolist() == [[29, 2, 39, 12]]
    assert image[1, 0, 0] > 0.5
    assert image[1, 0, 39] == 0
    upside_down = build_augmentation(AugmentConfig(horizontal_flip=0.0, vertical_flip=1.0))
    _, target = TrainingStream(one, upside_down, seed=0)[0]
    assert target["boxes"].tolist() == [[1, 18, 11, 28]]


def test_without_augmentation_nothing_changes(five):
    stream = TrainingStream(five, build_augmentation(AugmentConfig(horizontal_flip=0.0)), seed=0)
    for position in range(5):
        sample = stream[position]
        assert equal(sample, DetectionDataset(five)[image_id_of(sample)])


def test_zoom_and_shift_keep_the_size_and_boxes_on_their_object(tmp_path):
    """A bright rectangle on black: wherever it goes, its box must go too."""
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[20:40, 30:60] = 255
    Image.fromarray(pixels).save(tmp_path / "r.png")
    box = np.array([[30, 20, 60, 40]], dtype=np.float32)
    one = ImageRecord(
        1,
        tmp_path / "r.png",
        80,
        60,
        box,
        np.array([1]),
        np.array([600.0], dtype=np.float32),
        np.array([False]),
    )
    augmentation = build_augmentation(AugmentConfig(zoom=(0.6, 1.3), shift=0.15))
    stream = TrainingStream(annotation_set(tmp_path, one), augmentation, seed=0)
    moved = Counter()
    for position in range(30):
        image, target = stream[position]
        assert image.shape == (3, 60, 80)
        bright = (image.min(dim=0).values > 0.75).nonzero()  # [P, 2] (row, column)
        (x1, y1), (x2, y2) = bright.min(0).values.flip(0), bright.max(0).values.flip(0) + 1
        seen = torch.stack([x1, y1, x2, y2]).float()
        assert (target["boxes"][0] - seen).abs().max() < 2, position
        moved[tuple(seen.tolist())] += 1
    assert len(moved) > 20


def test_boxes_that_leave_the_image_go_with_their_labels(tmp_path):
    one = record(tmp_path, 0, [[0, 0, 4, 4], [15, 10, 25, 20]])
    augmentation = build_augmentation(AugmentConfig(horizontal_flip=0, zoom=(2.0, 2.0)))
    _, target = TrainingStream(annotation_set(tmp_path, one), augmentation, seed=0)[0]
    assert target["labels"].tolist() == [2]
    assert target["areas"].tolist() == [100]
    assert target["crowd"].tolist() == [False]
    torch.testing.assert_close(
        target["boxes"], torch.tensor([[10.0, 5.0, 30.0, 25.0]]), atol=0.6, rtol=0
    )
