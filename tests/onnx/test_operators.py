"""Each operator in ONNX against the operator itself, at sizes other than it was exported with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.onnx_programs import OnnxFunction

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

EXTREMES = (float("nan"), float("inf"), -float("inf"))


def _generator(*seeds: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(seeds) % 2**31)


def _boxes(count: int, generator: torch.Generator, *, adversarial: bool = False) -> Tensor:
    """Boxes on a grid of half pixels, so that IoUs and corners are often equal."""
    start = torch.rand(count, 2, generator=generator) * 60
    sides = torch.rand(count, 2, generator=generator) * 30
    boxes = (torch.cat([start, start + sides], 1) * 2).round() / 2
    if adversarial and count > 8:
        boxes[0] = float("nan")
        boxes[1, 2], boxes[2, 0] = float("inf"), -float("inf")
        boxes[3] = boxes[3, [2, 3, 0, 1]]
        boxes[4] = boxes[4, [2, 1, 0, 3]]
        boxes[5, 2] = boxes[5, 0]
        boxes[6] = boxes[7]
    return boxes


def _scores(count: int, generator: torch.Generator, *, adversarial: bool = False) -> Tensor:
    scores = torch.rand(count, generator=generator)
    if not adversarial:
        return scores
    scores = (scores * 5).round() - 2
    if count > 20:
        scores[10], scores[11] = float("inf"), -float("inf")
    return scores


# float32 has no 0.3 but a number above it.
THRESHOLDS = (0.5, 0.3, 0.2, 1.0)


def test_nms(make: Callable[..., OnnxFunction]) -> None:
    def all_thresholds(boxes: Tensor, scores: Tensor) -> list[Tensor]:
        return [ops.nms(boxes, scores, threshold) for threshold in THRESHOLDS]

    exported = make(all_thresholds, (_boxes(5, _generator()), torch.rand(5)), [[0], [0]])
    for count in (0, 1, 2, 30, 1000):
        for adversarial in (False, True):
            generator = _generator(count, adversarial)
            boxes = _boxes(count, generator, adversarial=adversarial)
            scores = _scores(count, generator, adversarial=adversarial)
            found = exported(boxes, scores)
            for actual, expected in zip(found, all_thresholds(boxes, scores), strict=True):
                np.testing.assert_array_equal(actual, expected.numpy())
    # Off the grid, since OpenVINO drops boxes whose IoU is the threshold.
    boxes = _boxes(300, _generator(0)) + torch.rand(300, 4, generator=_generator(1))
    scores = torch.rand(len(boxes), generator=_generator(2))
    for here, there in zip(exported.openvino(boxes, scores), exported(boxes, scores), strict=True):
        np.testing.assert_array_equal(here, there)
    # The IoU is 0.2 in float32, which is more than 0.2 in float64, as ours and torchvision compare.
    boxes = torch.tensor([[0.0, 0, 1, 5], [0, 0, 1, 1]])
    found = exported(boxes, torch.tensor([0.9, 0.8]))
    assert [kept.tolist() for kept in found] == [[0, 1], [0, 1], [0], [0, 1]]


def test_nms_sorts_scores_of_any_type(make: Callable[..., OnnxFunction]) -> None:
    def all_types(boxes: Tensor, scores: list[Tensor]) -> list[Tensor]:
        return [ops.nms(boxes, of_type, 0.5) for of_type in scores]

    boxes = torch.tensor([[10.0 * i, 0, 10 * i + 8, 8] for i in range(5)])
    # The second and the third are one number in float32.
    wide = torch.tensor([3, 2**40, 2**40 + 1, 7, 7])
    scores = [wide, wide.double(), *((wide % 200).to(t) for t in (torch.float16, torch.uint8))]
    scores.append(torch.tensor([0.5, float("nan"), 0.9, -1, 0.5]))
    exported = make(all_types, (boxes, scores), [[0], [0]])
    for found, expected in zip(exported(boxes, scores), all_types(boxes, scores), strict=True):
        assert found.tolist() == expected.tolist()
    assert found.tolist() == [1, 2, 0, 4, 3]


def test_batched_nms(make: Callable[..., OnnxFunction]) -> None:
    def both(boxes: Tensor, scores: Tensor, idxs: Tensor) -> tuple[Tensor, ...]:
        kept = ops.batched_nms(boxes, scores, idxs, 0.5)
        return kept, *ops.batched_nms_padded(boxes, scores, idxs, 0.5, 20)

    sample = (_boxes(5, _generator()), torch.rand(5), torch.arange(5))
    exported = make(both, sample, [[0], [0], [0]])
    for count, classes in ((0, 1), (1, 1), (40, 3), (1000, 1), (1000, 90)):
        for adversarial in (False, True):
            generator = _generator(count, classes, adversarial)
            boxes = _boxes(count, generator, adversarial=adversarial)
            scores = _scores(count, generator, adversarial=adversarial)
            idxs = torch.randint(-classes, classes, (count,), generator=generator)
            found = exported(boxes, scores, idxs)
            for actual, expected in zip(found, both(boxes, scores, idxs), strict=True):
                np.testing.assert_array_equal(actual, expected.numpy())


def test_nms_padded(make: Callable[..., OnnxFunction]) -> None:
    def padded(boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        # A size that is dynamic, and none.
        return (
            *ops.nms_padded(boxes, scores, 0.5, boxes.shape[0]),
            *ops.nms_padded(boxes, scores, 0.5, 0),
        )

    exported = make(padded, (_boxes(5, _generator()), torch.rand(5)), [[0], [0]])
    for count in (0, 1, 200):
        generator = _generator(count)
        boxes, scores = _boxes(count, generator), _scores(count, generator, adversarial=True)
        for actual, expected in zip(exported(boxes, scores), padded(boxes, scores), strict=True):
            np.testing.assert_array_equal(actual, expected.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_box_iou_family(make: Callable[..., OnnxFunction], dtype: torch.dtype) -> None:
    def family(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return (
            ops.box_iou(a, b),
            ops.box_ios(a, b),
            ops.generalized_box_iou(a, b),
            ops.distance_box_iou(a, b, 1e-3),
            ops.complete_box_iou(a, b),
        )

    def boxes(count: int, seed: int) -> Tensor:
        return _boxes(count, _generator(seed)).to(dtype)

    exported = make(family, (boxes(5, 0), boxes(4, 1)), [[0], [0]])
    for rows, columns in ((0, 3), (3, 0), (1, 1), (50, 70)):
        a, b = boxes(rows, 2), boxes(columns, 3)
        for actual, expected in zip(exported(a, b), family(a, b), strict=True):
            assert actual.dtype == expected.numpy().dtype
            np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-6, atol=1e-6)


def test_box_iou_broadcasts(make: Callable[..., OnnxFunction]) -> None:
    a, b = torch.rand(2, 1, 5, 4), torch.rand(3, 4, 4)
    exported = make(ops.box_iou, (a, b), [[0, 2], [0, 1]])
    a, b = torch.rand(3, 1, 6, 4), torch.rand(5, 2, 4)
    expected = ops.box_iou(a, b).numpy()
    np.testing.assert_allclose(exported(a, b)[0], expected, rtol=1e-6, atol=1e-6)


def _rois(count: int, images: int, generator: torch.Generator) -> Tensor:
    """RoIs also beyond the map, smaller than a pixel, and inverted."""
    boxes = _boxes(count, generator) * 2 - 20
    if count > 9:
        boxes[0] = torch.tensor([4.0, 4.0, 4.25, 4.25])
        boxes[1] = torch.tensor([500.0, 500.0, 600.0, 600.0])
    index = torch.randint(0, images, (count, 1), generator=generator)
    return torch.cat([index.float(), boxes], 1)


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        (ops.roi_align, {"sampling_ratio": 2, "aligned": True}),
        (ops.roi_align, {"sampling_ratio": -1, "aligned": False}),
        (ops.roi_align, {"sampling_ratio": 0, "aligned": True}),
        (ops.roi_pool, {}),
    ],
)
def test_roi_pooling(
    make: Callable[..., OnnxFunction],
    operator: Callable[..., Tensor],
    options: dict[str, Any],
) -> None:
    # One in half precision: with 0 or fewer samples per bin their number depends on the RoI.
    dtype = torch.float16 if options.get("sampling_ratio") == 0 else torch.float32

    def pool(features: Tensor, rois: Tensor) -> Tensor:
        return operator(features, rois, (3, 4), spatial_scale=0.25, **options)

    sample = (torch.rand(2, 3, 20, 24).to(dtype), _rois(4, 2, _generator()))
    exported = make(pool, sample, [[0, 2, 3], [0]])
    for images, height, width, count in ((1, 8, 9, 0), (2, 25, 13, 1), (3, 30, 40, 50)):
        generator = _generator(images, count)
        features = torch.randn(images, 3, height, width, generator=generator).to(dtype)
        rois = _rois(count, images, generator)
        actual, expected = exported(features, rois)[0], pool(features, rois).numpy()
        assert actual.dtype == expected.dtype
        tolerance = 1e-6 if dtype == torch.float32 else 2e-3
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("strides", [[4, 8, 16, 32], [4], [8, 16]])
def test_multiscale_roi_align(make: Callable[..., OnnxFunction], strides: list[int]) -> None:
    scales = [1 / stride for stride in strides]

    def pool(maps: list[Tensor], rois: Tensor) -> Tensor:
        return ops.multiscale_roi_align(maps, rois, (3, 3), scales, 2)

    def maps(images: int, height: int, width: int, generator: torch.Generator) -> list[Tensor]:
        return [
            torch.randn(images, 3, height // s, width // s, generator=generator) for s in strides
        ]

    generator = _generator(0)
    exported = make(pool, (maps(2, 640, 768, generator), _rois(4, 2, generator)), [[0, 2, 3], [0]])
    # Sides at which the level changes, and the numbers next to them.
    edges = torch.tensor([56.0, 112, 224, 448, 896])
    below, above = (edges.nextafter(edges + d) for d in (-1, 1))
    edges = torch.cat([edges, below, above, below.nextafter(below - 1)])
    for images, height, width, count in ((1, 256, 384, 0), (2, 512, 256, 1), (3, 128, 256, 200)):
        rois = _rois(count, images, generator)
        rois[:, 1:] *= torch.exp(3 * torch.rand(count, 1, generator=generator))
        if count > 100:
            rois[50 : 50 + len(edges), 1:] = torch.stack([0 * edges, 0 * edges, edges, edges], 1)
            rois[90, 1:] = torch.tensor([5.0, 5.0, 4.0, 9.0])
        features = maps(images, height, width, generator)
        expected = pool(features, rois).numpy()
        np.testing.assert_allclose(exported(features, rois)[0], expected, rtol=0, atol=1e-6)


def _pyramid(
    images: int, height: int, width: int, levels: int, *, own_anchors: bool, adversarial: bool
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    generator = _generator(images, height, width, levels, adversarial)
    logits, deltas, anchors = [], [], []
    for level in range(levels):
        h, w = max(1, height >> level), max(1, width >> level)
        logit = torch.randn(images, 3, h, w, generator=generator) * 3
        delta = torch.randn(images, 12, h, w, generator=generator) * 0.3
        if adversarial:  # many equal ones
            logit, delta = (logit * 2).round() / 2, (delta * 4).round() / 4
            if h * w > 3:
                logit[0, :, 0, 0] = torch.tensor(EXTREMES)
                delta[0, :5, 0, 1] = torch.tensor([*EXTREMES, 1e30, -1e30])
        logits.append(logit)
        deltas.append(delta)
        center = torch.rand(3 * h * w, 2, generator=generator) * 64
        side = torch.rand(3 * h * w, 2, generator=generator) * 30 + 2
        anchors.append(torch.cat([center - side, center + side], 1))
    together = torch.cat(anchors)
    if own_anchors:
        together = torch.stack([together + image for image in range(images)])
    sizes = torch.tensor([[60.0 - image, 64.0 - 2 * image] for image in range(images)])
    return logits, deltas, together, sizes


def _assert_same_selection(
    actual: list[np.ndarray], expected: list[np.ndarray], floating: int = 2
) -> None:
    """Check that all integers are equal and the floating-point results near."""
    for position, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        if position < floating:
            np.testing.assert_allclose(a, e, rtol=0, atol=1e-4)
        else:
            np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize(
    ("levels", "own_anchors", "options"),
    [
        (1, False, {"pre_nms_top_n": 50, "post_nms_top_n": 20}),
        (
            3,
            False,
            {
                "pre_nms_top_n": 40,
                "post_nms_top_n": 30,
                "score_threshold": 0.05,
                "iou_threshold": 0.5,
                "min_size": 2.0,
                "weights": (10.0, 10.0, 5.0, 5.0),
                "means": (0.1, 0.0, 0.0, 0.2),
            },
        ),
        (2, True, {"max_log_ratio": 0.5}),
    ],
)
def test_generate_proposals(
    make: Callable[..., OnnxFunction], levels: int, own_anchors: bool, options: dict[str, Any]
) -> None:
    def propose(*args: Any) -> tuple[Tensor, ...]:
        return tuple(ops.generate_proposals(*args, **options))

    maps = [0, 2, 3]
    exported = make(
        propose,
        _pyramid(2, 8, 9, levels, own_anchors=own_anchors, adversarial=False),
        [maps, maps, [0, 1] if own_anchors else [0], [0]],
    )
    for images, height, width in ((1, 4, 4), (2, 13, 7), (3, 16, 24), (1, 1, 1)):
        for adversarial in (False, True):
            args = _pyramid(
                images, height, width, levels, own_anchors=own_anchors, adversarial=adversarial
            )
            expected = [t.numpy() for t in propose(*args)]
            _assert_same_selection(exported(*args), expected)
            if not adversarial:
                _assert_same_selection(exported.openvino(*args), expected)


def _predictions(
    count: int, classes: int, images: int, *, agnostic: bool, adversarial: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = _generator(count, classes, images, adversarial)
    logits = torch.randn(count, classes, generator=generator) * 2
    deltas = torch.randn(count, 4 if agnostic else 4 * classes, generator=generator) * 0.3
    start = torch.rand(count, 2, generator=generator) * 30
    rois = torch.cat([start, start + 2 + torch.rand(count, 2, generator=generator) * 30], 1)
    ids = torch.randint(-1, images, (count,), generator=generator)
    if adversarial and count > 8:
        # Equal rows and equal classes: ties, also after the softmax of another library.
        logits = logits[torch.randint(0, count // 4, (count,), generator=generator)]
        if classes > 2:
            logits[:, -1] = logits[:, -2]
        deltas = (deltas * 4).round() / 4
        logits[0], logits[1, 1] = float("nan"), float("inf")
        deltas[2], rois[3] = float("nan"), float("inf")
        ids[4], ids[5] = images, -7
    sizes = torch.tensor([[60 - image, 64 - 2 * image] for image in range(images)])
    return logits, deltas, rois, ids, sizes


@pytest.mark.parametrize(
    ("classes", "agnostic", "options"),
    [
        (5, False, {"score_threshold": 0.05, "detections_per_image": 20}),
        (
            3,
            True,
            {
                "score_threshold": 0.2,
                "iou_threshold": 0.3,
                "min_size": 4.0,
                "weights": (10.0, 10.0, 5.0, 5.0),
            },
        ),
        (2, False, {"score_threshold": 0.0, "detections_per_image": 10}),
    ],
)
def test_postprocess_detections(
    make: Callable[..., OnnxFunction], classes: int, agnostic: bool, options: dict[str, Any]
) -> None:
    def postprocess(*args: Any) -> tuple[Tensor, ...]:
        return tuple(ops.postprocess_detections(*args, **{"iou_threshold": 0.5, **options}))

    sample = _predictions(6, classes, 2, agnostic=agnostic, adversarial=False)
    exported = make(postprocess, sample, [[0]] * 5)
    for count, images in ((0, 1), (0, 2), (1, 1), (9, 2), (100, 1), (100, 3)):
        for adversarial in (False, True):
            args = _predictions(count, classes, images, agnostic=agnostic, adversarial=adversarial)
            expected = [t.numpy() for t in postprocess(*args)]
            _assert_same_selection(exported(*args), expected)
            if count and not adversarial:
                _assert_same_selection(exported.openvino(*args), expected)


def test_float64_maps_give_float64(make: Callable[..., OnnxFunction]) -> None:
    logits, deltas, anchors, sizes = _pyramid(1, 4, 4, 1, own_anchors=False, adversarial=False)

    def both(logits: list[Tensor], deltas: list[Tensor], anchors: Tensor) -> tuple[Tensor, ...]:
        found = ops.generate_proposals(logits, deltas, anchors, sizes, post_nms_top_n=9)
        ids = torch.zeros(9, dtype=torch.int64)
        rows = logits[0].flatten()[:18].view(9, 2)
        changes = deltas[0].flatten()[:36].view(9, 4)
        detected = ops.postprocess_detections(
            rows, changes, found.boxes[0], ids, sizes, score_threshold=0.1, iou_threshold=0.5
        )
        return *found[:2], *detected

    args = ([t.double() for t in logits], [t.double() for t in deltas], anchors)
    exported = make(both, args, [[], [], []])
    expected = [t.numpy() for t in both(*args)]
    assert expected[0].dtype == expected[2].dtype == np.float64
    _assert_same_selection(exported(*args), expected, floating=4)
