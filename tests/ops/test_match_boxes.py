from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers import brute_force
from tests.helpers.backends import Backend
from tests.helpers.peer import torchvision
from tests.helpers.samples import FLOATING, WIDE, make_boxes
from tests.ops.test_box_iou import DEGENERATE

LOW, BETWEEN = -1, -2

low_quality = pytest.mark.parametrize("low_quality", [False, True], ids=["plain", "low_quality"])


def _torchvision(
    gt: Tensor, boxes: Tensor, high: float, low: float, low_quality: bool, iou: Any = None
) -> tuple[Tensor, Tensor]:
    """Its box_iou (or another), then its Matcher."""
    assert torchvision.ops  # skips where it can't be imported
    from torchvision.models.detection._utils import Matcher

    matrix = (iou or torchvision.ops.box_iou)(gt, boxes)  # [G, P]
    return Matcher(high, low, low_quality)(matrix), matrix.max(dim=0).values


def _check(
    backend: Backend,
    gt: Tensor,
    boxes: Tensor,
    low_quality: bool,
    expected: tuple[Tensor, Tensor] | None = None,
    high: float = 0.5,
    low: float = 0.2,
) -> None:
    """Bit for bit what torchvision gives."""
    wanted = _torchvision(gt, boxes, high, low, low_quality) if expected is None else expected
    matches, best = ops.match_boxes(
        gt.to(backend.device), boxes.to(backend.device), high, low, low_quality
    )
    assert matches.dtype == torch.int64
    assert best.dtype == wanted[1].dtype
    torch.testing.assert_close(matches.cpu(), wanted[0], rtol=0, atol=0)
    torch.testing.assert_close(best.cpu(), wanted[1], rtol=0, atol=0, equal_nan=True)


def _grid(count: int, stride: int = 8) -> Tensor:
    """Anchors ``[count, 4]`` of three shapes, row by row, partly outside of the image."""
    y, x = torch.meshgrid(
        torch.arange(0, 160.0, stride), torch.arange(0, 240.0, stride), indexing="ij"
    )
    half = torch.tensor([[16.0, 16.0], [24.0, 12.0], [12.0, 24.0]])
    centers = torch.stack([x, y], dim=-1).view(-1, 1, 2)
    anchors = torch.cat([centers - half, centers + half], dim=-1).view(-1, 4)
    assert count <= len(anchors)
    return anchors[:count]


def test_by_hand(backend: Backend) -> None:
    gt = torch.tensor([[0.0, 0, 4, 4], [10, 10, 14, 14]], device=backend.device)
    # IoUs: 0.8 with the first; 1/3 with it; 1/6 with the second, its best; none with either.
    boxes = torch.tensor(
        [[0.0, 0, 4, 5], [0, 2, 4, 6], [10, 13, 14, 16], [20, 20, 24, 24]], device=backend.device
    )
    matches, best = ops.match_boxes(gt, boxes, 0.7, 0.3)
    assert matches.tolist() == [0, BETWEEN, LOW, LOW]
    torch.testing.assert_close(best.tolist(), [0.8, 1 / 3, 1 / 6, 0.0])
    matches, _ = ops.match_boxes(gt, boxes, 0.7, 0.3, allow_low_quality_matches=True)
    assert matches.tolist() == [0, BETWEEN, 1, LOW]


@pytest.mark.parametrize("boxes", [1, 5, 128, 255, 256, 257, 300, 1100])
@pytest.mark.parametrize("gts", [1, 3, 20])
@low_quality
def test_equals_torchvision(backend: Backend, gts: int, boxes: int, low_quality: bool) -> None:
    for seed in range(3):
        made = make_boxes(boxes, seed=seed)
        _check(backend, make_boxes(gts, seed=100 + seed), made, low_quality)


