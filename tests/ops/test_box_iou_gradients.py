from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.backends import Backend
from tests.helpers.peer import torchvision
from tests.helpers.samples import HALF, WIDE, assert_near, make_boxes
from tests.ops.test_box_iou import DEGENERATE, measures


def _gradients(module: object, name: str, boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Of a weighted sum over all pairs."""
    a, b = boxes1.clone().requires_grad_(), boxes2.clone().requires_grad_()
    result = getattr(module, name)(a, b)
    weights = torch.linspace(0.5, 1.5, result.numel(), dtype=result.dtype, device=result.device)
    (result * weights.view_as(result)).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    return a.grad, b.grad


def _away_from_kinks(count: int, seed: int) -> Tensor:
    """Boxes that overlap, no two corners of which are equal."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([low, low + 1.5 + torch.rand(count, 2, generator=generator)], dim=1)


# Not of complete IoU: its weight alpha is a constant for the derivative, but not for differences.
@pytest.mark.parametrize("name", ["box_iou", "generalized_box_iou", "distance_box_iou"])
def test_gradcheck(backend: Backend, name: str) -> None:
    function = getattr(ops, name)
    a = _away_from_kinks(2, 0).to(backend.device).requires_grad_()
    b = _away_from_kinks(3, 1).to(backend.device).requires_grad_()
    assert torch.autograd.gradcheck(function, (a, b))
    assert torch.autograd.gradgradcheck(function, (a, b))


def test_complete_box_iou_second_derivatives(backend: Backend) -> None:
    def second(module: object, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        result = module.complete_box_iou(a, b)  # type: ignore[attr-defined]
        first = torch.autograd.grad(result.sin().sum(), (a, b), create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), (a, b))

    a = _away_from_kinks(2, 0).requires_grad_()
    b = _away_from_kinks(3, 1).requires_grad_()
    expected = second(torchvision.ops, a, b)
    device_a = a.detach().to(backend.device).requires_grad_()
    device_b = b.detach().to(backend.device).requires_grad_()
    for actual, wanted in zip(second(ops, device_a, device_b), expected, strict=True):
        torch.testing.assert_close(actual.cpu(), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@measures
def test_gradients_equal_torchvision(backend: Backend, name: str, dtype: torch.dtype) -> None:
    # Many pairs have equal corners; minimum and maximum share the gradient between those. No pair
    # touches (see below for that).
    boxes1 = torch.tensor(
        [[0, 0, 4, 4], [0, 0, 4, 4], [1, 1, 3, 3], [0, 1, 4, 3], [9, 0, 12, 4]], dtype=dtype
    )
    boxes2 = torch.cat([boxes1, make_boxes(6).to(dtype) / 16 + 0.03])
    expected = _gradients(torchvision.ops, name, boxes1, boxes2)
    result = _gradients(ops, name, boxes1.to(backend.device), boxes2.to(backend.device))
    for actual, wanted in zip(result, expected, strict=True):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.cpu(), wanted, rtol=1e-4, atol=1e-5)


def test_gradient_of_touching_boxes(backend: Backend) -> None:
    # The overlap of these is 0 wide: its derivative is one-sided, and the side is that of growing
    # overlap, as torch.clamp has had it up to 2.13. (Later versions take the other side.)
    a = torch.tensor([[0.0, 0, 4, 4]], device=backend.device, requires_grad=True)
    b = torch.tensor([[4.0, 0, 8, 4]], device=backend.device, requires_grad=True)
    ops.box_iou(a, b).backward()
    # One more pixel in x makes the overlap 4 of a union of 32.
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.tolist() == [[0, 0, 0.125, 0]]
    assert b.grad.tolist() == [[-0.125, 0, 0, 0]]


@pytest.mark.parametrize("case", ["a point, a line, a box", "not finite"])
@measures
def test_gradients_of_degenerate_boxes_are_nan_where_torchvisions_are(
    backend: Backend, name: str, case: str
) -> None:
    boxes = torch.tensor(DEGENERATE[case], dtype=torch.float32)
    expected = _gradients(torchvision.ops, name, boxes, boxes)
    result = _gradients(ops, name, boxes.to(backend.device), boxes.to(backend.device))
    for actual, wanted in zip(result, expected, strict=True):
        assert torch.equal(actual.cpu().isnan(), wanted.isnan())


@pytest.mark.parametrize("dtype", HALF, ids=str)
@measures
def test_half_gradients(backend: Backend, name: str, dtype: torch.dtype) -> None:
    boxes1, boxes2 = make_boxes(6).to(dtype), make_boxes(7, seed=1).to(dtype)
    expected = _gradients(ops, name, boxes1.double(), boxes2.double())
    result = _gradients(ops, name, boxes1.to(backend.device), boxes2.to(backend.device))
    for actual, wanted in zip(result, expected, strict=True):
        assert actual.dtype == dtype
        torch.testing.assert_close(
            actual.cpu().double(), wanted, rtol=torch.finfo(dtype).eps, atol=2e-5
        )


@measures
def test_gradient_of_one_argument(backend: Backend, name: str) -> None:
    fixed = make_boxes(4).to(backend.device)
    boxes = make_boxes(5, seed=1).to(backend.device).requires_grad_()
    both = _gradients(ops, name, fixed, boxes.detach())
    for order in ((fixed, boxes), (boxes, fixed)):
        boxes.grad = None
        result = getattr(ops, name)(*order)
        weights = torch.linspace(0.5, 1.5, result.numel(), device=backend.device)
        (result * weights.view_as(result)).sum().backward()
        assert boxes.grad is not None
        if order[1] is boxes:
            assert torch.equal(boxes.grad, both[1])
        assert fixed.grad is None


@measures
def test_gradient_of_broadcast_boxes(backend: Backend, name: str) -> None:
    boxes1 = make_boxes(6).view(2, 3, 4).double().to(backend.device)
    boxes2 = make_boxes(4, seed=1).double().to(backend.device)
    grad1, grad2 = _gradients(ops, name, boxes1, boxes2)
    flat1, flat2 = _gradients(ops, name, boxes1.view(6, 4), boxes2)
    assert_near(grad1.view(6, 4), flat1)
    assert_near(grad2, flat2)


@measures
def test_deterministic(native: Backend, name: str) -> None:
    boxes1 = make_boxes(300).to(native.device)
    boxes2 = make_boxes(500, seed=1).to(native.device)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(_gradients(ops, name, boxes1, boxes2))
    finally:
        torch.set_num_threads(threads)
    for grad1, grad2 in results[1:]:
        assert torch.equal(grad1, results[0][0])
        assert torch.equal(grad2, results[0][1])
