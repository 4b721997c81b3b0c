"""The operators under torch.compile, torch.export and autocast, and PyTorch's own checks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.backends import Backend
from tests.helpers.peer import torchvision
from tests.helpers.proposal_samples import make_heads, make_pyramid
from tests.helpers.samples import HALF, channels_last, make_boxes, make_rois, make_scores

RCNN = torch.ops.rcnn_ext


def _samples(device: torch.device) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments of every operator; what can, requires a gradient."""
    features = torch.randn(2, 3, 9, 7, device=device)
    rois = make_rois(4, 2, size=20).to(device)
    argmax = torch.randint(-1, 63, (4, 3, 2, 3), dtype=torch.int32, device=device)
    grad = torch.randn(4, 3, 2, 3, device=device)
    boxes1 = make_boxes(10).view(2, 5, 4).to(device)
    boxes2 = make_boxes(12, seed=1).view(2, 6, 4).to(device)
    boxes, scores = make_boxes(30, size=16).to(device), make_scores(30).to(device)
    idxs = torch.randint(0, 3, (30,), device=device)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_()

    last = channels_last(features).requires_grad_()
    half = leaf(features.half())
    pyramid, heads = make_pyramid().to(device), make_heads()
    maps = (pyramid.logits, pyramid.deltas)
    decoding = ([1.0, 2.0, 3.0, 4.0], [0.0, 0.1, 0.0, 0.1], 4.0)
    anchors, sizes = pyramid.anchors, pyramid.sizes
    predictions = (heads.logits.to(device), heads.deltas.to(device))
    of_rois = (heads.rois.to(device), heads.image_ids.to(device), heads.sizes.to(device))
    weight, bias = torch.randn(5, 3, 3, 3, device=device), torch.randn(5, device=device)
    filters = ops.conv_winograd.pack(weight)
    few_filters = ops.conv_winograd.pack(weight, 2, torch.bfloat16)
    return {
        "box_iou": [
            (leaf(boxes1), leaf(boxes2), 0, 0.0),
            (leaf(boxes1), leaf(boxes2.detach()), 3, 1e-7),
            (boxes1.long(), boxes2.long(), 1, 0.0),
        ],
        "box_iou_backward": [
            (leaf(torch.randn(2, 5, 6, device=device)), leaf(boxes1), leaf(boxes2), 1, 0.0),
        ],
        "conv3x3_winograd": [
            (features, filters, bias, None, True, 4, 5),
            (last.detach(), filters, None, torch.randn(2, 5, 9, 7, device=device), False, 4, 5),
            (features.bfloat16(), few_filters, bias, None, False, 2, 5),
        ],
        "conv3x3_winograd_out": [
            (channels_last(torch.zeros(2, 5, 9, 7, device=device)), *winograd)
            for winograd in (
                (features.detach(), filters, bias, None, True, 4),
                (last.detach(), filters, None, torch.randn(2, 5, 9, 7, device=device), False, 4),
            )
        ],
        "match_boxes": [
            (boxes[:5], [2, 0, 3], boxes, [10, 15, 5], 0.5, 0.2, True),
            (boxes[:5], [2, 0, 3], boxes, [], 0.5, 0.2, False),
            (boxes[:5].long(), [5], boxes.long(), [], 0.5, 0.2, True),
            (boxes[:0], [0], boxes[:0], [0], 0.5, 0.2, True),
        ],
        "multiscale_roi_align": [
            ([leaf(features), leaf(features[..., :4])], rois, [0.25, 0.125], 2, 3, 2, True, 8.0, 3),
            ([last], rois, [0.25], 2, 3, -1, False, 224.0, 4),
            ([half, leaf(half)], rois[:0], [0.25, 0.125], 2, 3, 2, True, 8.0, 3),
        ],
        "multiscale_roi_align_backward": [
            (leaf(grad), rois, [0.25, 0.125], 2, 3, 2, 3, [9, 5], [7, 4], 2, True, 8.0, 3, False),
            (leaf(grad), rois, [0.25], 2, 3, 2, 3, [9], [7], -1, False, 8.0, 3, True),
        ],
        "nms": [(boxes, scores, 0.5), (boxes.half(), scores, 0.5), (boxes[:0], scores[:0], 0.5)],
        "batched_nms": [(boxes, scores, idxs, 0.5)],
        "nms_padded": [(boxes, scores, 0.5, 4), (boxes[:0], scores[:0], 0.5, 3)],
        "batched_nms_padded": [(boxes.double(), scores, idxs, 0.5, 40)],
        "soft_nms": [
            (boxes, scores, 0.3, 0.5, 0.001, 0),
            (boxes.half(), scores.double(), 0.3, 0.5, 0.1, 1),
            (boxes[:0], scores[:0], 0.3, 0.5, 0.001, 0),
        ],
        "non_max_merging": [
            (boxes, scores, idxs, 0.5, 1),
            (boxes.half(), scores.double(), idxs, 0.3, 0),
            (boxes[:0], scores[:0], idxs[:0], 0.5, 0),
        ],
        "batched_soft_nms": [(boxes, scores, idxs, 0.3, 0.5, 0.001, 1)],
        "generate_proposals": [
            (*maps, anchors, sizes, 20, 10, 0.7, 0.1, 1.0, *decoding),
            (*([t.half() for t in m] for m in maps), anchors, sizes, 20, 10, 0.7, 0, 0, *decoding),
        ],
        "postprocess_detections": [
            (*predictions, *of_rois, 0.1, 0.5, 10, 1.0, *decoding),
            (*(t[:0].double() for t in predictions), *(t[:0] for t in of_rois[:2]), sizes)
            + (0.1, 0.5, 10, 1.0, *decoding),
        ],
        "roi_align": [
            (leaf(features), rois, 0.25, 2, 3, -1, False),
            (last, rois, 0.25, 2, 3, 2, True),
            (half, rois, 0.25, 2, 3, 2, True),
            (leaf(features), rois[:0], 0.25, 2, 3, 2, True),
        ],
        "roi_align_backward": [
            (leaf(grad), rois, 0.25, 2, 3, 2, 3, 9, 7, -1, False, False),
            (leaf(grad), rois, 0.25, 2, 3, 2, 3, 9, 7, 2, True, True),
        ],
        "roi_pool": [
            (leaf(features), rois, 0.25, 2, 3),
            (last, rois, 0.25, 2, 3),
        ],
        "roi_pool_backward": [
            (leaf(grad), argmax, rois, 0.25, 2, 3, 9, 7, False),
            (leaf(grad), argmax, rois, 0.25, 2, 3, 9, 7, True),
        ],
    }