@pytest.mark.parametrize("offset", [-30.0, -500.0])
@low_quality
def test_coordinates_below_zero(backend: Backend, offset: float, low_quality: bool) -> None:
    gt = make_boxes(20, seed=2) + offset
    boxes = make_boxes(300, seed=7) + offset
    _check(backend, gt, boxes, low_quality)


@pytest.mark.parametrize("stride", [8, 5])
@low_quality
def test_anchors_in_grid_order(backend: Backend, stride: int, low_quality: bool) -> None:
    gt = make_boxes(12, size=200, seed=3)
    _check(backend, gt, _grid(1700, stride), low_quality)


def _tiles(count: int) -> Tensor:
    """``count * count`` boxes of 8 pixels that share sides and corners, from the origin on."""
    y, x = torch.meshgrid(torch.arange(count) * 8.0, torch.arange(count) * 8.0, indexing="ij")
    corners = torch.stack([x, y], dim=-1).view(-1, 2)
    return torch.cat([corners, corners + 8], dim=-1)


@pytest.mark.parametrize("towards", [-math.inf, 0.0, math.inf])
@low_quality
def test_overlaps_of_one_rounding(backend: Backend, towards: float, low_quality: bool) -> None:
    # Boxes that touch one ground truth, or miss or overlap it by the least that numbers can.
    gt = _tiles(5)
    gt = gt + 2 * gt[:, [0, 1, 0, 1]] + 16
    for shift in (0.0, -90.0):  # with and without signs
        for columns in ([0], [1], [2], [3], [0, 1, 2, 3]):
            boxes = _tiles(17) + shift
            if towards:
                boxes[:, columns] = boxes[:, columns].nextafter(torch.tensor(towards))
            _check(backend, gt + shift, boxes, low_quality)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e-3, 1e4, 1e15])
@pytest.mark.parametrize("offset", [0.0, 1.0, -1.0, 1e3])
@low_quality
def test_sizes_and_places(backend: Backend, scale: float, offset: float, low_quality: bool) -> None:
    # The offset is in units of the size of the image; far away, coordinates fall together.
    gt, boxes = make_boxes(20, seed=4), make_boxes(600, seed=5)
    offset *= float(boxes.max())
    _check(backend, (gt + offset) * scale, (boxes + offset) * scale, low_quality)
    # Boxes beyond all ground truth, on every side, and far around it.
    _check(backend, (gt + offset) * scale, (boxes * 50 - 1000 + offset) * scale, low_quality)
    around = torch.tensor([-1.0, -1.0, 1.0, 1.0]) * 10.0 ** torch.arange(1.0, 11.0)[:, None]
    whole = torch.cat([around, around.clamp(min=-offset), around.clamp(max=32 - offset)]) + offset
    _check(backend, (gt + offset) * scale, whole * scale, low_quality)
    # One axis that is so much longer than the other.
    stretch = torch.tensor([1.0, 1 / scale, 1.0, 1 / scale])
    _check(backend, gt * stretch, boxes * stretch, low_quality)


@low_quality
def test_ends_of_the_number_range(backend: Backend, low_quality: bool) -> None:
    # Ground truth with regular areas whose distances, and one whose places, no float32 holds.
    side = torch.tensor([1.0, 2.0, 4.0, 3.0])
    places = torch.tensor([-3e38, -1e38, -1e30, 0.0, 1e30, 1e38, 3e38])
    x = torch.cartesian_prod(places, side * 1e31)
    flat = torch.stack([x[:, 0], side.repeat(7), x[:, 0] + x[:, 1], 9 - side.repeat(7)], dim=-1)
    for gt in (flat, flat[:, [1, 0, 3, 2]]):
        _check(backend, gt, gt.repeat(20, 1), low_quality)
        _check(backend, gt[8:20], gt.repeat(20, 1), low_quality)
    subnormal = make_boxes(12, seed=8) * torch.tensor([1e-42, 1e12, 1e-42, 1e12])
    _check(backend, subnormal, make_boxes(300) * torch.tensor([1e-42, 1e12, 1e-42, 1e12]), False)


