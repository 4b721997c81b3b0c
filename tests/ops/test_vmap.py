"""The operators under torch.vmap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.backends import Backend
from tests.helpers.samples import HALF, make_boxes, make_rois, make_scores

IOU = {
    "box_iou": ops.box_iou,
    "generalized_box_iou": ops.generalized_box_iou,
    "complete_box_iou": ops.complete_box_iou,
    "box_ios": ops.box_ios,
}


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (1, 0), (-1, 2)], ids=str)
@pytest.mark.parametrize("name", IOU)
def test_vmap_of_box_iou(backend: Backend, name: str, in_dims: tuple[int | None, ...]) -> None:
    def boxes(dim: int | None, count: int, seed: int) -> Tensor:
        batch = make_boxes(3 * count, seed=seed).view(3, count, 4).to(backend.device)
        return batch[0] if dim is None else batch.movedim(0, dim)

    a, b = boxes(in_dims[0], 5, 0), boxes(in_dims[1], 6, 1)
    result = torch.vmap(IOU[name], in_dims=in_dims)(a, b)
    for i in range(3):
        one = a if in_dims[0] is None else a.select(in_dims[0], i)
        other = b if in_dims[1] is None else b.select(in_dims[1], i)
        assert torch.equal(result[i], IOU[name](one, other))


def test_vmap_of_batches_of_boxes(backend: Backend) -> None:
    boxes = make_boxes(30).view(2, 3, 5, 4).to(backend.device)
    result = torch.vmap(ops.box_iou)(boxes, boxes.flip(0))
    assert torch.equal(result, ops.box_iou(boxes, boxes.flip(0)))
    nested = torch.vmap(torch.vmap(ops.box_iou, in_dims=(0, None)), in_dims=(0, None))
    assert torch.equal(nested(boxes, boxes[0, 0]), ops.box_iou(boxes, boxes[0, 0]))
    assert torch.vmap(ops.box_iou)(boxes[:, :, :0], boxes).shape == (2, 3, 0, 5)


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (2, 1), (-1, -1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_vmap_of_roi_align(
    backend: Backend, dtype: torch.dtype, in_dims: tuple[int | None, ...]
) -> None:
    maps = torch.randn(3, 2, 4, 9, 7).to(backend.device, dtype)
    rois = torch.stack([make_rois(5, 2, size=28, seed=seed) for seed in range(3)])
    rois = rois.to(backend.device, dtype)
    x = maps[0] if in_dims[0] is None else maps.movedim(0, in_dims[0])
    r = rois[0] if in_dims[1] is None else rois.movedim(0, in_dims[1])

    def function(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_align(x, r, (2, 3), 0.25, 2, True)

    result = torch.vmap(function, in_dims=in_dims)(x, r)
    for i in range(3):
        expected = function(
            maps[0 if in_dims[0] is None else i], rois[0 if in_dims[1] is None else i]
        )
        torch.testing.assert_close(result[i], expected)


def test_vmap_of_roi_align_over_more_images_than_a_half_type_can_count(native: Backend) -> None:
    images = 2100
    maps = torch.arange(images, device=native.device, dtype=torch.float32)
    maps = maps.view(images, 1, 1, 1, 1).expand(images, 1, 1, 2, 2)
    for dtype in HALF:
        rois = torch.tensor([[0, 0, 0, 1, 1]], dtype=dtype, device=native.device)
        result = torch.vmap(lambda x, r: ops.roi_align(x, r, 1))(maps, rois.expand(images, 1, 5))
        assert result.flatten().tolist() == list(range(images))


def test_vmap_keeps_a_bad_batch_index_bad(backend: Backend) -> None:
    maps = torch.ones(3, 2, 1, 4, 4, device=backend.device)
    rois = torch.tensor([[0.0, 0, 0, 2, 2]], device=backend.device).repeat(3, 1, 1)
    rois[1, 0, 0] = 2  # of the two images of its own; there are six in all
    if backend.checks_batch_index:
        with pytest.raises(IndexError, match="roi_align"):
            torch.vmap(lambda x, r: ops.roi_align(x, r, 1))(maps, rois)
    else:
        result = torch.vmap(lambda x, r: ops.roi_align(x, r, 1))(maps, rois)
        assert result.flatten().tolist() == [1, 0, 1]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_of_roi_pool(backend: Backend) -> None:
    maps = torch.randn(3, 2, 4, 9, 7).to(backend.device)
    rois = make_rois(5, 2, size=28).to(backend.device)
    result = torch.vmap(lambda x: ops.roi_pool(x, rois, 2, 0.25))(maps)
    for i in range(3):
        assert torch.equal(result[i], ops.roi_pool(maps[i], rois, 2, 0.25))


def test_vmap_of_gradients(backend: Backend) -> None:
    # The derivative of a batch of vmap, taken outside of it.
    maps = torch.randn(3, 1, 2, 6, 6).to(backend.device).requires_grad_()
    rois = torch.stack([make_rois(4, 1, size=6, seed=seed) for seed in range(3)])
    rois = rois.to(backend.device)
    result = torch.vmap(lambda x, r: ops.roi_align(x, r, 2))(maps, rois)
    (grad,) = torch.autograd.grad(result.square().sum(), maps)
    loop = torch.stack([ops.roi_align(maps[i], rois[i], 2) for i in range(3)])
    (expected,) = torch.autograd.grad(loop.square().sum(), maps)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (1, 2)], ids=str)
@pytest.mark.parametrize("low_quality", [False, True])
def test_vmap_of_match_boxes(
    backend: Backend, in_dims: tuple[int | None, ...], low_quality: bool
) -> None:
    def boxes(dim: int | None, count: int, seed: int) -> Tensor:
        batch = make_boxes(3 * count, seed=seed).view(3, count, 4).to(backend.device)
        return batch[0] if dim is None else batch.movedim(0, dim)

    def match(gt: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return ops.match_boxes(gt, boxes, 0.3, 0.1, low_quality)

    gt, candidates = boxes(in_dims[0], 4, 0), boxes(in_dims[1], 30, 1)
    results = torch.vmap(match, in_dims=in_dims)(gt, candidates)
    for i in range(3):
        expected = match(
            gt if in_dims[0] is None else gt.select(in_dims[0], i),
            candidates if in_dims[1] is None else candidates.select(in_dims[1], i),
        )
        for result, wanted in zip(results, expected, strict=True):
            assert torch.equal(result[i], wanted)
    no_gt = gt.new_empty(3, 0, 4)
    assert torch.vmap(match, in_dims=(0, None))(no_gt, boxes(None, 30, 1))[0].eq(-1).all()


@pytest.mark.parametrize("shared", [False, True])
def test_vmap_of_batched_match_boxes(backend: Backend, shared: bool) -> None:
    first, second = make_boxes(24).view(2, 3, 4, 4).to(backend.device)  # [V, G, 4] each
    boxes = make_boxes(90, seed=1).view(3, 30, 4).to(backend.device)
    for dim in (0, None):
        given = boxes if dim == 0 else boxes[0]

        def match(gt1: Tensor, gt2: Tensor, boxes: Tensor) -> Tensor:
            of_images = boxes if shared else [boxes[:10], boxes[10:]]
            return ops.batched_match_boxes([gt1, gt2[:2]], of_images, 0.3, 0.1)[0]

        results = torch.vmap(match, in_dims=(0, 0, dim))(first, second, given)
        for i in range(3):
            expected = match(first[i], second[i], given if dim is None else given[i])
            assert torch.equal(results[i], expected)


def test_vmap_of_nms_is_refused_by_name(backend: Backend) -> None:
    boxes = make_boxes(12).view(3, 4, 4).to(backend.device)
    scores = make_scores(12).view(3, 4).to(backend.device)
    with pytest.raises(NotImplementedError, match="nms: vmap can't stack"):
        torch.vmap(lambda b, s: ops.nms(b, s, 0.5))(boxes, scores)
    # Not of the scores' dtype: torch 2.11 has no batching rule for a view of floats as integers.
    idxs = torch.zeros(4, dtype=torch.int64, device=backend.device)
    with pytest.raises(NotImplementedError, match="batched_nms"):
        torch.vmap(lambda b, s: ops.batched_nms(b, s, idxs, 0.5))(boxes, scores)
