from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rcnn_ext.data.formats.pennfudan import instances_of, read_pennfudan
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from tests.helpers.real_data import REAL, needs_real_data


@pytest.fixture
def folder(tmp_path):
    for name in ("PNGImages", "PedMasks"):
        (tmp_path / name).mkdir()
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[2:9, 4:7] = 1
    mask[0, 0] = 5  # Numbers may have gaps.
    for index in (1, 2):
        Image.new("RGB", (30, 20)).save(tmp_path / "PNGImages" / f"Ped0000{index}.png")
        Image.fromarray(mask).save(tmp_path / "PedMasks" / f"Ped0000{index}_mask.png")
    return tmp_path


def test_instances_become_boxes(folder):
    found = read_pennfudan(folder)
    assert found.classes.names == ("person",)
    assert [r.image_id for r in found.images] == [1, 2]
    for record in found.images:
        np.testing.assert_array_equal(record.boxes, [[4, 2, 7, 9], [0, 0, 1, 1]])
        assert record.areas.tolist() == [21, 1]
        assert record.labels.tolist() == [1, 1]
    assert read_pennfudan(folder, classes=["pedestrian"]).classes.names == ("pedestrian",)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
    st.sampled_from([np.uint8, np.int32, np.uint16]),
)
def test_boxes_are_the_tightest(height, width, random, dtype):
    mask = np.array(
        [[random.choice([0, 0, 1, 3, 200]) for _ in range(width)] for _ in range(height)], dtype
    )
    places, boxes, areas = instances_of(mask)
    numbers = sorted(set(mask.ravel().tolist()) - {0})
    assert len(boxes) == len(areas) == len(numbers)
    for number, (x1, y1, x2, y2), area in zip(numbers, boxes, areas, strict=True):
        inside = np.zeros(mask.shape, dtype=bool)
        inside[y1:y2, x1:x2] = True
        own = mask == number
        assert own.sum() == area
        assert not (own & ~inside).any()
        np.testing.assert_array_equal(places == 1 + numbers.index(number), own)
        window = own[y1:y2, x1:x2]
        assert window[0].any()
        assert window[-1].any()
        assert window[:, 0].any()
        assert window[:, -1].any()


def test_broken_masks_are_named(folder):
    masks = folder / "PedMasks"
    Image.new("L", (31, 20)).save(masks / "Ped00002_mask.png")
    report = Report()
    assert len(read_pennfudan(folder, report=report)) == 1
    assert "given as 31x20, but Ped00002.png is 30x20" in report.errors()[0].message
    Image.new("RGB", (30, 20)).save(masks / "Ped00002_mask.png")
    with pytest.raises(UserError, match="Ped00002_mask.png: the mask has 3 channels"):
        read_pennfudan(folder)
    (masks / "Ped00002_mask.png").write_bytes((masks / "Ped00001_mask.png").read_bytes()[:60])
    with pytest.raises(UserError, match="Ped00002_mask.png: the mask is damaged"):
        read_pennfudan(folder)
    (masks / "Ped00002_mask.png").rename(masks / "Ped00003_mask.png")
    report = Report()
    read_pennfudan(folder, report=report)
    assert [p.severity for p in report.problems] == ["error", "warning"]
    assert "Ped00002_mask.png does not exist" in report.problems[0].message
    assert report.problems[1].message == "a mask without an image"


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no folders PNGImages and PedMasks"):
        read_pennfudan(tmp_path)


@needs_real_data
def test_real_masks():
    found = read_pennfudan(REAL / "PennFudanPed")
    assert len(found) == 24
    assert sum(len(r.boxes) for r in found.images) == 77
    for record in found.images:
        sides = record.boxes[:, 2:] - record.boxes[:, :2]
        assert (record.areas <= sides.prod(axis=1)).all()