@pytest.mark.parametrize("name", _samples(torch.device("cpu")))
def test_opcheck(native: Backend, name: str) -> None:
    for arguments in _samples(native.device)[name]:
        torch.library.opcheck(getattr(RCNN, name).default, arguments)


@pytest.fixture
def _compiler() -> Iterator[None]:
    torch._dynamo.reset()
    # Without it, the compiler breaks the graph at results whose size depends on data.
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield
    torch._dynamo.reset()


def _detector_head(
    features: Tensor, boxes: Tensor, scores: Tensor, idxs: Tensor, truth: Tensor
) -> tuple[Tensor, ...]:
    """A use of every operator; differentiable in features and boxes."""
    keep = ops.batched_nms(boxes, scores, idxs, 0.7)
    keep = keep[ops.nms(boxes[keep], scores[keep], 0.9)]
    matches, best = ops.batched_match_boxes([truth, truth[:2]], boxes, 0.5, 0.2, True)
    keep = torch.cat([keep, ops.match_boxes(truth, boxes, 0.5, 0.2)[0], *matches])
    keep = keep.clamp(min=0)
    kept = boxes[keep]
    aligned = ops.roi_align(features, [kept, kept + 1], (3, 2), 0.25, 2, aligned=True)
    maps = [features, features[:, :, ::2, ::2]]
    levels = ops.multiscale_roi_align(maps, [kept, kept], 2, [0.25, 0.125], canonical_scale=20.0)
    aligned = aligned.sum() + levels
    pooled = ops.roi_pool(features, [kept, kept], 3, 0.25)
    iou = ops.box_iou(boxes, truth) + ops.generalized_box_iou(boxes, truth)
    merged = ops.non_max_merging(boxes, scores, idxs, 0.4, "ios")
    iou = iou + ops.box_ios(boxes, truth) + best.sum() + merged.boxes.sum()
    return keep, aligned, pooled, iou, ops.complete_box_iou(boxes, truth)