@low_quality
def test_more_ground_truth_than_a_tile(backend: Backend, low_quality: bool) -> None:
    _check(backend, make_boxes(300, seed=1), make_boxes(200), low_quality)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@low_quality
def test_dtypes(backend: Backend, dtype: torch.dtype, low_quality: bool) -> None:
    gt, boxes = make_boxes(9, seed=1).to(dtype), make_boxes(150).to(dtype)
    # Half types: the IoUs of box_iou, which computes in float32.
    wanted = _torchvision(gt, boxes, 0.5, 0.2, low_quality, ops.box_iou)
    _check(backend, gt, boxes, low_quality, wanted)
    matches, best = brute_force.match_boxes(gt, boxes, 0.5, 0.2, low_quality)
    assert wanted[0].tolist() == matches
    assert wanted[1].tolist() == best


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_integers(backend: Backend, dtype: torch.dtype) -> None:
    gt, boxes = make_boxes(9, seed=1).to(dtype), make_boxes(150).to(dtype)
    # In 64 bits, as box_iou has it: differences of bytes wrap around in torchvision.
    _check(backend, gt, boxes, True, _torchvision(gt.long(), boxes.long(), 0.5, 0.2, True))


def test_dtypes_promote(backend: Backend) -> None:
    gt, boxes = make_boxes(9, seed=1).double(), make_boxes(150)
    _check(backend, gt, boxes, True, _torchvision(gt, boxes.double(), 0.5, 0.2, True))


@low_quality
def test_the_first_of_equal_ground_truths(backend: Backend, low_quality: bool) -> None:
    gt = make_boxes(4).repeat_interleave(3, dim=0)
    boxes = torch.cat([gt, make_boxes(200, seed=1)])
    _check(backend, gt, boxes, low_quality)
    matches, _ = ops.match_boxes(gt.to(backend.device), gt.to(backend.device), 0.5, 0.2)
    assert matches.tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9]


def test_a_low_quality_match_may_be_another_ground_truth(backend: Backend) -> None:
    # The second's best box is the only one, which overlaps the first more.
    gt = torch.tensor([[0.0, 0, 4, 4], [0, 0, 1, 1]])
    boxes = torch.tensor([[0.0, 0, 4, 2], [8, 8, 9, 9]])
    _check(backend, gt, boxes, True, high=0.9, low=0.8)
    matches, _ = ops.match_boxes(
        gt.to(backend.device), boxes.to(backend.device), 0.9, 0.8, allow_low_quality_matches=True
    )
    assert matches.tolist() == [0, LOW]


def test_all_boxes_that_share_the_best_iou(backend: Backend) -> None:
    gt = torch.tensor([[0.0, 0, 8, 8], [40, 40, 48, 48]])
    inside = torch.tensor([[1.0, 1, 3, 3]]) + torch.randint(0, 5, (700, 1)) % 5
    _check(backend, gt[:1], inside, True)
    _check(backend, gt, torch.cat([inside, make_boxes(60)]), True)


@pytest.mark.parametrize("irregular", [False, True])
def test_more_tied_boxes_than_the_buffer_holds(backend: Backend, irregular: bool) -> None:
    # On the CPU, blocks of 256 boxes are noted for each ground truth, up to a bound.
    gt = make_boxes(100, seed=1)
    boxes = torch.tensor([[8.0, 8, 40, 40]]).repeat(5200, 1)
    boxes[4000:4010] = make_boxes(10)
    if irregular:
        boxes[::256] = 5  # points
    _check(backend, gt, boxes, True, high=0.9, low=0.1)


