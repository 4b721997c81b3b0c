from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from rcnn_ext.models import Matcher

LOW, BETWEEN = Matcher.BELOW_LOW_THRESHOLD, Matcher.BETWEEN_THRESHOLDS


def row(*spans: tuple[float, float]) -> torch.Tensor:
    """Boxes of height 10 with the given left and right sides: IoU is that of the spans."""
    return torch.tensor([[left, 0.0, right, 10.0] for left, right in spans])


def test_thresholds_are_inclusive_below():
    gt = row((0, 10))
    # IoU 1, 0.5, 0.4, 0.3, 0 with the object
    boxes = row((0, 10), (0, 5), (0, 4), (0, 3), (20, 30))
    matches = Matcher(0.5, 0.4)(gt, boxes)
    assert matches.tolist() == [0, 0, BETWEEN, LOW, LOW]


def test_each_box_takes_the_object_that_it_overlaps_most():
    gt = row((0, 10), (8, 20))
    boxes = row((0, 9), (9, 20), (1, 14))
    matches = Matcher(0.5, 0.5)(gt, boxes)
    assert matches.tolist() == [0, 1, 0]


def test_low_quality_matches_rescue_an_object_without_a_good_box():
    gt = row((0, 10), (100, 102))
    boxes = row((0, 10), (100, 110), (101, 121))
    assert Matcher(0.7, 0.3)(gt, boxes).tolist() == [0, LOW, LOW]
    assert Matcher(0.7, 0.3, allow_low_quality_matches=True)(gt, boxes).tolist() == [0, 1, LOW]


def test_low_quality_matches_include_all_ties():
    gt = row((0, 10))
    boxes = row((0, 4), (6, 10), (3, 7), (0, 3))
    matches = Matcher(0.7, 0.3, allow_low_quality_matches=True)(gt, boxes)
    assert matches.tolist() == [0, 0, 0, BETWEEN]


def test_low_quality_match_keeps_the_boxs_own_best_object():
    # Both objects overlap the only box best; it belongs to the one that it overlaps more.
    gt = row((0, 2), (2, 8))
    boxes = row((0, 20))
    matches = Matcher(0.7, 0.3, allow_low_quality_matches=True)(gt, boxes)
    assert matches.tolist() == [1]


def test_object_that_overlaps_nothing_matches_every_box_without_overlap():
    # torchvision's rule, kept on purpose: its best IoU is 0, and so is that of these boxes.
    gt = row((0, 10), (500, 510))
    boxes = row((0, 10), (100, 110))
    matches = Matcher(0.7, 0.3, allow_low_quality_matches=True)(gt, boxes)
    assert matches.tolist() == [0, 0]


def test_no_objects_means_background_and_no_boxes_means_nothing():
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    assert matcher(torch.zeros(0, 4), row((0, 1), (0, 2))).tolist() == [LOW, LOW]
    assert matcher(row((0, 1)), torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_equals_torchvision(make_boxes, low_quality, seed):
    gt = make_boxes(7, 100, 100, seed=seed)
    # Whole pixels and repeated boxes make ties.
    boxes = torch.cat((make_boxes(300, 100, 100, seed=seed + 50).round(), gt[:3], gt[:3]))
    expected = TorchvisionMatcher(0.5, 0.3, low_quality)(box_iou(gt, boxes))
    assert torch.equal(Matcher(0.5, 0.3, low_quality)(gt, boxes), expected)


@pytest.mark.parametrize("shared", [False, True])
def test_a_batch_is_matched_image_by_image(make_boxes, shared):
    gt = [make_boxes(3, 100, 100), torch.zeros(0, 4), make_boxes(5, 100, 100, seed=1)]
    boxes = make_boxes(3 * 200, 100, 100, seed=2).view(3, 200, 4)
    if shared:
        boxes = boxes[0].expand(3, -1, -1)
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    matches, best = matcher.match_images(gt, boxes)
    for matched, iou, in_image, its_boxes in zip(matches, best, gt, boxes, strict=True):
        assert torch.equal(matched, matcher(in_image, its_boxes))
        best_iou = box_iou(in_image, its_boxes).amax(0) if len(in_image) else torch.zeros(200)
        torch.testing.assert_close(iou, best_iou)


def test_images_may_differ_in_their_number_of_boxes(make_boxes):
    gt = [make_boxes(3, 100, 100), torch.zeros(0, 4), make_boxes(5, 100, 100, seed=1)]
    boxes = [make_boxes(n, 100, 100, seed=n) for n in (40, 20, 0)]
    matcher = Matcher(0.5, 0.3)
    matches, best = matcher.match_images(gt, boxes)
    assert len(best) == 60
    expected = [matcher(*pair) for pair in zip(gt, boxes, strict=True)]
    assert torch.equal(matches, torch.cat(expected))


def test_arguments_are_not_changed(make_boxes):
    gt, boxes = make_boxes(3, 50, 50), make_boxes(20, 50, 50, seed=1)
    before = gt.clone(), boxes.clone()
    Matcher(0.5, 0.3, allow_low_quality_matches=True)(gt, boxes)
    assert torch.equal(gt, before[0])
    assert torch.equal(boxes, before[1])


def test_thresholds_in_the_wrong_order():
    with pytest.raises(ValueError, match=r"background IoU threshold \(0.6\)"):
        Matcher(0.5, 0.6)
