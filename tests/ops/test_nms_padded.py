"""NMS with a result of fixed size: the drop-in operators' indices, cut off or padded."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers import brute_force
from tests.helpers.backends import Backend
from tests.helpers.samples import FLOATING, make_boxes, make_scores

# Around the numbers of boxes that a kernel takes together.
COUNTS = [1, 2, 63, 64, 65, 300, 1025]


def _padded(indices: Tensor, size: int) -> list[int]:
    kept = indices[:size].tolist()
    return kept + [-1] * (size - len(kept))


def _check(
    backend: Backend,
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    threshold: float,
    size: int,
) -> None:
    """The padded operator against the drop-in one on the CPU."""
    arguments = [boxes, scores] if idxs is None else [boxes, scores, idxs]
    on_device = [tensor.to(backend.device) for tensor in arguments]
    if idxs is None:
        indices, count = ops.nms_padded(*on_device, threshold, size)
    else:
        indices, count = ops.batched_nms_padded(*on_device, threshold, size)
    with ops.use_backend("reference"):
        expected = (ops.nms if idxs is None else ops.batched_nms)(*arguments, threshold)
    assert indices.dtype == count.dtype == torch.int64
    assert indices.device.type == count.device.type == backend.device.type
    assert indices.shape == (size,)
    assert count.shape == ()
    assert indices.is_contiguous()
    assert count.item() == min(len(expected), size)
    assert indices.tolist() == _padded(expected, size)


def _scene(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Crowded boxes with ties, some that are not finite, and their classes."""
    boxes = make_boxes(count, size=20 + int(count**0.5) * 3)
    boxes[5::40, 2] = math.inf
    boxes[6::40, 0] = math.nan
    return boxes, torch.randint(0, max(count // 3, 1), (count,)).float(), make_classes(count, 5)


def make_classes(count: int, classes: int) -> Tensor:
    """Numbers of classes ``[count]``, negative ones and very large ones among them."""
    numbers = torch.tensor([3, -7, 2**62, -(2**63), 0, 11, 12, 2**63 - 1])[:classes]
    return numbers[torch.randint(0, classes, (count,))]


def test_by_hand(backend: Backend) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10], [90, 90, 99, 99]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.95])
    inputs = [boxes.to(backend.device), scores.to(backend.device)]
    indices, count = ops.nms_padded(*inputs, 0.5, 5)
    assert (indices.tolist(), count.item()) == ([3, 0, 2, -1, -1], 3)
    indices, count = ops.nms_padded(*inputs, 0.5, 2)
    assert (indices.tolist(), count.item()) == ([3, 0], 2)
    idxs = torch.tensor([1, 0, 1, 0], device=backend.device)
    indices, count = ops.batched_nms_padded(*inputs, idxs, 0.4, 5)
    assert (indices.tolist(), count.item()) == ([3, 0, 1, -1, -1], 3)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_equals_brute_force(backend: Backend, dtype: torch.dtype) -> None:
    boxes = make_boxes(150, size=16).to(dtype)
    scores = torch.randint(0, 10, (150,)) / 10
    idxs = torch.randint(0, 3, (150,))
    inputs = [t.to(backend.device) for t in (boxes, scores, idxs)]
    expected = brute_force.nms(boxes, scores, 0.3)
    assert ops.nms_padded(*inputs[:2], 0.3, 40)[0].tolist() == _padded(expected, 40)
    expected = brute_force.nms(boxes, scores, 0.3, idxs)
    assert ops.batched_nms_padded(*inputs, 0.3, 40)[0].tolist() == _padded(expected, 40)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("batched", [False, True], ids=["nms", "batched"])