def test_ground_truth_that_overlaps_nothing(backend: Backend) -> None:
    # Its best IoU is 0, which every box without overlap has: they all are matched.
    gt = torch.cat([torch.tensor([[500.0, 500, 510, 510]]), make_boxes(3, seed=1)])
    boxes = make_boxes(300)
    _check(backend, gt, boxes, True)
    _check(backend, gt.roll(1, 0), boxes, True)
    matches, best = ops.match_boxes(gt.to(backend.device), boxes.to(backend.device), 0.9, 0.8, True)
    assert (matches[best == 0] == 0).all()
    assert (matches >= 0).all()
    # With boxes of no extent, whose IoUs are 0 or NaN, in some of the blocks.
    boxes[150] = torch.tensor([5.0, 5, 5, 5])
    _check(backend, gt, boxes, True)
    gt[2] = torch.tensor([5.0, 5, 5, 5])
    _check(backend, gt, boxes, True)


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
@low_quality
def test_degenerate_boxes(
    backend: Backend, dtype: torch.dtype, case: str, low_quality: bool
) -> None:
    odd = torch.tensor(DEGENERATE[case], dtype=dtype)
    even = make_boxes(140).to(dtype)
    for gt, boxes in (
        (odd, odd),
        (odd, even),
        (even[:5], odd),
        (even[:5], torch.cat([even, odd, even])),
        (torch.cat([even[:3], odd]), torch.cat([odd, even, odd])),
    ):
        _check(backend, gt, boxes, low_quality)
        for row in odd:
            _check(backend, gt, torch.cat([even, row[None]]), low_quality)


def test_nan_is_the_highest(backend: Backend) -> None:
    gt = torch.tensor([[0.0, 0, 4, 4], [0, math.nan, 4, 4], [0, 0, 4, 4]])
    boxes = torch.tensor([[0.0, 0, 4, 4], [math.nan, 0, 4, 4]])
    _check(backend, gt, boxes, True)
    matches, best = ops.match_boxes(gt.to(backend.device), boxes.to(backend.device), 0.5, 0.2)
    assert matches.tolist() == [1, 0]
    assert best.isnan().all()


@pytest.mark.parametrize("threshold", [1 / 3, 0.3, 0.7, 0.5])
def test_thresholds_at_rounding_distance(backend: Backend, threshold: float) -> None:
    # IoUs of n / 10 and 1 / 3 in float32 against thresholds in float64.
    gt = torch.tensor([[0.0, 0, 1, 30]])
    boxes = torch.tensor([[0.0, 0, 1, n] for n in range(1, 31)])
    near = torch.tensor(threshold)
    for bound in (threshold, float(near), float(near.nextafter(near + 1)), math.inf, 0.0):
        _check(backend, gt, boxes, False, high=bound, low=min(bound, threshold))


@low_quality
def test_empty(backend: Backend, low_quality: bool) -> None:
    boxes = make_boxes(5).to(backend.device)
    matches, best = ops.match_boxes(boxes[:0], boxes, 0.5, 0.2, low_quality)
    assert matches.tolist() == [LOW] * 5
    assert best.tolist() == [0.0] * 5
    for gt in (boxes, boxes[:0]):
        matches, best = ops.match_boxes(gt, boxes[:0], 0.5, 0.2, low_quality)
        assert matches.shape == best.shape == (0,)
        assert matches.dtype == torch.int64
        assert best.dtype == torch.float32


def _batch() -> tuple[list[Tensor], list[Tensor]]:
    gts = [make_boxes(n, seed=n) for n in (3, 0, 20, 1, 2)]
    boxes = [make_boxes(n, seed=50 + n) for n in (150, 7, 300, 0, 1)]
    return gts, boxes


@low_quality
def test_batch_of_lists(backend: Backend, low_quality: bool) -> None:
    gts, boxes = ([b.to(backend.device) for b in made] for made in _batch())
    matches, best = ops.batched_match_boxes(gts, boxes, 0.5, 0.2, low_quality)
    parts = [len(b) for b in boxes]
    assert len(matches) == len(best) == sum(parts)
    for gt, b, m, iou in zip(gts, boxes, matches.split(parts), best.split(parts), strict=True):
        wanted = ops.match_boxes(gt, b, 0.5, 0.2, low_quality)
        assert torch.equal(m, wanted[0])
        assert torch.equal(iou, wanted[1])


