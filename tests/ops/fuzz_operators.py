"""Calls every operator with arguments at random, right and wrong.

Only what Python can catch may come of a call, and where it returns, the result has the right shape.
Run in a process of its own, which says what it is about to do: the last line before a crash.

Usage: fuzz_operators.py DEVICE IMPLEMENTATION SEED CALLS
"""

from __future__ import annotations

import math
import random
import sys

import torch
from torch import Tensor

from tests.helpers.backends import running

RCNN = torch.ops.rcnn_ext
FLOATING = [torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]
OTHERS = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
NUMBERS = [0.0, -0.0, 0.5, -1.0, 3.0, 1e6, -1e9, 1e20, -3e38, math.inf, -math.inf, math.nan]
SIZES = [0, 1, 1, 2, 3, 5]
IMAGES, ROIS = 2, 3

device = sys.argv[1]
call_dtype = torch.float32  # of most tensors of one call


def sometimes(probability: float) -> bool:
    return random.random() < probability


def size() -> int:
    return random.choice(SIZES)


def tensor(*shape: int) -> Tensor:
    wanted = list(shape)
    if sometimes(0.04):
        wanted[random.randrange(len(wanted))] = size()
    if sometimes(0.02):
        wanted = wanted[1:]
    if sometimes(0.02):
        wanted.insert(0, size())
    values = torch.randn(wanted) * random.choice([0.1, 3, 30])
    if sometimes(0.3) and values.numel():
        flat = values.view(-1)
        for _ in range(random.randrange(4)):
            flat[random.randrange(len(flat))] = random.choice(NUMBERS)
    if values.dim() > 1 and sometimes(0.1):
        values = values.transpose(0, -1).contiguous().transpose(0, -1)
    if values.dim() == 4 and sometimes(0.3):
        values = values.to(memory_format=torch.channels_last)
    if values.dim() > 0 and sometimes(0.1):
        values = values.repeat_interleave(2, dim=-1)[..., ::2]
    if values.dim() > 0 and values.shape[-1] and sometimes(0.05):
        values = values[..., :1].expand(values.shape)
    other = sometimes(0.06)
    return values.to(random.choice(FLOATING + OTHERS) if other else call_dtype).to(device)


def rois() -> Tensor:
    result = tensor(ROIS, 5)
    if result.dim() == 2 and result.shape[1] and sometimes(0.9):
        result = result.contiguous()
        result[:, 0] = random.randrange(IMAGES)
    return result


def number() -> float:
    return random.choice(NUMBERS) if sometimes(0.1) else random.choice([1.0, 0.25, 3.7, 100.0])


def bins() -> int:
    return random.choice([0, -1, -(2**62)]) if sometimes(0.05) else random.choice([1, 2, 3, 7])


def sampling_ratio() -> int:
    return random.choice([-1, 0, 1, 2, 3, 50, -(2**62)])


def feature_shape(channels: int) -> list[int]:
    shape = [IMAGES, channels, random.choice([0, 1, 2, 5]), random.choice([1, 2, 5])]
    if sometimes(0.1):
        shape[random.randrange(4)] = random.choice([0, 3])
    return shape


def claimed_shape(channels: int) -> list[int]:
    """Return the arguments that describe the input to a backward operator."""
    shape = feature_shape(channels)
    if sometimes(0.05):
        shape[random.randrange(4)] = -1
    return shape


def measure() -> int:
    return random.choice([-1, 4]) if sometimes(0.05) else random.randrange(4)


def coin() -> bool:
    return sometimes(0.5)


def box_iou() -> None:
    a, b = tensor(IMAGES, size(), 4), tensor(IMAGES, size(), 4)
    result = RCNN.box_iou(a, b, measure(), number())
    assert result.shape == (a.shape[0], a.shape[1], b.shape[1])


def box_iou_backward() -> None:
    n, m = size(), size()
    a, b = tensor(IMAGES, n, 4), tensor(IMAGES, m, 4)
    grad_a, grad_b = RCNN.box_iou_backward(tensor(IMAGES, n, m), a, b, measure(), number())
    assert grad_a.shape == a.shape
    assert grad_b.shape == b.shape


def match_boxes() -> None:
    gts, boxes, images = random.choice([2, 2, 5]), random.choice([1, 7, 300]), random.choice([1, 3])
    gt_counts = [0] * (images - 1) + [gts]
    box_counts = [] if coin() else [0] * (images - 1) + [boxes]
    if sometimes(0.1):
        gt_counts[0] += random.choice([-1, 1, 2**62])
    if box_counts and sometimes(0.1):
        box_counts[-1] += random.choice([-1, 1, 2**62])
    low, high = sorted([number(), number()])
    a, b = tensor(gts, 4), tensor(boxes, 4)
    matches, best = RCNN.match_boxes(a, gt_counts, b, box_counts, high, low, coin())
    assert matches.shape == best.shape == (b.shape[0] * (1 if box_counts else images),)
    assert ((matches >= -2) & (matches < max(gts, 1))).all()


def check_kept(keep: Tensor, boxes: Tensor) -> None:
    assert keep.unique().numel() == keep.numel()
    assert ((keep >= 0) & (keep < boxes.shape[0])).all()


def nms() -> None:
    boxes = tensor(7, 4)
    check_kept(RCNN.nms(boxes, tensor(7), number()), boxes)


