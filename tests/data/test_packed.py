"""Image records in a few arrays that processes share."""

from __future__ import annotations

import copy
import dataclasses
import gc
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.transforms import v2

from rcnn_ext.data import (
    AnnotationSet,
    ClassList,
    ImageRecord,
    PackedImages,
    Segmentation,
    TrainingStream,
)
from rcnn_ext.data.sampling import SampleOrder, repeat_factors
from tests.helpers.run_python import run_python

SQUARE = Segmentation((np.array([[1, 1], [9, 1], [9, 9], [1, 9]], dtype=np.float32),))


def made(index, objects, **more):
    corners = np.arange(2 * objects, dtype=np.float32).reshape(-1, 2) + index
    flags = np.arange(objects) % 2 == 1
    return ImageRecord(
        index,
        Path(f"folder {index}/bild-ä{index}.jpg"),
        640 + index,
        480,
        np.concatenate([corners, corners + 20], axis=1),
        np.arange(1, objects + 1),
        np.full(objects, 400 + index, dtype=np.float32),
        flags,
        difficult=~flags,
        **more,
    )


def records():
    return [
        made(3, 2, origin=(Path("a.json"), 7), segmentations=(SQUARE, None)),
        made(0, 0),
        made(-5, 3, own_id="0001_b", origin=(Path("a.json"), None)),
        made(9, 1, own_id=2.5, truncated=np.array([True])),
    ]


def assert_same(found, expected):
    for field in dataclasses.fields(ImageRecord):
        value, wanted = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(wanted, np.ndarray):
            np.testing.assert_array_equal(value, wanted, err_msg=field.name)
        elif field.name == "segmentations":
            value, wanted = (one or (None,) * len(expected.boxes) for one in (value, wanted))
            assert [one and one.to_bytes() for one in value] == [
                one and one.to_bytes() for one in wanted
            ]
        else:
            assert (value, type(value)) == (wanted, type(wanted))


def test_records_come_back_as_they_were():
    images = PackedImages.pack(records())
    assert len(images) == 4
    for found, expected in zip(images, records(), strict=True):
        assert_same(found, expected)
    assert_same(images[-1], records()[3])
    assert [record.file_id for record in images] == [3, 0, "0001_b", 2.5]
    first = images[0]
    assert (first.boxes.dtype, first.labels.dtype) == (np.float32, np.int64)
    assert PackedImages.pack(images) is images
    with pytest.raises(IndexError):
        images[4]


def test_slices_choices_and_objects_are_packed_too():
    images, plain = PackedImages.pack(records()), records()
    assert images[:] is images
    assert images[:None] is images
    for part, expected in (
        (images[1:], plain[1:]),
        (images[::-1], plain[::-1]),
        (images[2:2], []),
        (images.take([2, 0]), [plain[2], plain[0]]),
    ):
        assert isinstance(part, PackedImages)
        for found, wanted in zip(part, expected, strict=True):
            assert_same(found, wanted)
    kept = images.keep_objects(~images.crowd)
    for found, wanted in zip(kept, plain, strict=True):
        assert_same(found, wanted.select(~wanted.crowd))
    assert images.keep_objects(np.ones(6, dtype=bool)) is images
    assert list(images.paths()) == [record.path for record in plain]
    assert images.counts.tolist() == [2, 0, 3, 1]
    assert images.object_images().tolist() == [0, 0, 2, 2, 2, 3]


def test_nothing_of_it_can_be_written_but_records_are_the_callers():
    images = PackedImages.pack(records())
    with pytest.raises(ValueError, match="read-only"):
        images.boxes[0, 0] = 1
    images[0].boxes[:] = 99
    assert_same(images[0], records()[0])


def test_columns_that_do_not_fit_together_are_refused():
    broken = dataclasses.replace(made(1, 2), labels=np.array([1]))
    with pytest.raises(ValueError, match="differ in length"):
        PackedImages.pack([broken])
    with pytest.raises(ValueError, match="beyond 64 bits"):
        PackedImages.pack([dataclasses.replace(made(1, 0), image_id=2**70)])


