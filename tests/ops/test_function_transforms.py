"""The differentiable operators under torch.func: grad, vmap of grad, jacrev, jvp, jacfwd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from rcnn_ext import ops
from tests.helpers.backends import Backend
from tests.helpers.samples import make_boxes, make_rois


def _boxes(count: int, seed: int) -> Tensor:
    # No two coordinates equal, where derivatives are one-sided.
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.rand(count, 4, generator=generator, dtype=torch.float64) / 10
    return make_boxes(count, seed=seed).double() + offsets


def _with_other(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: getattr(ops, name)(x, OTHER)


ROIS = make_rois(6, 2, size=28)
OTHER = _boxes(5, 1)
IOU = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou", "box_ios")

# A differentiable function of one tensor, and the tensor.
POOLING: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "roi_align": (
        lambda x: ops.roi_align(x, ROIS.to(x.dtype), 2, 0.25, 2, True),
        torch.rand(2, 3, 7, 8, dtype=torch.float64),
    ),
    "multiscale_roi_align": (
        lambda x: ops.multiscale_roi_align(
            [x, x[..., ::2, ::2]],
            ROIS.to(x.dtype),
            2,
            [1 / 4, 1 / 8],
            2,
            True,
            canonical_scale=40.0,
        ),
        torch.rand(2, 3, 7, 8, dtype=torch.float64),
    ),
    "roi_pool": (
        lambda x: ops.roi_pool(x, ROIS.to(x.dtype), 2, 0.25),
        torch.rand(2, 3, 7, 8, dtype=torch.float64),
    ),
}
FUNCTIONS = {
    **POOLING,
    **{name: (_with_other(name), _boxes(4, 0)) for name in IOU},
}
HAVE_FORWARD_MODE = [name for name in FUNCTIONS if name != "roi_pool"]


def _loss(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: FUNCTIONS[name][0](x).square().sum()


def _gradient(name: str, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (result,) = torch.autograd.grad(_loss(name)(x), x)
    return result


@pytest.mark.parametrize("name", FUNCTIONS)
def test_grad(native: Backend, name: str) -> None:
    x = FUNCTIONS[name][1]
    torch.testing.assert_close(grad(_loss(name))(x), _gradient(name, x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_each_sample(native: Backend, name: str) -> None:
    x = FUNCTIONS[name][1]
    samples = torch.stack([x, x.flip(0), x * 1.25])
    expected = torch.stack([_gradient(name, sample) for sample in samples])
    torch.testing.assert_close(vmap(grad(_loss(name)))(samples), expected)
    torch.testing.assert_close(
        vmap(grad(_loss(name)), in_dims=-1)(samples.movedim(0, -1)), expected
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jacrev(native: Backend, name: str) -> None:
    function, x = FUNCTIONS[name]
    expected = torch.autograd.functional.jacobian(function, x)
    torch.testing.assert_close(jacrev(function)(x), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives(native: Backend, name: str) -> None:
    x = FUNCTIONS[name][1]
    along = torch.rand_like(x)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(_loss(name)(leaf), leaf, create_graph=True)
    (expected,) = torch.autograd.grad((first * along).sum(), leaf)
    result = grad(lambda x: (grad(_loss(name))(x) * along).sum())(x)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("name", IOU)
def test_hessian(native: Backend, name: str) -> None:
    x = FUNCTIONS[name][1]
    torch.testing.assert_close(hessian(_loss(name))(x), jacrev(jacrev(_loss(name)))(x))


@pytest.mark.parametrize("name", HAVE_FORWARD_MODE)
def test_forward_mode(native: Backend, name: str) -> None:
    function, x = FUNCTIONS[name]
    along = torch.rand_like(x)
    jacobian = torch.autograd.functional.jacobian(function, x)
    expected = (jacobian * along).flatten(-x.dim()).sum(-1)
    value, derivative = jvp(function, (x,), (along,))
    torch.testing.assert_close(value, function(x))
    torch.testing.assert_close(derivative, expected)
    torch.testing.assert_close(jacfwd(function)(x), jacobian)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(function(forward_ad.make_dual(x, along)))
        torch.testing.assert_close(dual.tangent, expected)
        assert forward_ad.unpack_dual(function(x)).tangent is None


def test_forward_mode_of_detections(native: Backend) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, deltas = (torch.randn(6, n, generator=generator).double() for n in (3, 12))
    rois, ids, sizes = _boxes(6, 2), torch.arange(6) % 2, torch.tensor([[64, 64], [50, 60]])

    def detect(logits: Tensor, deltas: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        found = ops.postprocess_detections(logits, deltas, rois, ids, sizes)
        return found.boxes, found.scores

    inputs = (logits, deltas, rois)
    along = tuple(map(torch.rand_like, inputs))
    values, derivatives = jvp(detect, inputs, along)
    jacobians = torch.autograd.functional.jacobian(detect, inputs)
    for value, derivative, by_inputs, own in zip(
        values, derivatives, jacobians, detect(*inputs), strict=True
    ):
        parts = zip(by_inputs, along, strict=True)
        expected = sum((jacobian * a).sum(dim=(-2, -1)) for jacobian, a in parts)
        torch.testing.assert_close(value, own)
        torch.testing.assert_close(derivative, expected)
        assert derivative.abs().max() > 0


def test_forward_mode_along_the_second_boxes(native: Backend) -> None:
    boxes, other = _boxes(4, 0), OTHER
    for name in IOU:
        operator = getattr(ops, name)
        _, both = jvp(operator, (boxes, other), (boxes, other))
        parts = [
            jvp(lambda x, f=operator: f(x, other), (boxes,), (boxes,))[1],
            jvp(lambda y, f=operator: f(boxes, y), (other,), (other,))[1],
        ]
        torch.testing.assert_close(both, parts[0] + parts[1])


def test_forward_mode_of_roi_pool_is_refused_by_name(native: Backend) -> None:
    function, x = POOLING["roi_pool"]
    with pytest.raises(NotImplementedError, match="roi_pool: has no forward-mode derivative"):
        jvp(function, (x,), (x,))
