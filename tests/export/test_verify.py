"""How the detections of two runtimes are compared."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from rcnn_ext.data.images import ImageReader
from rcnn_ext.errors import UserError
from rcnn_ext.export.verify import compare, verification_images

HEADS = SimpleNamespace(score_thresh=0.05, detections_per_img=3, nms_thresh=0.5)
DETECTOR: Any = SimpleNamespace(roi_heads=HEADS)
A, B, C = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 0, 50, 10]


def found(*rows: tuple[list[float], int, float]) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor([row[0] for row in rows]).reshape(-1, 4),
        "labels": torch.tensor([row[1] for row in rows], dtype=torch.int64),
        "scores": torch.tensor([row[2] for row in rows]),
    }


def moved(box: list[float], by: float) -> list[float]:
    return [box[0] + by, *box[1:]]


def test_order_among_nearly_equal_scores_does_not_matter() -> None:
    difference = compare(
        found((A, 1, 0.50001), (B, 2, 0.5)), found((B, 2, 0.50002), (moved(A, 0.005), 1, 0.5)),
        DETECTOR,
    )  # fmt: skip
    assert (difference.matched, difference.unmatched) == (2, 0)
    assert difference.box == pytest.approx(0.005, abs=1e-6)
    assert difference.score == pytest.approx(2e-5, abs=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        found((moved(A, 0.02), 1, 0.5)),
        found((A, 2, 0.5)),
        found((A, 1, 0.5002)),
        found(),
        found((A, 1, 0.5), (A, 1, 0.5)),
    ],
)
def test_other_boxes_labels_scores_and_counts_differ(other: dict[str, torch.Tensor]) -> None:
    assert compare(found((A, 1, 0.5)), other, DETECTOR).unmatched > 0
    assert compare(other, found((A, 1, 0.5)), DETECTOR).unmatched > 0
    if len(other["boxes"]) == 1:
        assert compare(found((A, 1, 0.5)), other, DETECTOR).matched == 0


def test_large_pictures_have_larger_pixels() -> None:
    one, other = found((A, 1, 0.5)), found((moved(A, 0.03), 1, 0.5))
    assert compare(one, other, DETECTOR, pixels=2.0).unmatched == 2
    assert compare(one, other, DETECTOR, pixels=4.0).matched == 1


def test_near_ties_explain_a_lack() -> None:
    # At the threshold.
    assert compare(found((A, 1, 0.5), (B, 1, 0.05005)), found((A, 1, 0.5)), DETECTOR).unmatched == 0
    assert compare(found((A, 1, 0.5), (B, 1, 0.0502)), found((A, 1, 0.5)), DETECTOR).unmatched == 1
    # The last for which there is room.
    first = [(A, 1, 0.9), (B, 1, 0.8)]
    one, other = found(*first, (C, 1, 0.30001)), found(*first, (C, 2, 0.3))
    assert compare(one, other, DETECTOR).unmatched == 0
    other = found(*first, (C, 2, 0.2))
    assert compare(one, other, DETECTOR).unmatched == 1
    # Either of two overlapping boxes suppresses the other.
    one, other = found((A, 1, 0.6)), found((moved(A, 2), 1, 0.60001))
    assert compare(one, other, DETECTOR).unmatched == 0
    other = found((moved(A, 2), 2, 0.60001))
    assert compare(one, other, DETECTOR).unmatched == 2
    # An IoU at the threshold suppresses or not.
    half = [0.0, 0, 10, 5.001]
    one, other = found((A, 1, 0.9), (half, 1, 0.4)), found((A, 1, 0.9))
    assert compare(one, other, DETECTOR).unmatched == 0
    one = found((A, 1, 0.9), ([0.0, 0, 10, 4], 1, 0.4))
    assert compare(one, other, DETECTOR).unmatched == 1


def test_a_localizer_has_no_near_ties() -> None:
    detector: Any = SimpleNamespace()
    assert compare(found((A, 1, 0.01)), found((B, 1, 0.01)), detector).unmatched == 2


def test_images_are_three_of_three_shapes(tmp_path: Path) -> None:
    transform = SimpleNamespace(image_mean=[0.5] * 3, min_size=(96,))
    detector: Any = SimpleNamespace(transform=transform)
    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "a.png")
    for pictures in ((), (tmp_path,)):
        images = verification_images(detector, pictures, ImageReader())
        assert len({image.shape for image in images}) == len(images) == 3
        for image in images:
            assert image.shape[0] == 3
            assert 0 <= image.min() < image.max() <= 1
    assert torch.equal(images[0][:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    with pytest.raises(UserError, match="does not exist"):
        verification_images(detector, (tmp_path / "none",), ImageReader())