def test_sets_pack_what_they_are_given():
    one = AnnotationSet(Path("made"), ClassList(("a", "b", "c"), (1, 2, 3)), tuple(records()))
    assert isinstance(one.images, PackedImages)
    other = dataclasses.replace(one, images=one.images[:2])
    assert len(other) == 2
    assert len(dataclasses.replace(one, images=(one.images[2],))) == 1
    for copied in (pickle.loads(pickle.dumps(one.images)), copy.deepcopy(one.images)):
        for found, wanted in zip(copied, records(), strict=True):
            assert_same(found, wanted)


def many(count):
    flat = np.random.default_rng(0).random((count * 8, 2), dtype=np.float32) * 100
    images = PackedImages.from_arrays(
        image_ids=np.arange(count),
        paths=[f"/data/images/{i:012d}.jpg" for i in range(count)],
        sizes=np.full((count, 2), 640),
        counts=np.full(count, 8),
        boxes=np.concatenate([flat, flat + 20], axis=1),
        labels=1 + np.arange(count * 8) // 3 % 50,
        areas=np.full(count * 8, 400),
        crowd=np.zeros(count * 8, dtype=bool),
    )
    return AnnotationSet(
        Path("made"), ClassList(tuple(map(str, range(50))), tuple(range(50))), images
    )


def _kilobytes(what):
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(what))


def _look_at_all(images):
    return sum(float(record.boxes[0, 0]) + len(record.path.name) for record in images)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc of Linux")
def test_a_forked_worker_that_sees_every_record_copies_less_than_a_tenth():
    # In a process of its own: what earlier tests left behind would be copied too.
    script = "from tests.data.test_packed import growth_of_a_fork; print(*growth_of_a_fork())"
    grown, packed = map(int, run_python(script).split())
    assert grown < packed / 10


def growth_of_a_fork() -> tuple[int, int]:
    """Return how much a forked worker grows that sees every record, and the size of all, bytes."""
    annotations = many(60_000)
    stream = TrainingStream(annotations, v2.Identity(), seed=0)
    order = SampleOrder(60_000, 0, repeat_factors(stream.records, 0.3))
    assert order.positions_per_epoch > 1.2 * len(annotations)
    gc.collect()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        _settle()
        SampleOrder(9, 0, np.full(9, 1.5)).index(0)  # Code that is run for the first time.
        before = _kilobytes("Private_Dirty:")
        _look_at_all(annotations.images)
        epoch = range(60_000, 140_000)  # The end of one, and the beginning of another.
        _look_at_all(stream.records[order.index(position)] for position in epoch)
        os.write(write_end, str(_kilobytes("Private_Dirty:") - before).encode())
        os._exit(0)
    os.close(write_end)
    grown = int(os.read(read_end, 100))
    os.waitpid(child, 0)
    return grown * 1024, annotations.images.nbytes


def _settle():
    """Let Python copy what it copies in any worker, whatever the annotations are."""
    gc.collect()  # Writes to every object of the test run.
    for index in range(100_000):  # Paths go through a table of all strings, which is rebuilt.
        Path(f"/folder/{index}.jpg")


def _report_of_child(images, results):
    _settle()
    before = _kilobytes("Private_")
    total = _look_at_all(images)
    results.put((total, _kilobytes("Private_") - before))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc of Linux")
def test_a_spawned_worker_maps_the_same_memory():
    images = many(60_000).images
    spawning = multiprocessing.get_context("spawn")
    results = spawning.Queue()
    child = spawning.Process(target=_report_of_child, args=(images, results))
    child.start()
    total, grown = results.get(timeout=120)
    child.join()
    assert total == _look_at_all(images)
    assert grown * 1024 < images.nbytes / 10
    assert_same(images[5], many(6).images[5])  # Sending it did not move what is here.
