"""Bad calls of the operators on boxes, and their error messages."""

from __future__ import annotations

import math
from typing import Any

import torch

from rcnn_ext import ops
from tests.helpers.bad_calls import FLOATS, Call, Cases, make, make_rois

rcnn = torch.ops.rcnn_ext


def _iou(boxes1: Any, boxes2: Any, operator: Any = ops.box_iou) -> Call:
    return lambda device: operator(make(boxes1, device), make(boxes2, device))


def _raw_iou(boxes1: Any, boxes2: Any, measure: int = 0) -> Call:
    return lambda device: rcnn.box_iou(make(boxes1, device), make(boxes2, device), measure, 0.0)


def _iou_backward(grad: Any, boxes1: Any, boxes2: Any, measure: int = 0) -> Call:
    return lambda device: rcnn.box_iou_backward(
        make(grad, device), make(boxes1, device), make(boxes2, device), measure, 0.0
    )


def _nms(boxes: Any, scores: Any) -> Call:
    return lambda device: ops.nms(make(boxes, device), make(scores, device), 0.5)


def _batched(boxes: Any, scores: Any, idxs: Any, operator: Any = ops.batched_nms) -> Call:
    return lambda device: operator(
        make(boxes, device), make(scores, device), make(idxs, device), 0.5
    )


def _match(gt: Any, boxes: Any, high: float = 0.5, low: float = 0.2) -> Call:
    return lambda device: ops.match_boxes(make(gt, device), make(boxes, device), high, low)


def _raw_match(gt: Any, gt_counts: list[int], boxes: Any, box_counts: list[int]) -> Call:
    return lambda device: rcnn.match_boxes(
        make(gt, device), gt_counts, make(boxes, device), box_counts, 0.5, 0.2, True
    )


def _batched_match(gt: list[Any], boxes: Any) -> Call:
    return lambda device: ops.batched_match_boxes(
        [make(g, device) for g in gt], make_rois(boxes, device), 0.5, 0.2
    )


def _propose(
    logits: Any = ((2, 3, 4, 5), (2, 3, 2, 2)),
    deltas: Any = ((2, 12, 4, 5), (2, 12, 2, 2)),
    anchors: Any = (72, 4),
    sizes: Any = (2, 2),
    **options: Any,
) -> Call:
    return lambda device: ops.generate_proposals(
        [make(level, device) for level in logits],
        [make(level, device) for level in deltas],
        make(anchors, device),
        make(sizes, device),
        **options,
    )


def _detect(
    logits: Any = (6, 3),
    deltas: Any = (6, 12),
    rois: Any = (6, 4),
    ids: Any = None,
    sizes: Any = (2, 2),
    **options: Any,
) -> Call:
    ids = torch.zeros(6, dtype=torch.int64) if ids is None else ids
    return lambda device: ops.postprocess_detections(
        *(make(what, device) for what in (logits, deltas, rois, ids, sizes)), **options
    )


INTEGERS = torch.zeros(1, 2, 4, dtype=torch.uint8)
COMPLEX = torch.zeros(2, 4, dtype=torch.complex64)

