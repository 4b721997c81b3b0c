"""More elements than 32 bits can count, on GPUs that hold them."""

from __future__ import annotations

import pytest
import torch

from rcnn_ext import ops

pytestmark = [pytest.mark.cuda, pytest.mark.slow]

GIB = 1 << 30


def _needs_free(gib: float) -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < gib * GIB:
        pytest.skip(f"needs {gib:g} GiB of free GPU memory, there are {free / GIB:.0f}")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", ["roi_align", "roi_pool"])
@pytest.mark.parametrize(
    ("count", "channels"), [(44_000, 1000), (1_100 * 172, 256)]
)  # x 7 x 7: 2.16e9 and 2.37e9 elements
def test_results_beyond_2_to_the_31(
    cuda: torch.device, name: str, count: int, channels: int, layout: torch.memory_format
) -> None:
    _needs_free(2 * 4.6 + (9.0 if name == "roi_pool" else 0) + 2)
    features = torch.rand(1, channels, 8, 8, device=cuda, dtype=torch.bfloat16)
    features = features.to(memory_format=layout)
    rois = torch.tensor([[0.0, 0, 0, 7, 7]], device=cuda).repeat(count, 1)
    result = getattr(ops, name)(features, rois, 7)
    assert result.numel() > 2**31
    assert result.is_contiguous(memory_format=layout)
    first = getattr(ops, name)(features, rois[:1], 7)
    # All RoIs are the same; the ends are looked at, and one beyond the limit.
    for k in (0, 1, count // 2, count - 2, count - 1):
        assert torch.equal(result[k], first[0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_of_more_results_than_2_to_the_31(
    cuda: torch.device, layout: torch.memory_format
) -> None:
    count, channels = 1_100 * 172, 256
    _needs_free(3 * 4.6 + 2)
    features = torch.rand(1, channels, 8, 8, device=cuda, dtype=torch.bfloat16)
    features = features.to(memory_format=layout).requires_grad_()
    rois = torch.tensor([[0.0, 0, 0, 7, 7]], device=cuda).repeat(count, 1)
    result = ops.roi_align(features, rois, 7)
    grad = torch.zeros_like(result)
    grad[-1000:] = 1  # beyond the limit of 32-bit indices
    (gradient,) = torch.autograd.grad(result, features, grad)
    one = features.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(ops.roi_align(one, rois[:1], 7).sum(), one)
    torch.testing.assert_close(gradient.float(), 1000 * expected, rtol=1e-2, atol=1.0)


@pytest.mark.parametrize("name", ["roi_align", "roi_pool"])
def test_maps_beyond_2_to_the_31(cuda: torch.device, name: str) -> None:
    _needs_free(3 * 4.2 + 2)
    # 33 images of 64 x 1024 x 1024 in bfloat16; the last is beyond the limit.
    features = torch.zeros(33, 64, 1024, 1024, device=cuda, dtype=torch.bfloat16)
    features[32, 63, 1020:, 1020:] = 1
    features.requires_grad_()
    rois = torch.tensor([[32.0, 1021, 1021, 1023, 1023]], device=cuda)
    result = getattr(ops, name)(features, rois, 1)
    assert result[0, 63].item() == 1
    assert not result[0, :63].any()
    result.sum().backward()
    assert features.grad is not None
    assert features.grad.numel() > 2**31
    assert features.grad[32, :, 1018:, 1018:].sum() == 64
    assert not features.grad[:32].any()


def test_ious_beyond_2_to_the_31(cuda: torch.device) -> None:
    _needs_free(4 * 2.2 + 2)
    boxes = torch.rand(46_400, 4, device=cuda)
    boxes[:, 2:] += boxes[:, :2]
    result = ops.box_iou(boxes, boxes)
    assert result.numel() > 2**31
    torch.testing.assert_close(result.diagonal(), torch.ones(46_400, device=cuda))
    torch.testing.assert_close(result[-3:], ops.box_iou(boxes[-3:], boxes))


def test_ious_of_more_columns_than_a_grid_has_rows(cuda: torch.device) -> None:
    boxes = torch.rand(128 * 65536 + 1, 4, device=cuda)
    boxes[:, 2:] += boxes[:, :2]
    result = ops.box_iou(boxes[:2], boxes)
    assert torch.equal(result[:, -1:], ops.box_iou(boxes[:2], boxes[-1:]))
    assert torch.equal(result[:, 5::9999], ops.box_iou(boxes[:2], boxes[5::9999]))


@pytest.mark.parametrize("batched", [False, True], ids=["nms", "batched"])
@pytest.mark.parametrize("count", [400_000, 1_000_000])
def test_nms_of_many_boxes_gives_the_indices_of_the_cpu(
    cuda: torch.device, count: int, batched: bool
) -> None:
    _needs_free(3)
    boxes = torch.rand(count, 4) * 8000
    boxes[:, 2:] = boxes[:, :2] + 8 + torch.rand(count, 2) * 200
    scores = torch.randint(0, count // 3, (count,)).float()
    idxs = torch.randint(0, 80, (count,))
    if batched:
        expected = ops.batched_nms(boxes, scores, idxs, 0.5)
        keep = ops.batched_nms(boxes.to(cuda), scores.to(cuda), idxs.to(cuda), 0.5)
    else:
        expected = ops.nms(boxes, scores, 0.5)
        keep = ops.nms(boxes.to(cuda), scores.to(cuda), 0.5)
    assert torch.equal(keep.cpu(), expected)


def test_nms_in_memory_proportional_to_the_boxes(cuda: torch.device) -> None:
    count = 400_000
    _needs_free(2)
    boxes = torch.rand(count // 100, 4, device=cuda) * 20_000
    boxes = boxes.repeat(100, 1) + torch.rand(count, 1, device=cuda)
    boxes[:, 2:] = boxes[:, :2] + 60
    scores = torch.rand(count, device=cuda)
    ops.nms(boxes[:1000], scores[:1000], 0.5)  # what is allocated once and kept
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    keep = ops.nms(boxes, scores, 0.5)
    assert torch.cuda.max_memory_allocated() - before < 400 * count  # pairs would be 20 GB
    kept = boxes[keep]
    overlap = ops.box_iou(kept[:5000], kept[:5000]).fill_diagonal_(0)
    assert overlap.max() <= 0.5
    assert count // 200 < len(keep) < count // 20