@low_quality
def test_batch_of_shared_and_stacked_boxes(backend: Backend, low_quality: bool) -> None:
    gts = [gt.to(backend.device) for gt in _batch()[0]]
    shared = make_boxes(200).to(backend.device)
    stacked = make_boxes(5 * 90, seed=9).view(5, 90, 4).to(backend.device)
    for boxes in (shared, shared.expand(5, -1, -1), stacked, stacked[:, :0]):
        matches, best = ops.batched_match_boxes(gts, boxes, 0.5, 0.2, low_quality)
        assert matches.shape == best.shape == (5, boxes.shape[-2])
        for number, gt in enumerate(gts):
            in_image = boxes if boxes.dim() == 2 else boxes[number]
            wanted = ops.match_boxes(gt, in_image, 0.5, 0.2, low_quality)
            assert torch.equal(matches[number], wanted[0])
            assert torch.equal(best[number], wanted[1])


def test_batch_of_many_images(backend: Backend) -> None:
    # More than one launch takes.
    gts = [make_boxes(number % 3, seed=number).to(backend.device) for number in range(70)]
    boxes = make_boxes(40).to(backend.device)
    matches, _ = ops.batched_match_boxes(gts, boxes, 0.5, 0.2, True)
    for number, gt in enumerate(gts):
        assert torch.equal(matches[number], ops.match_boxes(gt, boxes, 0.5, 0.2, True)[0])


def test_batch_of_nothing(backend: Backend) -> None:
    boxes = make_boxes(4).to(backend.device)
    assert ops.batched_match_boxes([], boxes, 0.5, 0.2)[0].shape == (0, 4)
    assert ops.batched_match_boxes([], [], 0.5, 0.2)[0].shape == (0,)
    none = [boxes[:0], boxes[:0]]
    assert ops.batched_match_boxes(none, boxes, 0.5, 0.2)[0].tolist() == [[LOW] * 4] * 2
    assert ops.batched_match_boxes(none, none, 0.5, 0.2)[0].shape == (0,)


def test_layout_does_not_matter(backend: Backend) -> None:
    gt, boxes = make_boxes(6, seed=1).to(backend.device), make_boxes(50).to(backend.device)
    expected = ops.match_boxes(gt, boxes, 0.5, 0.2, True)
    result = ops.match_boxes(gt.t().contiguous().t(), boxes.repeat(1, 2)[:, :4], 0.5, 0.2, True)
    assert torch.equal(result[0], expected[0])
    assert torch.equal(result[1], expected[1])


def test_has_no_derivative_and_changes_nothing(backend: Backend) -> None:
    gt = make_boxes(6, seed=1).to(backend.device).requires_grad_()
    boxes = make_boxes(50).to(backend.device).requires_grad_()
    before = boxes.detach().clone()
    for result in (
        ops.match_boxes(gt, boxes, 0.5, 0.2, True),
        ops.batched_match_boxes([gt], boxes, 0.5, 0.2, True),
        ops.batched_match_boxes([gt], [boxes], 0.5, 0.2, True),
    ):
        assert not result[0].requires_grad
        assert not result[1].requires_grad
    assert torch.equal(boxes, before)
    assert boxes._version == 0


def test_results_do_not_depend_on_the_number_of_threads(native: Backend) -> None:
    gts = [make_boxes(60, size=200, seed=seed).to(native.device) for seed in range(2)]
    boxes = torch.cat([_grid(1700), make_boxes(4000, size=240)]).to(native.device)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.batched_match_boxes(gts, boxes, 0.5, 0.2, True))
    finally:
        torch.set_num_threads(threads)
    for matches, best in results[1:]:
        assert torch.equal(matches, results[0][0])
        assert torch.equal(best, results[0][1])
