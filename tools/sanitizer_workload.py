"""Every operator on CUDA, forward and backward, at sizes that catch wrong bounds: for a sanitizer.

compute-sanitizer slows kernels down a hundredfold, so the work is small, and each round takes every
operator at one size: when the time is over, all of them have run. Results are compared with the
CPU kernels, so that a run that computes nothing does not pass for a clean one. The last line is
``WORKLOAD: n of m calls``; it is missing when a result is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from rcnn_ext import ops
from rcnn_ext.bench.inputs import generator, random_boxes

# A call on one device: its results, to be compared between devices.
Work = Callable[[torch.device], tuple[Tensor, ...]]
Call = tuple[str, Work]

# Around the sizes of warps, blocks and words of a bit mask, and nothing at all.
COUNTS = (65, 0, 1, 31, 33, 64, 127, 129, 257, 1025)
CHANNELS = (3, 1, 8, 33)
MAPS = ((13, 17), (1, 1), (1, 40), (9, 8))
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
IOU_FUNCTIONS = (
    "box_iou",
    "generalized_box_iou",
    "distance_box_iou",
    "complete_box_iou",
    "box_ios",
)


def iou_calls() -> Iterator[Call]:
    """IoU matrices with gradients; every fourth on boxes of no extent."""
    for index, (rows, columns) in enumerate(itertools.product(COUNTS, (5, 33, 0, 128, 260))):
        for name in IOU_FUNCTIONS:

            def work(
                device: torch.device, name: str = name, shape: tuple[int, int] = (rows, columns)
            ) -> tuple[Tensor, ...]:
                sets = [_boxes(count, seed, device) for seed, count in enumerate(shape)]
                leaves = [boxes.requires_grad_() for boxes in sets]
                matrix = getattr(ops, name)(*leaves)
                weights = torch.rand(matrix.shape, generator=generator(3)).to(device)
                return (matrix, *torch.autograd.grad((matrix * weights).sum(), leaves))

            yield f"{name} {rows}x{columns} #{index}", work


def match_calls() -> Iterator[Call]:
    """Yield match_boxes on batches of 1 and 3 images, around tile sizes; empty boxes, NaN."""
    for count, gts, images in itertools.product(COUNTS, (1, 0, 129, 7), (1, 3)):

        def work(
            device: torch.device, count: int = count, gts: int = gts, images: int = images
        ) -> tuple[Tensor, ...]:
            random = generator(count + gts)
            boxes = random_boxes(count, random, (160, 120))
            if count > 2:
                boxes[1, 0] = math.nan
                boxes[2, 2:] = boxes[2, :2]
            truth = random_boxes(gts, random, (160, 120)).to(device)
            parts = list(boxes.to(device).tensor_split(images))
            sets = list(truth.tensor_split(images))
            shared = ops.batched_match_boxes(sets, boxes.to(device), 0.5, 0.2, images > 1)
            return (*ops.batched_match_boxes(sets, parts, 0.5, 0.2, True), *shared)

        yield f"match_boxes {count}x{gts} images={images}", work


def nms_calls() -> Iterator[Call]:
    """NMS in every dtype, with ties, NaN and infinities, plain and by class."""
    for count, dtype, classes in itertools.product(COUNTS, DTYPES, (0, 1, 7)):

        def work(
            device: torch.device,
            count: int = count,
            dtype: torch.dtype = dtype,
            classes: int = classes,
        ) -> tuple[Tensor, ...]:
            random = generator(count)
            boxes = random_boxes(count, random, (160, 120)).to(dtype)
            # Few different scores: ties are the rule.
            scores = torch.randint(0, 50, (count,), generator=random).to(dtype) / 50
            if count > 4:
                boxes[1, 0], boxes[2, 3], boxes[3, 2] = math.nan, math.inf, -math.inf
                boxes[4, 2:] = boxes[4, :2]
            boxes, scores = boxes.to(device), scores.to(device)
            some = count // 3
            if classes == 0:
                padded = ops.nms_padded(boxes, scores, 0.5, some)
                return ops.nms(boxes, scores, 0.5), *padded
            labels = torch.randint(classes, (count,), generator=random).to(device)
            padded = ops.batched_nms_padded(boxes, scores, labels, 0.3, count + 9)
            return ops.batched_nms(boxes, scores, labels, 0.3), *padded

        yield f"nms {count} {dtype} classes={classes}", work


def long_nms_calls() -> Iterator[Call]:
    """NMS of more boxes than a chunk holds, plain and by class."""
    for classes in (0, 7):

        def work(device: torch.device, classes: int = classes) -> tuple[Tensor, ...]:
            random = generator(3)
            boxes = random_boxes(9000, random, (900, 700)).to(device)
            scores = torch.randint(0, 2000, (9000,), generator=random).to(device)
            if classes == 0:
                return ops.nms(boxes, scores, 0.5), *ops.nms_padded(boxes, scores, 0.5, 5000)
            labels = torch.randint(classes, (9000,), generator=random).to(device)
            return (ops.batched_nms(boxes, scores, labels, 0.5),)

        yield f"nms 9000 classes={classes}", work


def _scored_boxes(count: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes, some of them NaN, scores with ties, and classes."""
    random = generator(count)
    boxes = random_boxes(count, random, (160, 120))
    boxes[3::40, 0] = math.nan
    scores = torch.randint(1, 50, (count,), generator=random) / 50
    labels = torch.randint(classes, (count,), generator=random)
    return boxes.to(device), scores.to(device), labels.to(device)