BOX_ERRORS: Cases = {
    "iou of 5 columns": (_iou((2, 5), (3, 4)), r"box_iou: .*boxes1 of shape .*5\]"),
    "iou of 3 columns": (_iou((2, 4), (3, 3)), r"box_iou: .*boxes2 of shape .*3\]"),
    "iou of a box": (_iou((4,), (3, 4)), r"box_iou: .*boxes1 .*boxes2 .*got \[4\] and \[3, 4\]"),
    "iou of a number": (_iou((2, 4), ()), r"box_iou: .*boxes1 .*boxes2 .*got \[2, 4\] and \[\]"),
    "iou of other batches": (
        _iou((3, 2, 4), (2, 2, 4), ops.generalized_box_iou),
        r"box_iou: expected leading dimensions .* got \[3, 2, 4\] and \[2, 2, 4\]",
    ),
    "iou of complex boxes": (
        _iou(COMPLEX, COMPLEX, ops.complete_box_iou),
        rf"box_iou: expected boxes1 to be {FLOATS}, got complex64",
    ),
    "raw iou of a matrix": (_raw_iou((2, 4), (1, 2, 4)), r"box_iou: .*\[B, N, 4\], got \[2, 4\]"),
    "raw iou of batches": (
        _raw_iou((3, 2, 4), (2, 2, 4)),
        "box_iou: .*one batch size, got 3 and 2",
    ),
    "raw iou of two dtypes": (
        _raw_iou((1, 2, 4), torch.zeros(1, 2, 4, dtype=torch.float64)),
        "box_iou: .*boxes1 and boxes2 of one dtype, got float32 and float64",
    ),
    "raw iou of bytes": (
        _raw_iou(INTEGERS, INTEGERS),
        rf"box_iou: expected boxes1 to be {FLOATS}, got uint8",
    ),
    "raw iou of no bytes": (
        _raw_iou(INTEGERS[:, :0], INTEGERS),
        rf"box_iou: expected boxes1 to be {FLOATS}, got uint8",
    ),
    "measure": (_raw_iou((1, 2, 4), (1, 2, 4), 5), "box_iou: expected measure 0, .* 3 or 4, got 5"),
    "measure of nothing": (_raw_iou((1, 0, 4), (1, 2, 4), -1), "box_iou: expected measure .* -1"),
    "measure backward": (
        _iou_backward((1, 2, 3), (1, 2, 4), (1, 3, 4), 5),
        "box_iou: expected measure 0, 1, 2, 3 or 4, got 5",
    ),
    "iou backward, grad": (
        _iou_backward((1, 3, 2), (1, 2, 4), (1, 3, 4)),
        r"box_iou_backward: expected grad of shape \[1, 2, 3\], got \[1, 3, 2\]",
    ),
    "iou backward, integers": (
        _iou_backward((1, 2, 2), INTEGERS.long(), INTEGERS.long()),
        rf"box_iou_backward: expected boxes1 to be {FLOATS}, got int64",
    ),
    "nms of 5 columns": (
        _nms((3, 5), (3,)),
        r"nms: expected boxes of shape \[N, 4\], got \[3, 5\]",
    ),
    "nms of a box": (_nms((4,), (1,)), r"nms: expected boxes of shape \[N, 4\], got \[4\]"),
    "nms of a batch": (_nms((1, 3, 4), (3,)), r"nms: expected boxes of shape .* got \[1, 3, 4\]"),
    "nms, scores": (_nms((3, 4), (2,)), r"nms: expected scores of shape \[3\], .*got \[2\]"),
    "nms, scores 2-D": (
        _nms((3, 4), (3, 1)),
        r"nms: expected scores of shape \[3\], .*got \[3, 1\]",
    ),
    "nms of integers": (
        _nms(torch.zeros(3, 4, dtype=torch.int32), (3,)),
        rf"nms: expected boxes to be {FLOATS}, got int32",
    ),
    "nms, complex scores": (
        _nms((2, 4), COMPLEX[:, 0]),
        "nms: expected scores to be real numbers, got complex64",
    ),
    "nms, scores of 8 bits": (
        _nms((2, 4), torch.zeros(2).to(torch.float8_e4m3fn)),
        "nms: expected scores of a dtype that sorts, got float8_e4m3fn",
    ),
    "match of 5 columns": (
        _match((3, 5), (3, 4)),
        r"match_boxes: expected gt_boxes of shape \[N, 4\], got \[3, 5\]",
    ),
    "match of a number": (_match((), (3, 4)), r"match_boxes: expected gt_boxes .* got \[\]"),
    "match of a box": (_match((3, 4), (4,)), r"match_boxes: expected boxes .* got \[4\]"),
    "match of complex boxes": (
        _match(COMPLEX, COMPLEX),
        rf"match_boxes: expected boxes to be {FLOATS}, got complex64",
    ),
    "match of two dtypes": (
        _raw_match((2, 4), [2], COMPLEX, []),
        "match_boxes: expected gt_boxes and boxes of one dtype, got float32 and complex64",
    ),
    "match, thresholds": (
        _match((2, 4), (3, 4), 0.25, 0.5),
        "match_boxes: expected low_threshold of at most high_threshold, got 0.5 and 0.25",
    ),
    "match, NaN": (_match((2, 4), (3, 4), math.nan), "match_boxes: .* at most high_threshold"),
    "match, ground truths": (
        _raw_match((3, 4), [2, 2], (3, 4), []),
        "match_boxes: expected gt_counts that sum up to the 3 boxes of gt_boxes, got 4",
    ),
    "match, ground truths below 0": (
        _raw_match((3, 4), [4, -1], (3, 4), []),
        r"match_boxes: expected gt_counts between 0 and 2\^31 - 1, got -1",
    ),
    "match, boxes": (
        _raw_match((3, 4), [2, 1], (3, 4), [2, 2]),
        "match_boxes: expected box_counts that sum up to the 3 boxes of boxes, got 4",
    ),
    "match, images": (
        _raw_match((3, 4), [2, 1], (3, 4), [3]),
        "match_boxes: expected as many box_counts as gt_counts, or none, got 1 and 2",
    ),
    "match of too many": (
        _raw_match((3, 4), [3], (3, 4), [2**40]),
        r"match_boxes: expected box_counts between 0 and 2\^31 - 1, got 1099511627776",
    ),
    "batch of matches": (
        _batched_match([(3, 4)], [(3, 4), (2, 4)]),
        "match_boxes: expected gt_boxes and boxes of as many images, got 1 and 2",
    ),
    "batch of matches, ground truth": (
        _batched_match([(3, 4), (4,)], (3, 4)),
        r"match_boxes: expected gt_boxes\[1\] of shape \[G, 4\], got \[4\]",
    ),
    "batch of matches, boxes": (
        _batched_match([(3, 4), (3, 4)], [(3, 4), (3, 5)]),
        r"match_boxes: expected boxes\[1\] of shape \[P, 4\], got \[3, 5\]",
    ),
    "proposals of no level": (
        _propose((), ()),
        "generate_proposals: .*of the same levels, at least one, got 0 and 0",
    ),
    "proposals, levels": (_propose(deltas=((2, 12, 4, 5),)), "generate_proposals: .*got 2 and 1"),
    "proposals of a matrix": (
        _propose(((2, 60),), ((2, 240),)),
        r"generate_proposals: expected logits\[0\] of shape \[N, K, H, W\], got \[2, 60\]",
    ),
    "proposals, images": (
        _propose(((2, 3, 4, 5), (1, 3, 2, 2))),
        r"generate_proposals: expected logits\[1\] of 2 images, as the first, got 1",
    ),
    "proposals, deltas": (
        _propose(deltas=((2, 12, 4, 5), (2, 3, 2, 2))),
        r"generate_proposals: expected deltas\[1\] of shape \[2, 12, 2, 2\], got \[2, 3, 2, 2\]",
    ),
    "proposals of integers": (
        _propose((INTEGERS,), (INTEGERS,)),
        rf"generate_proposals: expected logits to be {FLOATS}, got uint8",
    ),
    "proposals of two dtypes": (
        _propose(((2, 3, 4, 5), torch.zeros(2, 3, 2, 2, dtype=torch.float64))),
        "generate_proposals: .*deltas of one dtype, got float32, float64 and float32",
    ),
    "proposals, anchors": (
        _propose(anchors=(71, 4)),
        r"generate_proposals: expected anchors of shape \[72, 4\] or \[2, 72, 4\], got \[71, 4\]",
    ),
    "proposals, anchors of images": (
        _propose(anchors=(3, 72, 4)),
        r"generate_proposals: expected anchors of shape .*, got \[3, 72, 4\]",
    ),
    "proposals, an anchor": (_propose(anchors=(4,)), r"generate_proposals: .*anchors .*got \[4\]"),
    "proposals, integer anchors": (
        _propose(anchors=torch.zeros(72, 4, dtype=torch.int64)),
        rf"generate_proposals: expected anchors to be {FLOATS}, got int64",
    ),
    "proposals, sizes": (
        _propose(sizes=(2, 3)),
        r"generate_proposals: expected image_sizes of shape \[N, 2\] .*got \[2, 3\]",
    ),
    "proposals, number of sizes": (
        _propose(sizes=(3, 2)),
        "generate_proposals: expected image_sizes of 2 images, got 3",
    ),
    "proposals, complex sizes": (
        _propose(sizes=torch.zeros(2, 2, dtype=torch.complex64)),
        "generate_proposals: expected image_sizes to be real numbers, got complex64",
    ),
    "proposals before suppression": (
        _propose(pre_nms_top_n=0),
        "generate_proposals: expected a positive pre_nms_top_n, got 0",
    ),
    "proposals after suppression": (
        _propose(post_nms_top_n=-1),
        "generate_proposals: expected a positive post_nms_top_n, got -1",
    ),
    "proposals, weights": (
        _propose(weights=(1.0, 1.0, 1.0)),
        "generate_proposals: expected four weights and four means, got 3 and 4",
    ),
    "proposals, a weight of 0": (
        _propose(weights=(1.0, 0.0, 1.0, 1.0)),
        "generate_proposals: expected positive weights, got 0",
    ),
    "detections of a vector": (
        _detect((6,)),
        r"postprocess_detections: expected logits of shape \[R, K\], got \[6\]",
    ),
    "detections without classes": (
        _detect((6, 0)),
        r"postprocess_detections: expected logits of shape \[R, K\], got \[6, 0\]",
    ),
    "detections, deltas": (
        _detect(deltas=(6, 8)),
        r"postprocess_detections: expected deltas of shape \[6, 12\] or \[6, 4\], got \[6, 8\]",
    ),
    "detections of two dtypes": (
        _detect(deltas=torch.zeros(6, 4, dtype=torch.float16)),
        "postprocess_detections: .*of one dtype, got float32 and float16",
    ),
    "detections, rois": (
        _detect(rois=(6, 5)),
        r"postprocess_detections: expected rois of shape \[6, 4\], got \[6, 5\]",
    ),
    "detections, image_ids": (
        _detect(ids=torch.zeros(5, dtype=torch.int64)),
        r"postprocess_detections: expected image_ids of shape \[6\], got \[5\]",
    ),
    "detections, image_ids of floats": (
        _detect(ids=(6,)),
        "postprocess_detections: expected image_ids to be int64, got float32",
    ),
    "detections, sizes": (
        _detect(sizes=(2,)),
        r"postprocess_detections: expected image_sizes of shape \[N, 2\] .*got \[2\]",
    ),
    "detections of an image": (
        _detect(detections_per_image=0),
        "postprocess_detections: expected a positive detections_per_image, got 0",
    ),
    "detections, means": (
        _detect(means=(0.0,) * 5),
        "postprocess_detections: expected four weights and four means, got 4 and 5",
    ),
    "detections, a negative weight": (
        _detect(weights=(1.0, 1.0, 1.0, -0.5)),
        "postprocess_detections: expected positive weights, got -0.5",
    ),
    "batched_nms of 5 columns": (
        _batched((3, 5), (3,), (3,)),
        r"batched_nms: expected boxes of shape \[N, 4\], got \[3, 5\]",
    ),
    "nms_padded of 5 columns": (
        lambda device: ops.nms_padded(make((3, 5), device), make((3,), device), 0.5, 2),
        r"nms_padded: expected boxes of shape \[N, 4\], got \[3, 5\]",
    ),
    "nms_padded, negative size": (
        lambda device: ops.nms_padded(make((3, 4), device), make((3,), device), 0.5, -1),
        "nms_padded: expected max_output of at least 0, got -1",
    ),
    "nms_padded of nothing, negative size": (
        lambda device: ops.nms_padded(make((0, 4), device), make((0,), device), 0.5, -2),
        "nms_padded: expected max_output of at least 0, got -2",
    ),
    "batched_nms_padded, idxs": (
        _batched((3, 4), (3,), (4,), lambda *of: ops.batched_nms_padded(*of, 3)),
        r"batched_nms_padded: expected idxs of shape \[3\], one for each box, got \[4\]",
    ),
    "batched_nms_padded, raw idxs": (
        _batched(
            (3, 4),
            (3,),
            torch.zeros(3, dtype=torch.int32),
            lambda *of: rcnn.batched_nms_padded(*of, 3),
        ),
        "batched_nms_padded: expected idxs to be int64, got int32",
    ),
    "batched_nms_padded, negative size": (
        _batched((3, 4), (3,), (3,), lambda *of: ops.batched_nms_padded(*of, -5)),
        "batched_nms_padded: expected max_output of at least 0, got -5",
    ),
    "batched_nms, scores": (
        _batched((3, 4), (2,), (3,)),
        r"batched_nms: expected scores of shape \[3\], one for each box, got \[2\]",
    ),
    "batched_nms, idxs": (
        _batched((3, 4), (3,), (4,)),
        r"batched_nms: expected idxs of shape \[3\], one for each box, got \[4\]",
    ),
    "batched_nms, raw idxs": (
        _batched((3, 4), (3,), torch.zeros(3, dtype=torch.int32), rcnn.batched_nms),
        "batched_nms: expected idxs to be int64, got int32",
    ),
    "batched_nms, complex idxs": (
        _batched((2, 4), (2,), COMPLEX[:, 0]),
        "batched_nms: expected idxs to be real numbers, got complex64",
    ),
    "batched_nms, complex scores": (
        _batched((2, 4), COMPLEX[:, 0], (2,)),
        "batched_nms: expected scores to be real numbers, got complex64",
    ),
}