def test_is_the_beginning_of_the_drop_in_result(
    backend: Backend, batched: bool, count: int
) -> None:
    boxes, scores, idxs = _scene(count)
    sizes = {1, 2, count // 5, count, count + 70} if count < 1000 else {300, count + 1}
    for size in sorted(sizes):
        _check(backend, boxes, scores, idxs if batched else None, 0.4, size)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("count", [60, 400])
def test_scores_of_any_dtype(backend: Backend, dtype: torch.dtype, count: int) -> None:
    boxes, scores, idxs = _scene(count)
    if dtype == torch.bool:
        scores = scores % 2
    elif dtype == torch.int64:
        scores = scores.double() * 2**53 - 2**62
    _check(backend, boxes, scores.to(dtype), None, 0.4, 50)
    _check(backend, boxes, scores.to(dtype), idxs, 0.4, 50)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, -0.0])
def test_odd_scores_come_where_sort_puts_them(backend: Backend, odd: float) -> None:
    boxes, scores = make_boxes(120, size=900), make_scores(120) - 0.5
    scores[[3, 17, 40]] = odd
    scores[[2, 18]] = 0.0
    _check(backend, boxes, scores, None, 0.99, 120)
    _check(backend, boxes, scores.double(), make_classes(120, 3), 0.99, 120)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1.0, 2.0, math.nan, math.inf, -math.inf])
def test_thresholds_outside_of_0_to_1(backend: Backend, threshold: float) -> None:
    boxes, scores, idxs = _scene(130)
    _check(backend, boxes, scores, None, threshold, 90)
    _check(backend, boxes, scores, idxs, threshold, 90)


@pytest.mark.parametrize("batched", [False, True], ids=["nms", "batched"])
def test_nothing(backend: Backend, batched: bool) -> None:
    boxes, scores, idxs = _scene(7)
    for count, size in ((0, 0), (0, 3), (7, 0)):
        cut = (boxes[:count], scores[:count], idxs[:count] if batched else None)
        _check(backend, *cut, 0.5, size)
    nowhere = torch.full((80, 4), math.nan)
    _check(backend, nowhere, torch.rand(80), torch.zeros(80) if batched else None, 0.5, 9)


def test_each_box_of_a_long_chain_decides_about_the_next(backend: Backend) -> None:
    # Every box overlaps its neighbors alone: each second one goes, and no two boxes of a group
    # can be decided without those before them.
    for count in (64, 200, 700):
        left = torch.arange(count)[:, None] * torch.tensor([2.0, 0.0])
        boxes = torch.cat([left, left + torch.tensor([5.0, 4.0])], dim=1)  # IoU 3/7
        scores = -torch.arange(count).float()
        keep, number = ops.nms_padded(
            boxes.to(backend.device), scores.to(backend.device), 0.4, count
        )
        assert keep.tolist() == _padded(torch.arange(0, count, 2), count)
        assert number.item() == (count + 1) // 2


def test_many_classes_of_all_sizes(backend: Backend) -> None:
    sizes = torch.tensor([1] * 30 + [2] * 20 + [63, 64, 65, 128, 300, 1])
    idxs = torch.repeat_interleave(torch.randperm(len(sizes)), sizes)
    idxs = idxs[torch.randperm(len(idxs))]
    boxes, scores, _ = _scene(len(idxs))
    for size in (10, len(idxs)):
        _check(backend, boxes, scores, idxs, 0.3, size)


def test_layout_does_not_matter(backend: Backend) -> None:
    boxes, scores, idxs = _scene(90)
    spread = torch.full((180, 5), math.nan, device=backend.device)
    spread[::2, :4], spread[::2, 4] = boxes.to(backend.device), scores.to(backend.device)
    numbers = torch.stack([idxs, idxs], dim=1).to(backend.device)
    found = ops.batched_nms_padded(spread[::2, :4], spread[::2, 4], numbers[:, 0], 0.4, 80)
    dense = [t.to(backend.device) for t in (boxes, scores, idxs)]
    expected = ops.batched_nms_padded(*dense, 0.4, 80)
    assert all(map(torch.equal, found, expected))