def soft_nms_calls() -> Iterator[Call]:
    """Soft NMS by both methods, with ties and NaN, plain and by class."""
    for count, classes, method in itertools.product(COUNTS, (0, 7), ("linear", "gaussian")):

        def work(
            device: torch.device,
            count: int = count,
            classes: int = classes,
            method: str = method,
        ) -> tuple[Tensor, ...]:
            boxes, scores, labels = _scored_boxes(count, max(classes, 1), device)
            options = {"score_threshold": 0.01, "method": method}
            if classes == 0:
                return ops.soft_nms(boxes, scores, **options)
            return ops.batched_soft_nms(boxes, scores, labels, **options)

        yield f"soft_nms {count} classes={classes} {method}", work


def merging_calls() -> Iterator[Call]:
    """Greedy merging by both metrics, with ties and NaN, plain and by class."""
    for count, classes, metric in itertools.product(COUNTS, (1, 7), ("iou", "ios")):

        def work(
            device: torch.device, sizes: tuple[int, int] = (count, classes), metric: str = metric
        ) -> tuple[Tensor, ...]:
            merged = ops.non_max_merging(*_scored_boxes(*sizes, device), 0.3, metric)
            return merged.boxes, merged.groups

        yield f"non_max_merging {count} classes={classes} {metric}", work


def proposal_calls() -> Iterator[Call]:
    """Proposals of two levels, around the sizes of groups; with ties and NaN."""
    # Steps: exponentials that differ in the last bit keep their order.
    for count, top in itertools.product(COUNTS, (63, 1000)):

        def work(device: torch.device, count: int = count, top: int = top) -> tuple[Tensor, ...]:
            random = generator(count)
            logits = [
                torch.randint(-40, 40, (2, k, n, 1), generator=random) / 16
                for k, n in ((1, count), (3, 20))
            ]
            logits[0].view(-1)[3::40] = math.nan
            deltas = [
                torch.randint(-40, 40, (2, 4 * k, n, 1), generator=random) / 64
                for k, n in ((1, count), (3, 20))
            ]
            anchors = random_boxes(count + 60, random, (160, 120)).to(device)
            found = ops.generate_proposals(
                [t.to(device) for t in logits],
                [t.to(device) for t in deltas],
                anchors,
                torch.tensor([[120, 160], [100, 90]], device=device),
                pre_nms_top_n=top,
                post_nms_top_n=top,
            )
            return tuple(found)

        yield f"generate_proposals {count} top={top}", work


def detection_calls() -> Iterator[Call]:
    """Yield detections of three images, per class and class-agnostic, RoIs of no image."""
    for count, agnostic in itertools.product(COUNTS, (False, True)):

        def work(
            device: torch.device, count: int = count, agnostic: bool = agnostic
        ) -> tuple[Tensor, ...]:
            random = generator(count)
            logits = torch.randint(-20, 20, (count, 5), generator=random) / 4
            shape = (count, 4 if agnostic else 20)
            deltas = torch.randint(-40, 40, shape, generator=random) / 16
            found = ops.postprocess_detections(
                logits.to(device),
                deltas.to(device),
                random_boxes(count, random, (160, 120)).to(device),
                torch.randint(-1, 4, (count,), generator=random).to(device),
                torch.tensor([[120, 160], [100, 90], [50, 50]], device=device),
            )
            return tuple(found)

        yield f"postprocess_detections {count} agnostic={agnostic}", work


def roi_calls() -> Iterator[Call]:
    """RoIAlign and RoIPool with gradients: layouts, dtypes, RoIs over and beyond the border."""
    options = itertools.product(MAPS, CHANNELS, (False, True), DTYPES)
    counts = itertools.cycle(COUNTS[:8])
    for (size, channels, last, dtype), count in zip(options, counts, strict=False):
        for pool, setting in (
            (_align, (7, 2, False)),
            (_align, ((3, 5), 0, True)),
            (_pool, ((7, 7), 0, False)),
            (_pool, ((2, 9), 0, False)),
        ):

            def work(
                device: torch.device,
                pool: Callable[..., Tensor] = pool,
                setting: tuple[Any, ...] = setting,
                shape: tuple[int, int, int, int] = (2, channels, *size),
                count: int = count,
                last: bool = last,
                dtype: torch.dtype = dtype,
            ) -> tuple[Tensor, ...]:
                return _pooled(pool, setting, shape, count, last, dtype, device)

            layout = "nhwc" if last else "nchw"
            name = f"{pool.__name__.strip('_')} {setting} {count} on {channels}x{size}"
            yield f"{name} {layout} {dtype}", work


