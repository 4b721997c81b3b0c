"""The rows of the table "Deliberate differences" of the page on torchvision that are of operators.

Both sides of each row: a change of torchvision's that ends a difference should end its row.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.peer import torchvision


@pytest.mark.parametrize(
    ("name", "along"), [("box_iou", 0.05), ("distance_box_iou", 0.07), ("complete_box_iou", 0.07)]
)
def test_gradients_of_touching_boxes(name: str, along: float) -> None:
    def gradient(module: object) -> list[float]:
        left = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)
        right = torch.tensor([[10.0, 0, 20, 10]])
        (grad,) = torch.autograd.grad(getattr(module, name)(left, right), left)
        return grad[0].tolist()

    # The right edge of the left box: of growing overlap here.
    assert gradient(ops)[2] == pytest.approx(along)
    assert gradient(torchvision.ops)[2] in (pytest.approx(along), pytest.approx(along - 0.05))


def test_finite_results_beside_features_that_are_not() -> None:
    features = torch.ones(1, 1, 6, 6)
    features[0, 0, :, 3] = math.inf
    rois = torch.tensor([[0.0, 2, 2, 3, 3]])  # a sample at the center of pixel 2
    arguments = (features, rois, 1, 1.0, 1, True)
    assert ops.roi_align(*arguments).item() == 1
    assert torchvision.ops.roi_align(*arguments).isnan()


def test_bins_of_minus_infinity() -> None:
    features = torch.full((1, 1, 4, 4), -math.inf)
    rois = torch.tensor([[0.0, 0, 0, 3, 3]])
    assert ops.roi_pool(features, rois, 1).item() == -math.inf
    assert torchvision.ops.roi_pool(features, rois, 1).item() == torch.finfo(torch.float32).min


def _levels(module: object, boxes: Tensor, image: tuple[int, int] = (128, 128)) -> Tensor:
    """Return what a pyramid of 2 everywhere and 3 everywhere gives for boxes."""
    height, width = (-(-side // 32) * 32 for side in image)
    maps = {
        name: torch.full((1, 1, height // stride, width // stride), value)
        for name, stride, value in (("0", 4, 2.0), ("1", 8, 3.0))
    }
    pooler = module.MultiScaleRoIAlign(["0", "1"], 1, 2)  # type: ignore[attr-defined]
    pooled: Tensor = pooler(maps, [boxes], [image]).flatten()
    return pooled if len(boxes) else torch.tensor(pooler.scales)


def test_levels_of_rois_that_are_inverted_along_one_side() -> None:
    # The root of a negative area is NaN: no level at all in torchvision.
    boxes = torch.tensor([[50.0, 10, 10, 50], [10, 50, 50, 10], [10, 10, 50, 50]])
    assert _levels(ops, boxes).tolist() == [2, 2, 2]
    assert _levels(torchvision.ops, boxes).tolist() == [0, 0, 2]


def test_strides_are_measured_along_the_longer_side() -> None:
    # 20 rows are padded to 32, which makes 8 rows of stride 4: nearer to stride 2.
    none = torch.empty(0, 4)
    assert _levels(ops, none, (20, 100)).tolist() == [1 / 4, 1 / 8]
    assert _levels(torchvision.ops, none, (20, 100)).tolist() == [1 / 2, 1 / 4]


def test_types_of_errors() -> None:
    features, boxes = torch.zeros(1, 1, 4, 4), torch.zeros(3, 4)
    wrong = ((boxes, RuntimeError), ([boxes[:, :3]], RuntimeError), ("boxes", TypeError))
    for rois, error in wrong:
        with pytest.raises(error, match="roi_align: expected boxes"):
            ops.roi_align(features, rois, 2)
        with pytest.raises(AssertionError):
            torchvision.ops.roi_align(features, rois, 2)
    with pytest.raises(RuntimeError, match="roi_align: expected one tensor of boxes"):
        ops.roi_align(features, [], 2)
    with pytest.raises(RuntimeError, match="box_iou: expected boxes1"):
        ops.box_iou(boxes[:, :3], boxes)
    with pytest.raises(IndexError):
        torchvision.ops.box_iou(boxes[:, :3], boxes)
    with pytest.raises(ValueError, match="expected a map named one of"):
        ops.MultiScaleRoIAlign(["a"], 2, 2)({"0": features}, [boxes], [(4, 4)])
    with pytest.raises(IndexError):
        torchvision.ops.MultiScaleRoIAlign(["a"], 2, 2)({"0": features}, [boxes], [(4, 4)])