def batched_nms() -> None:
    boxes, idxs = tensor(7, 4), tensor(7)
    if not idxs.is_complex() and sometimes(0.9):
        idxs = idxs.long()
    check_kept(RCNN.batched_nms(boxes, tensor(7), idxs, number()), boxes)


def decoding() -> tuple[float, list[float], list[float], float]:
    """Least side, weights, means and the limit of the logarithms."""
    length = 3 if sometimes(0.05) else 4
    return (
        number(),
        [random.choice([1.0, 10.0, 0.0 if sometimes(0.05) else 5.0]) for _ in range(length)],
        [random.choice([0.0, 0.1, number() if sometimes(0.1) else 1.0]) for _ in range(4)],
        number(),
    )


def generate_proposals() -> None:
    grids = [(size(), size(), size()) for _ in range(random.choice([1, 2, 3]))]
    logits = [tensor(IMAGES, k, h, w) for k, h, w in grids]
    deltas = [tensor(IMAGES, 4 * k, h, w) for k, h, w in grids]
    count = sum(k * h * w for k, h, w in grids)
    anchors = tensor(count, 4) if coin() else tensor(IMAGES, count, 4)
    pre, post = random.choice([0, 1, 5, 2**62]), random.choice([1, 3, 2**62])
    boxes, scores, counts = RCNN.generate_proposals(
        logits, deltas, anchors, tensor(IMAGES, 2), pre, post, number(), number(), *decoding()
    )
    most = min(post, sum(min(pre, k * h * w) for k, h, w in grids))
    assert boxes.shape == (logits[0].shape[0], most, 4)
    assert scores.shape == boxes.shape[:2]
    assert ((counts >= 0) & (counts <= most)).all()
    assert boxes.isfinite().all()


def postprocess_detections() -> None:
    rois, classes = random.choice([0, 1, 7, 40]), random.choice([1, 2, 5])
    logits, deltas = tensor(rois, classes), tensor(rois, random.choice([4, 4 * classes]))
    ids = (
        tensor(rois).double().nan_to_num() if coin() else torch.zeros(rois, device=device)
    ).long()
    most = random.choice([0, 1, 5, 2**62])
    boxes, scores, labels, roi_ids, counts = RCNN.postprocess_detections(
        logits, deltas, tensor(rois, 4), ids, tensor(IMAGES, 2), number(), number(), most,
        *decoding(),
    )  # fmt: skip
    assert boxes.shape == (*scores.shape, 4) == (*labels.shape, 4) == (*roi_ids.shape, 4)
    assert ((counts >= 0) & (counts <= boxes.shape[1])).all()
    assert ((labels >= 0) & (labels < classes)).all()
    assert ((roi_ids >= 0) & (roi_ids < max(rois, 1))).all()


def roi_align() -> None:
    features, boxes, height, width = tensor(*feature_shape(size())), rois(), bins(), bins()
    result = RCNN.roi_align(features, boxes, number(), height, width, sampling_ratio(), coin())
    assert result.shape == (boxes.shape[0], features.shape[1], height, width)


def roi_align_backward() -> None:
    channels, height, width = size(), bins(), bins()
    shape = claimed_shape(channels)
    grad = tensor(ROIS, channels, max(height, 0), max(width, 0))
    result = RCNN.roi_align_backward(
        grad, rois(), number(), height, width, *shape, sampling_ratio(), coin(), coin()
    )
    assert list(result.shape) == shape


def roi_pool() -> None:
    features, boxes, height, width = tensor(*feature_shape(size())), rois(), bins(), bins()
    result, argmax = RCNN.roi_pool(features, boxes, number(), height, width)
    assert result.shape == argmax.shape == (boxes.shape[0], features.shape[1], height, width)
    pixels = features.shape[2] * features.shape[3]
    assert ((argmax >= -1) & (argmax < max(pixels, 1))).all()


def roi_pool_backward() -> None:
    channels = size()
    shape = claimed_shape(channels)
    grad, argmax = tensor(ROIS, channels, 2, 3), tensor(ROIS, channels, 2, 3)
    if not argmax.is_complex() and sometimes(0.95):
        argmax = (argmax.double().nan_to_num() * 1e3).to(torch.int32)  # far outside, as a rule
    result = RCNN.roi_pool_backward(grad, argmax, rois(), number(), *shape, coin())
    assert list(result.shape) == shape


FUNCTIONS = (
    box_iou,
    box_iou_backward,
    match_boxes,
    nms,
    batched_nms,
    generate_proposals,
    postprocess_detections,
    roi_align,
    roi_align_backward,
    roi_pool,
    roi_pool_backward,
)


def main(implementation: str, seed: int, calls: int) -> None:
    global call_dtype
    random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    returned = dict.fromkeys((function.__name__ for function in FUNCTIONS), 0)
    with running(implementation):
        for call in range(calls):
            for function in FUNCTIONS:
                call_dtype = random.choice(FLOATING)
                print("call", call, function.__name__, flush=True)
                try:
                    function()
                    returned[function.__name__] += 1
                except (RuntimeError, IndexError) as error:
                    if function.__name__.removesuffix("_backward") not in str(error):
                        raise
            if device == "cuda":
                torch.cuda.synchronize()
    print("returned", returned)
    assert all(count > calls / 8 for count in returned.values()), "too many calls were refused"


if __name__ == "__main__":
    main(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