def pyramid_calls() -> Iterator[Call]:
    """MultiScaleRoIAlign with gradients, with and without boxes in an image."""
    for counts, channels in itertools.product(((9, 4), (0, 3), (0, 0), (65, 1)), CHANNELS):

        def work(
            device: torch.device, counts: tuple[int, int] = counts, channels: int = channels
        ) -> tuple[Tensor, ...]:
            random = generator(channels)
            levels = {
                str(level): torch.randn(2, channels, 64 >> level, 48 >> level, generator=random)
                .to(device)
                .requires_grad_()
                for level in range(4)
            }
            module = ops.MultiScaleRoIAlign(list(levels), 7, 2)
            boxes = [
                random_boxes(count, random, (192, 256), (4, 400)).to(device) for count in counts
            ]
            pooled = module(levels, boxes, [(256, 192), (256, 192)])
            return (pooled, *_gradients(pooled, tuple(levels.values())))

        yield f"multi_scale_roi_align {counts} channels={channels}", work


def bad_index_calls() -> Iterator[Call]:
    """RoIs of images that are not there: zeros on CUDA, without a read out of bounds."""
    for index in (2.0, -1.0, 1e9, -1e9, math.nan, math.inf):
        for pool in (_align, _pool):

            def work(
                device: torch.device, index: float = index, pool: Callable[..., Tensor] = pool
            ) -> tuple[Tensor, ...]:
                features = torch.ones(2, 5, 9, 8, device=device, requires_grad=True)
                rois = torch.tensor([[index, 1.0, 1.0, 6.0, 6.0]], device=device)
                if device.type == "cpu":
                    return (torch.zeros(1, 5, 7, 7), torch.zeros(2, 5, 9, 8))
                pooled = pool(features, rois, 7, 2, False)
                return (pooled, *_gradients(pooled, (features,)))

            yield f"{pool.__name__.strip('_')} of image {index}", work


def interleaved() -> list[Call]:
    """Return all calls, alternating between the families."""
    families = (
        iou_calls(),
        match_calls(),
        nms_calls(),
        long_nms_calls(),
        soft_nms_calls(),
        merging_calls(),
        proposal_calls(),
        detection_calls(),
        roi_calls(),
        pyramid_calls(),
        bad_index_calls(),
    )
    rounds = itertools.zip_longest(*families)
    return [call for calls in rounds for call in calls if call is not None]


def run(calls: list[Call], device: torch.device, seconds: float) -> tuple[int, list[str]]:
    """Run calls until the time is over.

    Returns:
        The number of calls made, and what was wrong, one line each.
    """
    end = time.monotonic() + seconds
    wrong: list[str] = []
    for done, (name, work) in enumerate(calls):
        if time.monotonic() > end:
            return done, wrong
        expected = work(torch.device("cpu"))
        got = work(device)
        for number, (a, b) in enumerate(zip(got, expected, strict=True)):
            tolerance = 1e-4 if b.dtype in (torch.float32, torch.float64) else 2e-2
            try:
                torch.testing.assert_close(
                    a.cpu(), b, rtol=tolerance, atol=tolerance, equal_nan=True
                )
            except AssertionError as error:
                reason = " ".join(str(error).split())
                wrong.append(f"{name}, result {number}: {reason}")
    return len(calls), wrong


def _boxes(count: int, seed: int, device: torch.device) -> Tensor:
    boxes = random_boxes(count, generator(seed), (160, 120))
    return boxes.to(device)


def _align(features: Tensor, rois: Tensor, size: Any, ratio: int, aligned: bool) -> Tensor:
    return ops.roi_align(features, rois, size, 0.25, ratio, aligned)


def _pool(features: Tensor, rois: Tensor, size: Any, *_: Any) -> Tensor:
    return ops.roi_pool(features, rois, size, 0.25)


def _pooled(
    pool: Callable[..., Tensor],
    setting: tuple[Any, ...],
    shape: tuple[int, int, int, int],
    count: int,
    last: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, ...]:
    random = generator(count)
    features = torch.randn(shape, generator=random).to(dtype)
    if last:
        features = features.contiguous(memory_format=torch.channels_last)
    image_size = (4 * shape[3], 4 * shape[2])
    boxes = random_boxes(count, random, image_size, (1, 90))
    images = torch.randint(2, (count, 1), generator=random)
    rois = torch.cat([images, boxes], dim=1).to(device, dtype)  # [K, 5]
    leaf = features.to(device).requires_grad_()
    pooled = pool(leaf, rois, *setting)
    return (pooled, *_gradients(pooled, (leaf,)))


def _gradients(pooled: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weights = torch.rand(pooled.shape, generator=generator(7)).to(pooled.device, pooled.dtype)
    # A level without boxes may be left out of the graph.
    return torch.autograd.grad(
        (pooled * weights).sum(), leaves, allow_unused=True, materialize_grads=True
    )


def main() -> int:
    """Run the workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this time")
    options = parser.parse_args()
    calls = interleaved()
    done, wrong = run(calls, torch.device(options.device), options.seconds)
    for line in wrong:
        print(f"WRONG: {line}")
    if wrong:
        return 1
    print(f"WORKLOAD: {done} of {len(calls)} calls")
    return 0


if __name__ == "__main__":
    sys.exit(main())
