from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from rcnn_ext import ops
from tests.helpers.backends import Backend
from tests.helpers.proposal_samples import Pyramid, make_pyramid
from tests.helpers.samples import FLOATING, make_boxes


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Equal but for the last bits of an exponential."""
    rtol = 1e-12 if actual.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=100 * rtol)


def check(backend: Backend, pyramid: Pyramid) -> ops.Proposals:
    """Compare with torchvision, padding and all."""
    found = pyramid.run(backend.device)
    expected = pyramid.torchvision()
    assert found.counts.tolist() == [len(boxes) for boxes, _ in expected]
    for image, (boxes, scores) in enumerate(expected):
        count = len(boxes)
        assert_near(found.boxes[image, :count], boxes)
        assert_near(found.scores[image, :count], scores)
        assert not found.boxes[image, count:].any()
        assert not found.scores[image, count:].any()
    return found


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_equals_torchvision(backend: Backend, dtype: torch.dtype, layout: str) -> None:
    pyramid = make_pyramid(dtype=dtype, pre_nms_top_n=70, post_nms_top_n=40)
    if layout == "channels_last":
        last = torch.channels_last
        pyramid = pyramid.change(
            logits=[t.contiguous(memory_format=last) for t in pyramid.logits],
            deltas=[t.contiguous(memory_format=last) for t in pyramid.deltas],
        )
    found = check(backend, pyramid)
    assert found.counts.tolist() == [40, 40, 40]
    wide = torch.promote_types(dtype, torch.float32)
    assert found.boxes.dtype == found.scores.dtype == wide
    assert found.counts.dtype == torch.int64


@pytest.mark.parametrize(
    "options",
    [
        {"pre_nms_top_n": 1},
        {"post_nms_top_n": 1},
        {"pre_nms_top_n": 33, "post_nms_top_n": 1000},
        {"iou_threshold": 0.3},
        {"iou_threshold": 0.0},
        {"iou_threshold": 1.0},
        {"score_threshold": 0.7},
        {"score_threshold": 2.0},
        {"min_size": 12.0},
        {"min_size": 0.0},
        {"weights": (10.0, 10.0, 5.0, 5.0)},
        {"weights": (2.0, 3.0, 5.0, 7.0), "means": (0.1, -0.2, 0.05, -0.3)},
    ],
    ids=str,
)
def test_options(backend: Backend, options: dict) -> None:
    check(backend, make_pyramid(seed=1, **options))


def test_levels_with_other_numbers_of_anchors(backend: Backend) -> None:
    grids = ((1, 7, 5), (4, 3, 9), (2, 1, 1), (6, 2, 2))
    check(backend, make_pyramid(grids, images=2, pre_nms_top_n=30))


def test_anchors_of_each_image(backend: Backend) -> None:
    pyramid = make_pyramid(pre_nms_top_n=50)
    shifted = torch.stack([pyramid.anchors + 3 * n for n in range(3)])
    check(backend, pyramid.change(anchors=shifted))
    check(backend, pyramid.change(anchors=pyramid.anchors.expand(3, -1, -1)))
    check(backend, pyramid.change(anchors=pyramid.anchors.double()))


def test_flattened_predictions(backend: Backend) -> None:
    # [N, A] and [N, A, 4], as other libraries have them, are maps of one position.
    pyramid = make_pyramid(((1, 9, 11),), pre_nms_top_n=40)
    logits = pyramid.logits[0].permute(0, 2, 3, 1).flatten(1)  # [N, A]
    deltas = pyramid.deltas[0].permute(0, 2, 3, 1).flatten(1)  # [N, 4 A]
    flat = pyramid.change(logits=[logits[..., None, None]], deltas=[deltas[..., None, None]])
    for a, b in zip(flat.run(backend.device), pyramid.run(backend.device), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_and_deltas_that_are_not_finite(backend: Backend, bad: float) -> None:
    pyramid = make_pyramid(seed=3, pre_nms_top_n=60)
    for maps in (pyramid.logits, pyramid.deltas):
        for level in maps:
            level.view(-1)[::7] = bad
    found = check(backend, pyramid)
    assert found.boxes.isfinite().all()
    assert found.scores.isfinite().all()


def test_wild_deltas_are_clamped(backend: Backend) -> None:
    pyramid = make_pyramid(seed=4)
    wild = [level * 40 for level in pyramid.deltas]
    check(backend, pyramid.change(deltas=wild))
    narrow = pyramid.change(deltas=wild, options={"max_log_ratio": 0.5}).run(backend.device)
    sides = narrow.boxes[..., 2:] - narrow.boxes[..., :2]
    assert sides.max() <= 40 * math.exp(0.5) + 1e-3


def test_ties_go_by_level_and_anchor(backend: Backend) -> None:
    pyramid = make_pyramid(seed=5, pre_nms_top_n=20, iou_threshold=1.0)
    equal = pyramid.change(logits=[torch.ones_like(t) for t in pyramid.logits])
    zero = equal.change(deltas=[torch.zeros_like(t) for t in pyramid.deltas])
    # No anchor leaves the image, or is dropped.
    large = zero.change(sizes=torch.full((3, 2), 1000), anchors=pyramid.anchors + 100)
    found = large.run(backend.device)
    firsts = torch.cat([torch.arange(20), 297 + torch.arange(20), 387 + torch.arange(18)])
    for image in range(3):
        assert torch.equal(found.boxes[image], large.anchors[firsts])


def test_saturated_scores_keep_the_order_of_logits_within_a_level(backend: Backend) -> None:
    pyramid = make_pyramid(seed=6, pre_nms_top_n=50)
    check(backend, pyramid.change(logits=[t * 8 + 60 for t in pyramid.logits]))


@pytest.mark.parametrize("pattern", ["random", "equal", "high where sampled", "sorted"])
def test_levels_of_many_anchors(backend: Backend, pattern: str) -> None:
    pyramid = make_pyramid(((3, 60, 61), (3, 8, 8)), images=2, pre_nms_top_n=100)
    logits = pyramid.logits[0]
    if pattern == "equal":
        logits.fill_(0.5)
    elif pattern == "high where sampled":
        # A threshold guessed from every fifth number finds too few of them.
        flat = logits.view(2, -1)
        flat.clamp_(max=-1)
        places = torch.arange(2048) * flat.shape[1] // 2048
        flat[:, places[:30]] = 5
        flat[:, places] += torch.arange(2048) / 2048
    elif pattern == "sorted":
        pyramid.logits[0] = (
            torch.linspace(-4, 4, logits.numel()).view(2, 61, 60, 3).permute(0, 3, 2, 1)
        )
    check(backend, pyramid)


def test_layout_does_not_matter(backend: Backend) -> None:
    pyramid = make_pyramid(pre_nms_top_n=60)
    expected = pyramid.run(backend.device)

    def spread(tensor: Tensor) -> Tensor:
        shape = [2 * n for n in tensor.shape]
        large = torch.full(shape, math.nan, dtype=tensor.dtype)
        large[::2, ::2, ::2, ::2] = tensor
        return large[::2, ::2, ::2, ::2]

    spaced = pyramid.change(
        logits=[spread(t) for t in pyramid.logits],
        deltas=[spread(t) for t in pyramid.deltas],
        anchors=pyramid.anchors.t().contiguous().t(),
        sizes=pyramid.sizes.double(),
    )
    for a, b in zip(spaced.run(backend.device), expected, strict=True):
        assert torch.equal(a, b)


def test_nothing_in(backend: Backend) -> None:
    none = make_pyramid(images=0).run(backend.device)
    assert [list(t.shape) for t in none] == [[0, 405, 4], [0, 405], [0]]
    empty = make_pyramid(((3, 0, 4), (0, 5, 5))).run(backend.device)
    assert [list(t.shape) for t in empty] == [[3, 0, 4], [3, 0], [3]]
    assert empty.counts.tolist() == [0, 0, 0]
    full = make_pyramid(((2, 5, 5), (3, 3, 3)), pre_nms_top_n=30)
    hole = full.change(
        logits=[full.logits[0], torch.empty(3, 3, 0, 4), full.logits[1]],
        deltas=[full.deltas[0], torch.empty(3, 12, 0, 4), full.deltas[1]],
    )
    for a, b in zip(hole.run(backend.device), full.run(backend.device), strict=True):
        assert torch.equal(a, b)


def test_inputs_are_not_changed_and_get_no_gradient(backend: Backend) -> None:
    pyramid = make_pyramid(pre_nms_top_n=30).to(backend.device)
    inputs = [*pyramid.logits, *pyramid.deltas, pyramid.anchors]
    before = [t.clone() for t in inputs]
    for tensor in inputs:
        tensor.requires_grad_()
    found = ops.generate_proposals(
        pyramid.logits, pyramid.deltas, pyramid.anchors, pyramid.sizes, **pyramid.options
    )
    assert not any(t.requires_grad for t in found)
    assert all(torch.equal(a.detach(), b) for a, b in zip(inputs, before, strict=True))


def test_deterministic_for_any_number_of_threads(native: Backend) -> None:
    pyramid = make_pyramid(((3, 40, 41), (3, 20, 20)), images=4)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(pyramid.run(native.device))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_cpu_kernels_give_the_bits_of_the_reference(name: str) -> None:
    from rcnn_ext import _extension

    if name not in _extension.instruction_sets():
        pytest.skip(f"this processor has no {name}")
    pyramid = make_pyramid(((3, 60, 61), (3, 20, 20)), seed=8, pre_nms_top_n=300)
    with ops.use_backend("reference"):
        expected = pyramid.run(torch.device("cpu"))
    with _extension.use_instruction_set(name):
        assert all(map(torch.equal, pyramid.run(torch.device("cpu")), expected))


@pytest.mark.cuda
def test_captured_in_a_cuda_graph(cuda: torch.device) -> None:
    # A synchronization would end the capture.
    pyramid = make_pyramid(pre_nms_top_n=70, post_nms_top_n=40).to(cuda)

    def run() -> ops.Proposals:
        return ops.generate_proposals(
            pyramid.logits, pyramid.deltas, pyramid.anchors, pyramid.sizes, **pyramid.options
        )

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    for level in pyramid.logits:
        level.mul_(-1)
    graph.replay()
    assert all(map(torch.equal, found, run()))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles(native: Backend, dynamic: bool) -> None:
    torch._dynamo.reset()
    run = torch.compile(
        ops.generate_proposals, fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for rows in (9, 12, 30) if dynamic else (9,):
        p = make_pyramid(((3, rows, 11), (3, 5, 6)), pre_nms_top_n=300).to(native.device)
        found = run(p.logits, p.deltas, p.anchors, p.sizes, **p.options)
        expected = ops.generate_proposals(p.logits, p.deltas, p.anchors, p.sizes, **p.options)
        assert all(map(torch.equal, found, expected))
    torch._dynamo.reset()


def test_one_graph_takes_maps_of_every_size(native: Backend) -> None:
    def propose(logits: Tensor, deltas: Tensor, anchors: Tensor, sizes: Tensor) -> ops.Proposals:
        return ops.generate_proposals(
            [logits], [deltas], anchors, sizes, pre_nms_top_n=100, post_nms_top_n=50
        )

    counter = CompileCounter()
    compiled = torch.compile(propose, backend=counter, fullgraph=True, dynamic=True)
    for height, width in [(8, 12), (9, 12), (12, 9), (16, 20), (25, 31), (13, 13)]:
        inputs = (
            torch.randn(2, 3, height, width),
            torch.randn(2, 12, height, width),
            make_boxes(height * width * 3),
            torch.tensor([[64, 64], [60, 50]]),
        )
        for result, expected in zip(compiled(*inputs), propose(*inputs), strict=True):
            assert torch.equal(result, expected)
    # Of rectangles and of squares.
    assert counter.frame_count <= 2