def _head_arguments(device: torch.device, count: int, layout: str = "contiguous") -> list[Tensor]:
    features = torch.randn(2, 5, 12, 14)
    if layout == "channels_last":
        features = channels_last(features)
    return [
        tensor.to(device)
        for tensor in (
            features.requires_grad_(),
            make_boxes(count, size=48).requires_grad_(),
            make_scores(count),
            torch.randint(0, 3, (count,)),
            make_boxes(4, size=48, seed=7),
        )
    ]


def _outcome(function: Callable[..., Any], arguments: list[Tensor]) -> list[Tensor]:
    """Results, and gradients of those inputs that require one."""
    keep, *results = function(*arguments)
    inputs = [argument for argument in arguments if argument.requires_grad]
    loss = sum(result.square().sum() for result in results)
    return [keep, *(r.detach() for r in results), *torch.autograd.grad(loss, inputs)]


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(native: Backend, dynamic: bool, layout: str) -> None:
    compiled = torch.compile(_detector_head, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    counts = (20, 33, 7) if dynamic else (20,)
    for count in counts:
        arguments = _head_arguments(native.device, count, layout)
        expected = _outcome(_detector_head, arguments)
        result = _outcome(compiled, arguments)
        assert torch.equal(result[0], expected[0])
        torch.testing.assert_close(result[1:], expected[1:], rtol=1e-5, atol=1e-5)
        assert [r.stride() for r in result[1:3]] == [r.stride() for r in expected[1:3]]


@pytest.mark.slow
@pytest.mark.usefixtures("_compiler")
def test_compile_with_inductor(native: Backend) -> None:
    if native.device.type == "cpu" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    compiled = torch.compile(_detector_head, fullgraph=True)
    arguments = _head_arguments(native.device, 20)
    expected = _outcome(_detector_head, arguments)
    result = _outcome(compiled, arguments)
    assert torch.equal(result[0], expected[0])
    torch.testing.assert_close(result[1:], expected[1:], rtol=1e-4, atol=1e-4)

    # The compiler takes x + 0 for x, which would make -0.0 and 0.0 classes of their own.
    boxes = torch.tensor([[0.0, 0, 4, 4]], device=native.device).repeat(2, 1)
    zeros = torch.tensor([-0.0, 0.0], device=native.device)
    nms = torch.compile(lambda b, s, i: ops.batched_nms(b, s, i, 0.5), fullgraph=True)
    assert nms(boxes, zeros, zeros).tolist() == [0]


@pytest.mark.usefixtures("_compiler")
def test_compiled_code_refuses_bad_input(native: Backend) -> None:
    compiled = torch.compile(lambda x: ops.roi_align(x, x[:, 0, 0], 2), backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"roi_align: expected boxes of shape \[K, 5\]"):
        compiled(torch.rand(2, 3, 4, 4, device=native.device))


class _Head(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.align = ops.RoIAlign((3, 2), 0.25, 2, aligned=True)
        self.pool = ops.RoIPool(2, 0.25)

    def forward(self, features: Tensor, boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        kept = boxes[ops.nms(boxes, scores, 0.5)]
        return self.align(features, [kept, kept]), self.pool(features, [boxes, boxes])


def test_export(native: Backend) -> None:
    count = torch.export.Dim("count", min=2, max=1000)
    features, boxes, scores, *_ = _head_arguments(native.device, 20)
    exported = torch.export.export(
        _Head(),
        (features.detach(), boxes.detach(), scores),
        dynamic_shapes=({}, {0: count}, {0: count}),
    )
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    wanted = {"rcnn_ext.nms.default", "rcnn_ext.roi_align.default", "rcnn_ext.roi_pool.default"}
    assert wanted <= targets
    for number in (20, 41):
        features, boxes, scores, *_ = _head_arguments(native.device, number)
        inputs = (features.detach(), boxes.detach(), scores)
        assert all(map(torch.equal, exported.module()(*inputs), _Head()(*inputs)))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast(backend: Backend, dtype: torch.dtype) -> None:
    features, boxes, scores, idxs, truth = _head_arguments(backend.device, 20)
    arguments = [features, boxes, scores, idxs, truth]
    expected = _outcome(_detector_head, arguments)
    with torch.autocast(backend.device.type, dtype=dtype):
        result = _outcome(_detector_head, arguments)
        # Features of a layer that autocast ran in 16 bits, boxes in 32.
        low = ops.roi_align(features.to(dtype), [boxes, boxes], 2, 0.25)
        assert low.dtype == dtype
    assert torch.equal(result[0], expected[0])
    torch.testing.assert_close(result[1:], expected[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["roi_align", "box_iou"])
def test_forward_mode_is_right_or_refused(backend: Backend, name: str) -> None:
    # Never a derivative of 0 without a word.
    if name == "roi_align":
        x = torch.rand(1, 2, 6, 6, device=backend.device)
        rois = make_rois(2, 1, size=6).to(backend.device)
        expected = ops.roi_align(x, rois, 2)  # linear: the derivative along x itself

        def function(x: Tensor) -> Tensor:
            return ops.roi_align(x, rois, 2)
    else:
        x = make_boxes(3).to(backend.device)
        other = make_boxes(4, seed=1).to(backend.device)
        _, expected = torch.func.jvp(lambda a: torchvision.ops.box_iou(a, other), (x,), (x,))

        def function(x: Tensor) -> Tensor:
            return ops.box_iou(x, other)

    try:
        _, derivative = torch.func.jvp(function, (x,), (x,))
    except (NotImplementedError, RuntimeError) as error:
        message = str(error)
    else:
        torch.testing.assert_close(derivative, expected)
        return
    assert name in message


def test_inference_mode_and_subclasses(backend: Backend) -> None:
    boxes, scores = make_boxes(6).to(backend.device), make_scores(6).to(backend.device)
    expected = ops.nms(boxes, scores, 0.5)
    with torch.inference_mode():
        assert torch.equal(ops.nms(boxes, scores, 0.5), expected)
        assert ops.box_iou(boxes, boxes).is_inference()
    wrapped = torchvision.tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(64, 64))
    assert torch.equal(ops.nms(wrapped, scores, 0.5), expected)
    assert torch.equal(ops.box_iou(wrapped, boxes), ops.box_iou(boxes, boxes))
    parameter = torch.nn.Parameter(boxes)
    assert torch.equal(ops.nms(parameter, scores, 0.5), expected)


def test_fake_tensors_and_meta(native: Backend) -> None:
    features = torch.empty(2, 3, 8, 8, device="meta").to(memory_format=torch.channels_last)
    rois = torch.empty(5, 5, device="meta")
    result = ops.roi_align(features, rois, 2)
    assert result.shape == (5, 3, 2, 2)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert ops.roi_pool(features.half(), rois, 2).dtype == torch.float16
    boxes = torch.empty(2, 7, 4, device="meta", dtype=torch.float64)
    assert ops.box_iou(boxes, boxes[:, :3]).shape == (2, 7, 3)
    with pytest.raises(RuntimeError, match="roi_align: expected input and rois on one device"):
        ops.roi_align(features, torch.zeros(5, 5, device=native.device), 2)
