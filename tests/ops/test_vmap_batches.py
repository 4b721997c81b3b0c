"""torch.vmap of the operators on batches: one call, equal to a loop bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from rcnn_ext import ops
from tests.helpers.backends import Backend
from tests.helpers.samples import channels_last, make_boxes, make_rois

V = 3  # members of the batch that is mapped


class _Calls(TorchDispatchMode):
    """Count the calls of this package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "rcnn_ext":
            self.names.append(func.name().split("::")[1])
        return func(*args, **(kwargs or {}))


def _select(args: Any, in_dims: Any, index: int) -> Any:
    if isinstance(args, (list, tuple)):
        dims = in_dims if isinstance(in_dims, (list, tuple)) else [in_dims] * len(args)
        return [_select(a, d, index) for a, d in zip(args, dims, strict=True)]
    return args if in_dims is None else args.select(in_dims, index)


def _check(
    backend: Backend,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    in_dims: tuple[Any, ...],
    *names: str,
) -> None:
    """Compare with a loop; the operators named are called once each, and no other one.

    Bit for bit, but for the reference: matrix products of PyTorch round by their number of rows.
    """
    with _Calls() as calls:
        results = vmap(function, in_dims=in_dims)(*args)
    assert calls.names == list(names)
    expected = [function(*_select(args, in_dims, index)) for index in range(V)]
    for index, wanted in enumerate(expected):
        for result, one in zip(tree_leaves(results), tree_leaves(wanted), strict=True):
            assert result[index].dtype == one.dtype
            if backend.implementation == "reference":
                torch.testing.assert_close(result[index], one)
            else:
                assert torch.equal(result[index], one)


def _mapped(tensor: Tensor, dim: int | None) -> Tensor:
    """Return ``[V, ...]`` with V at a dimension, or one member."""
    return tensor[0] if dim is None else tensor.movedim(0, dim)