def test_vmap_is_a_loop(backend: Backend) -> None:
    boxes = make_boxes(60, size=20).view(3, 20, 4).to(backend.device)
    scores = make_scores(60).view(20, 3).to(backend.device)
    idxs = torch.arange(20, device=backend.device) % 2
    loop = [ops.nms_padded(boxes[i], scores[:, i], 0.3, 9) for i in range(3)]
    together = torch.vmap(lambda b, s: ops.nms_padded(b, s, 0.3, 9), in_dims=(0, 1))(boxes, scores)
    for number, result in enumerate(together):
        assert torch.equal(result, torch.stack([one[number] for one in loop]))
    batched = torch.vmap(lambda b: ops.batched_nms_padded(b, scores[:, 0], idxs, 0.3, 9)[0])(boxes)
    expected = [ops.batched_nms_padded(b, scores[:, 0], idxs, 0.3, 9)[0] for b in boxes]
    assert torch.equal(batched, torch.stack(expected))


def test_compiles_and_exports(native: Backend) -> None:
    boxes, scores, idxs = (t.to(native.device) for t in _scene(50))

    def best(b: Tensor, s: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        first, count = ops.nms_padded(b, s, 0.5, 20)
        second, _ = ops.batched_nms_padded(b, s, i, 0.5, b.shape[0] // 2)
        return torch.cat([first, second]), count + 1

    torch._dynamo.reset()
    for dynamic in (False, True):
        compiled = torch.compile(best, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for number in (50, 40):
            inputs = (boxes[:number], scores[:number], idxs[:number])
            assert all(map(torch.equal, compiled(*inputs), best(*inputs)))

    class Best(torch.nn.Module):
        def forward(self, b: Tensor, s: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
            return best(b, s, i)

    program = torch.export.export(Best(), (boxes, scores, idxs))
    found = program.module()(boxes, scores, idxs)
    assert all(map(torch.equal, found, best(boxes, scores, idxs)))
    torch._dynamo.reset()


def test_same_bits_in_every_run(backend: Backend) -> None:
    # The emulated kernels run under two schedules each time.
    boxes, scores, idxs = (t.to(backend.device) for t in _scene(700))
    expected = ops.batched_nms_padded(boxes, scores, idxs, 0.4, 500)
    runs = 50 if backend.device.type == "cuda" else 2
    for _ in range(runs):
        assert all(
            map(torch.equal, ops.batched_nms_padded(boxes, scores, idxs, 0.4, 500), expected)
        )


@pytest.mark.cuda
@pytest.mark.parametrize("count", [200, 8192, 8193, 30_000])
def test_captured_in_a_cuda_graph(cuda: torch.device, count: int) -> None:
    # A synchronization would end the capture.
    boxes, scores, idxs = (t.to(cuda) for t in _scene(count))

    def run() -> tuple[Tensor, ...]:
        plain = ops.nms_padded(boxes, scores, 0.4, 1000)
        return *plain, *ops.batched_nms_padded(boxes, scores, idxs, 0.4, 1000)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    for change in (lambda: scores.mul_(-1), lambda: boxes.copy_(boxes.flip(0)), idxs.zero_):
        change()
        graph.replay()
        assert all(map(torch.equal, found, run()))
        with ops.use_backend("reference"):
            expected, number = ops.nms_padded(boxes, scores, 0.4, 1000)
        assert torch.equal(found[0], expected)
        assert torch.equal(found[1], number)


@pytest.mark.cuda
def test_synchronizes_for_the_size_alone(cuda: torch.device) -> None:
    boxes, scores, idxs = (t.to(cuda) for t in _scene(9000))
    before = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("warn")
        for call, synchronizations in (
            (lambda: ops.nms(boxes, scores, 0.4), 1),
            (lambda: ops.nms(boxes[:900], scores[:900], 0.4), 1),
            (lambda: ops.batched_nms(boxes, scores, idxs, 0.4), 1),
            (lambda: ops.nms_padded(boxes, scores, 0.4, 50), 0),
            (lambda: ops.batched_nms_padded(boxes, scores, idxs, 0.4, 50), 0),
        ):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call()
            about = [w for w in caught if "synchroniz" in str(w.message)]
            assert len(about) == synchronizations
    finally:
        torch.cuda.set_sync_debug_mode(before)
