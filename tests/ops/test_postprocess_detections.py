from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.backends import Backend
from tests.helpers.proposal_samples import Heads, make_heads
from tests.helpers.samples import FLOATING


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Equal but for the last bits of an exponential."""
    rtol = 1e-12 if actual.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=100 * rtol)


def check(backend: Backend, heads: Heads) -> ops.Detections:
    """Compare with torchvision, padding and all."""
    found = heads.run(backend.device)
    expected = heads.torchvision()
    assert found.counts.tolist() == [len(boxes) for boxes, _, _ in expected]
    for image, (boxes, scores, labels) in enumerate(expected):
        count = len(boxes)
        assert_near(found.boxes[image, :count], boxes)
        assert_near(found.scores[image, :count], scores)
        assert torch.equal(found.labels[image, :count], labels)
        rois = found.roi_ids[image, :count]
        assert (heads.image_ids[rois] == image).all()
        wide = torch.promote_types(heads.logits.dtype, torch.float32)
        probabilities = heads.logits.to(wide).softmax(dim=1)
        assert_near(probabilities[rois, labels], scores)
        for padded in (found.boxes, found.scores, found.labels, found.roi_ids):
            assert not padded[image, count:].any()
    return found


@pytest.mark.parametrize("agnostic", [False, True], ids=["per class", "agnostic"])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_equals_torchvision(backend: Backend, dtype: torch.dtype, agnostic: bool) -> None:
    found = check(backend, make_heads(dtype=dtype, agnostic=agnostic))
    assert found.counts[0] > 20
    assert found.counts[1] == 0
    wide = torch.promote_types(dtype, torch.float32)
    assert found.boxes.dtype == found.scores.dtype == wide
    assert found.labels.dtype == found.roi_ids.dtype == found.counts.dtype == torch.int64


@pytest.mark.parametrize(
    "options",
    [
        {"detections_per_image": 1},
        {"detections_per_image": 7},
        {"detections_per_image": 10**9},
        {"score_threshold": 0.0},
        {"score_threshold": 0.6},
        {"score_threshold": 1.0},
        {"iou_threshold": 0.1},
        {"iou_threshold": 1.0},
        {"weights": (1.0, 1.0, 1.0, 1.0)},
        {"weights": (10.0, 8.0, 5.0, 4.0), "means": (0.1, -0.2, 0.05, -0.3)},
    ],
    ids=str,
)
def test_options(backend: Backend, options: dict) -> None:
    check(backend, make_heads(seed=1, **options))


def test_smallest_side(backend: Backend) -> None:
    heads = make_heads(seed=2, iou_threshold=1.0, detections_per_image=1000)
    every = heads.run(backend.device)
    large = heads.change(options={**heads.options, "min_size": 20.0}).run(backend.device)
    for image in range(3):
        boxes = every.boxes[image, : every.counts[image]]
        wanted = (boxes[:, 2:] - boxes[:, :2] >= 20).all(dim=1)
        assert 0 < wanted.sum() < len(boxes) or image == 1
        assert torch.equal(large.boxes[image, : large.counts[image]], boxes[wanted])


def test_rois_in_any_order_and_of_no_image(backend: Backend) -> None:
    heads = make_heads(seed=3)
    ids = heads.image_ids.clone()
    ids[::5], ids[3::11], ids[4::13] = -1, 3, 2**40
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))]
    found = check(backend, heads.change(image_ids=ids))
    assert found.counts.sum() > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["logits", "deltas", "rois"])
def test_numbers_that_are_not_finite(backend: Backend, what: str, bad: float) -> None:
    heads = make_heads(seed=4)
    tensor = getattr(heads, what)
    tensor.view(-1)[::9] = bad
    found = check(backend, heads)
    assert found.boxes.isfinite().all()
    assert found.scores.isfinite().all()


def test_ties_go_by_roi_and_class(backend: Backend) -> None:
    heads = make_heads((4, 3), classes=4, iou_threshold=1.0)
    equal = heads.change(
        logits=torch.zeros_like(heads.logits), deltas=torch.zeros_like(heads.deltas)
    )
    found = check(backend, equal)
    assert found.counts.tolist() == [12, 9]
    assert found.labels[0, :12].tolist() == [1, 2, 3] * 4
    assert found.roi_ids[0, :12].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert found.roi_ids[1, :9].tolist() == [4, 4, 4, 5, 5, 5, 6, 6, 6]


@pytest.mark.parametrize("classes", [2, 64, 65, 91])
def test_numbers_of_classes(backend: Backend, classes: int) -> None:
    check(backend, make_heads((20, 31), classes, seed=5, score_threshold=0.01))


def test_many_rois(backend: Backend) -> None:
    found = check(backend, make_heads((700, 400), 3, seed=6, iou_threshold=0.9))
    assert found.counts.tolist() == [100, 100]


def test_nothing_in(backend: Backend) -> None:
    none = make_heads((0, 0)).run(backend.device)
    assert [list(t.shape) for t in none] == [[2, 0, 4], [2, 0], [2, 0], [2, 0], [2]]
    assert none.counts.tolist() == [0, 0]
    background = make_heads((3, 4), classes=1).run(backend.device)
    assert background.boxes.shape == (2, 0, 4)
    heads = make_heads((3,))
    no_images = heads.change(sizes=heads.sizes[:0]).run(backend.device)
    assert [list(t.shape) for t in no_images] == [[0, 12, 4], [0, 12], [0, 12], [0, 12], [0]]


def test_layout_does_not_matter(backend: Backend) -> None:
    heads = make_heads()
    expected = heads.run(backend.device)
    turned = heads.change(
        logits=heads.logits.t().contiguous().t(),
        deltas=heads.deltas.t().contiguous().t(),
        rois=heads.rois.double().t().contiguous().t(),
        image_ids=heads.image_ids.repeat_interleave(2)[::2],
        sizes=heads.sizes.float(),
    )
    for a, b in zip(turned.run(backend.device), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("agnostic", [False, True], ids=["per class", "agnostic"])
def test_gradients_equal_torchvisions(backend: Backend, agnostic: bool) -> None:
    heads = make_heads(seed=7, agnostic=agnostic)

    def leaves() -> list[Tensor]:
        return [t.clone().requires_grad_() for t in (heads.logits, heads.deltas, heads.rois)]

    mine, theirs = leaves(), leaves()
    found = heads.change(logits=mine[0], deltas=mine[1], rois=mine[2]).run(backend.device)
    plain = heads.run(backend.device)
    assert not plain.boxes.requires_grad
    assert_near(found.boxes.detach(), plain.boxes)
    assert_near(found.scores.detach(), plain.scores)
    loss = found.scores.square().sum() + (found.boxes * found.scores[..., None]).sum()
    expected = heads.change(logits=theirs[0], deltas=theirs[1], rois=theirs[2]).torchvision()
    torch.autograd.backward(loss)
    torch.autograd.backward(sum(s.square().sum() + (b * s[:, None]).sum() for b, s, _ in expected))
    for a, b in zip(mine, theirs, strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        assert not heads.change(logits=mine[0]).run(backend.device).scores.requires_grad


def test_gradient_where_nothing_is_found(backend: Backend) -> None:
    heads = make_heads(seed=8, score_threshold=1.0)
    leaf = heads.logits.clone().requires_grad_()
    found = heads.change(logits=leaf).run(backend.device)
    (grad,) = torch.autograd.grad(found.scores.sum(), leaf)
    assert not grad.any()


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_cpu_kernels_give_the_bits_of_the_reference(name: str) -> None:
    from rcnn_ext import _extension

    if name not in _extension.instruction_sets():
        pytest.skip(f"this processor has no {name}")
    heads = make_heads((200, 300), 20, seed=9, score_threshold=0.02)
    with ops.use_backend("reference"):
        expected = heads.run(torch.device("cpu"))
    with _extension.use_instruction_set(name):
        assert all(map(torch.equal, heads.run(torch.device("cpu")), expected))


@pytest.mark.cuda
def test_captured_in_a_cuda_graph(cuda: torch.device) -> None:
    # A synchronization would end the capture.
    heads = make_heads()
    tensors = [t.to(cuda) for t in (heads.logits, heads.deltas, heads.rois, heads.image_ids)]
    sizes = heads.sizes.to(cuda)
    ops.postprocess_detections(*tensors, sizes)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.postprocess_detections(*tensors, sizes)
    tensors[0].mul_(-1)
    graph.replay()
    assert all(map(torch.equal, found, ops.postprocess_detections(*tensors, sizes)))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles(native: Backend, dynamic: bool) -> None:
    torch._dynamo.reset()

    def detect(*arguments: Tensor) -> tuple[Tensor, ...]:
        found = ops.postprocess_detections(*arguments)
        return (*found, (found.scores[..., None] * found.boxes).sum())

    run = torch.compile(detect, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for count in (5, 30, 60) if dynamic else (30,):
        heads = make_heads((count, count // 2))
        tensors = (heads.logits, heads.deltas, heads.rois, heads.image_ids, heads.sizes)
        mine, others = (
            [t.to(native.device).requires_grad_(t.is_floating_point()) for t in copies]
            for copies in (tensors, [t.clone() for t in tensors])
        )
        found, expected = run(*mine), detect(*others)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        inputs = (mine[:3], others[:3])
        grads = [
            torch.autograd.grad(result[-1], leaves)
            for result, leaves in zip((found, expected), inputs, strict=True)
        ]
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-2)
    torch._dynamo.reset()