def _pyramid(device: torch.device, dtype: torch.dtype, channels: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((16, 20), (8, 10))
    maps = [torch.randn(V, 2, channels, *size, generator=generator) for size in sizes]
    return [m.to(device, dtype) for m in maps]


def _rois(device: torch.device, dtype: torch.dtype) -> Tensor:
    rois = torch.stack([make_rois(9, 2, size=64, seed=seed) for seed in range(V)])
    return rois.to(device, dtype)


def _pool(maps: Any, rois: Tensor, ratio: int = 2) -> Tensor:
    return ops.multiscale_roi_align(
        list(maps), rois, (2, 3), [1 / 4, 1 / 8], ratio, True, canonical_scale=40.0
    )


@pytest.mark.parametrize(
    "in_dims",
    [((0, 0), 0), ((0, 0), None), ((None, None), 0), ((1, -1), 2), ((2, None), 1), ((4, 3), -1)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_multiscale_roi_align(backend: Backend, dtype: torch.dtype, in_dims: Any) -> None:
    maps, rois = _pyramid(backend.device, dtype), _rois(backend.device, dtype)
    given = [_mapped(m, dim) for m, dim in zip(maps, in_dims[0], strict=True)]
    dims = (list(in_dims[0]), in_dims[1])
    _check(backend, _pool, (given, _mapped(rois, in_dims[1])), dims, "multiscale_roi_align")


@pytest.mark.parametrize("ratio", [2, -1])
@pytest.mark.parametrize("channels", [1, 3, 16, 70])
def test_multiscale_roi_align_of_channels(native: Backend, channels: int, ratio: int) -> None:
    maps = _pyramid(native.device, torch.float32, channels)
    rois = _rois(native.device, torch.float32)
    dims = ([0, 0], 0)
    _check(native, lambda m, r: _pool(m, r, ratio), (maps, rois), dims, "multiscale_roi_align")
    if channels > 1:
        maps = [channels_last(m.flatten(0, 1)).unflatten(0, (V, 2)) for m in maps]
        _check(native, lambda m, r: _pool(m, r, ratio), (maps, rois), dims, "multiscale_roi_align")


def test_nested(backend: Backend) -> None:
    maps, rois = _pyramid(backend.device, torch.float32), _rois(backend.device, torch.float32)
    with _Calls() as calls:
        # All pairs of a pyramid and RoIs.
        every = vmap(vmap(_pool, in_dims=(None, 0)), in_dims=([0, 0], None))(maps, rois)
    assert calls.names == ["multiscale_roi_align"]
    for row in range(V):
        for column in range(V):
            expected = _pool([m[row] for m in maps], rois[column])
            torch.testing.assert_close(every[row, column], expected)


def test_rois_that_are_few_or_of_no_image(backend: Backend) -> None:
    maps, rois = _pyramid(backend.device, torch.float32), _rois(backend.device, torch.float32)
    assert vmap(_pool)(maps, rois[:, :0]).shape == (V, 0, 5, 2, 3)
    rois[1, 4, 0] = 2  # of the two images of its own; there are six in all
    if backend.checks_batch_index:
        with pytest.raises(IndexError, match="multiscale_roi_align"):
            vmap(_pool)(maps, rois)
    else:
        assert vmap(_pool)(maps, rois)[1, 4].eq(0).all()


@pytest.mark.parametrize("in_dims", [([0, 0], 0), ([0, 0], None), ([1, 2], 1)], ids=str)
def test_gradients_of_each_member(backend: Backend, in_dims: Any) -> None:
    maps, rois = _pyramid(backend.device, torch.float32), _rois(backend.device, torch.float32)
    given = [_mapped(m, dim) for m, dim in zip(maps, in_dims[0], strict=True)]

    def gradient(maps: Any, rois: Tensor) -> Any:
        return grad(lambda m: _pool(m, rois).square().sum())(maps)

    args = given, _mapped(rois, in_dims[1])
    names = "multiscale_roi_align", "multiscale_roi_align_backward"
    _check(backend, gradient, args, in_dims, *names)
    leaves = [m[1].clone().requires_grad_() for m in maps]
    index = 0 if in_dims[1] is None else 1
    expected = torch.autograd.grad(_pool(leaves, rois[index]).square().sum(), leaves)
    for result, wanted in zip(vmap(gradient, in_dims)(*args), expected, strict=True):
        torch.testing.assert_close(result[1], wanted)


def test_gradients_where_rois_alone_are_mapped(backend: Backend) -> None:
    maps, rois = _pyramid(backend.device, torch.float32), _rois(backend.device, torch.float32)

    def gradient(rois: Tensor) -> Any:
        return grad(lambda m: _pool(m, rois).square().sum())([m[0] for m in maps])

    names = "multiscale_roi_align", "multiscale_roi_align_backward"
    _check(backend, gradient, (rois,), (0,), *names)


def test_second_derivatives_and_forward_mode_of_a_pyramid(backend: Backend) -> None:
    maps = [m[0].double() for m in _pyramid(backend.device, torch.float32)]
    rois = _rois(backend.device, torch.float64)[0]
    along = [torch.randn_like(m) for m in maps]

    def cubed(maps: Any) -> Tensor:
        return _pool(maps, rois).pow(3).sum()

    def slope(maps: Any) -> Tensor:
        return sum((g * a).sum() for g, a in zip(grad(cubed)(maps), along, strict=True))

    leaves = [m.clone().requires_grad_() for m in maps]
    first = torch.autograd.grad(cubed(leaves), leaves, create_graph=True)
    total = sum((g * a).sum() for g, a in zip(first, along, strict=True))
    expected = torch.autograd.grad(total, leaves)
    for result, wanted in zip(grad(slope)(maps), expected, strict=True):
        torch.testing.assert_close(result, wanted)
    value, derivative = jvp(cubed, (maps,), (along,))
    torch.testing.assert_close(value, cubed(maps))
    torch.testing.assert_close(derivative, slope(maps))
    # One level alone.
    _, derivative = jvp(lambda m: _pool([m, maps[1]], rois), (maps[0],), (along[0],))
    torch.testing.assert_close(derivative, _pool([along[0], torch.zeros_like(maps[1])], rois))


def _heads(device: torch.device) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = ((6, 8), (3, 4))
    logits = [torch.randn(V, 2, 3, *size, generator=generator) for size in sizes]
    deltas = [torch.randn(V, 2, 12, *size, generator=generator) / 4 for size in sizes]
    count = sum(3 * height * width for height, width in sizes)
    anchors = make_boxes(V * 2 * count).view(V, 2, count, 4)
    image_sizes = torch.tensor([[64, 60], [50, 64]]).repeat(V, 1, 1)
    image_sizes[1] -= 9
    every = tree_map(lambda t: t.to(device), (logits, deltas, anchors, image_sizes))
    logits, deltas, anchors, image_sizes = every
    return logits, deltas, anchors, image_sizes


@pytest.mark.parametrize(
    "in_dims",
    [
        ([0, 0], [0, 0], None, 0),
        ([0, 0], [0, 0], 0, None),
        ([1, 2], [-1, 3], 1, 2),
        ([0, None], [None, 0], None, None),
        ([None, None], [None, None], 0, None),
        ([None, None], [None, None], None, 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("anchors_of", ["all images", "each image"])
def test_generate_proposals(backend: Backend, in_dims: Any, anchors_of: str) -> None:
    def generate(logits: Any, deltas: Any, anchors: Tensor, sizes: Tensor) -> Any:
        return tuple(
            ops.generate_proposals(
                list(logits), list(deltas), anchors, sizes, pre_nms_top_n=40, post_nms_top_n=30
            )
        )

    logits, deltas, anchors, sizes = _heads(backend.device)
    if anchors_of == "all images":
        anchors = anchors[:, 0]  # [V, A, 4]
    args = (
        [_mapped(m, dim) for m, dim in zip(logits, in_dims[0], strict=True)],
        [_mapped(m, dim) for m, dim in zip(deltas, in_dims[1], strict=True)],
        _mapped(anchors, in_dims[2]),
        _mapped(sizes, in_dims[3]),
    )
    _check(backend, generate, args, in_dims, "generate_proposals")


def _second_stage(device: torch.device, count: int = 12) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(V, count, 4, generator=generator)
    deltas = torch.randn(V, count, 16, generator=generator)
    rois = make_boxes(V * count).view(V, count, 4)
    ids = torch.randint(-1, 3, (V, count), generator=generator)  # -1 and 2 are of no image
    sizes = torch.tensor([[64, 60], [50, 64]]).repeat(V, 1, 1)
    sizes[1] -= 9
    return tuple(t.to(device) for t in (logits, deltas, rois, ids, sizes))


@pytest.mark.parametrize(
    "in_dims",
    [
        (0, 0, 0, 0, 0),
        (0, 0, 0, None, None),
        (1, 2, -1, 1, 2),
        (None, None, None, 0, None),
        (None, None, None, None, 0),
        (0, None, None, None, None),
    ],
    ids=str,
)
# 36 are all that the 12 RoIs and 3 classes of a member allow.
@pytest.mark.parametrize("room", [5, 36, 80])
def test_postprocess_detections(backend: Backend, in_dims: Any, room: int) -> None:
    def postprocess(*args: Tensor) -> Any:
        return tuple(ops.postprocess_detections(*args, detections_per_image=room))

    tensors = _second_stage(backend.device)
    args = tuple(_mapped(t, dim) for t, dim in zip(tensors, in_dims, strict=True))
    _check(backend, postprocess, args, in_dims, "postprocess_detections")


def test_postprocess_detections_nested_and_of_no_roi(backend: Backend) -> None:
    logits, deltas, rois, ids, sizes = _second_stage(backend.device)

    def postprocess(logits: Tensor, deltas: Tensor) -> Any:
        return tuple(ops.postprocess_detections(logits, deltas, rois[0], ids[0], sizes[0]))

    with _Calls() as calls:
        every = vmap(vmap(postprocess, in_dims=(0, None)), in_dims=(None, 0))(logits, deltas)
    assert calls.names == ["postprocess_detections"]
    for row in range(V):
        for column in range(V):
            expected = postprocess(logits[column], deltas[row])
            for result, wanted in zip(every, expected, strict=True):
                assert torch.equal(result[row, column], wanted)
    none = (t[:, :0] for t in (logits, deltas, rois, ids))
    boxes, _, _, _, counts = vmap(lambda *args: tuple(ops.postprocess_detections(*args)))(
        *none, sizes
    )
    assert boxes.shape == (V, 2, 0, 4)
    assert counts.eq(0).all()


def test_gradients_of_detections(backend: Backend) -> None:
    logits, deltas, rois, ids, sizes = _second_stage(backend.device)

    def gradient(logits: Tensor, deltas: Tensor, rois: Tensor, ids: Tensor) -> Tensor:
        def total(logits: Tensor) -> Tensor:
            return ops.postprocess_detections(logits, deltas, rois, ids, sizes[0]).scores.sum()

        return grad(total)(logits)

    results = vmap(gradient)(logits, deltas, rois, ids)
    for index in range(V):
        expected = gradient(logits[index], deltas[index], rois[index], ids[index])
        torch.testing.assert_close(results[index], expected)
        assert expected.abs().max() > 0
