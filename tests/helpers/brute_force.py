"""The operators again, box by box and sample by sample, in double precision and plain Python.

Written from the definitions, to be read rather than run fast; nothing here is shared with the
package. Tensors come and go on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Number = float | np.float32


def _divide(a: Any, b: Any) -> Any:
    """As IEEE 754 has it, where Python would raise."""
    if b == 0:
        return type(a)(math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a))
    return a / b


def _iou(a: Sequence[Any], b: Sequence[Any]) -> Any:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), type(a[0])(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), type(a[0])(0))
    overlap = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return _divide(overlap, union)


def _ios(a: Sequence[Any], b: Sequence[Any]) -> Any:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), type(a[0])(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), type(a[0])(0))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return _divide(width * height, min(areas))


def _measure(name: str, a: Sequence[float], b: Sequence[float], eps: float) -> float:
    iou = _iou(a, b)
    if name == "box_iou":
        return iou
    if name == "box_ios":
        return _ios(a, b)
    hull_width = max(a[2], b[2]) - min(a[0], b[0])
    hull_height = max(a[3], b[3]) - min(a[1], b[1])
    if name == "generalized_box_iou":
        width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
        height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
        areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        hull = hull_width * hull_height
        return iou - (hull - (areas - width * height)) / hull
    x_distance = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2
    y_distance = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2
    diagonal = hull_width**2 + hull_height**2 + eps
    distance_iou = iou - (x_distance**2 + y_distance**2) / diagonal
    if name == "distance_box_iou":
        return distance_iou
    angle_a = math.atan((a[2] - a[0]) / (a[3] - a[1]))
    angle_b = math.atan((b[2] - b[0]) / (b[3] - b[1]))
    v = 4 / math.pi**2 * (angle_a - angle_b) ** 2
    return distance_iou - v * v / (1 - iou + v + eps)


def pairwise(name: str, boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """``[N, 4]`` and ``[M, 4]`` to ``[N, M]`` by one of the five measures."""
    rows = [
        [_measure(name, a, b, eps) for b in boxes2.double().tolist()]
        for a in boxes1.double().tolist()
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(boxes1), len(boxes2))


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    idxs: Tensor | None = None,
) -> Tensor:
    """Greedy suppression; IoUs in float64 for float64 boxes, else in float32."""
    wide = boxes.dtype == torch.float64
    number = float if wide else np.float32
    rows = [[number(value) for value in row] for row in boxes.double().tolist()]
    order = torch.sort(scores, descending=True, stable=True).indices.tolist()
    classes = [0] * len(rows) if idxs is None else idxs.tolist()
    kept: list[int] = []
    with np.errstate(all="ignore"):
        for i in order:
            if not all(math.isfinite(value) for value in rows[i]):
                continue
            rivals = [k for k in kept if classes[k] == classes[i]]
            if not any(float(_iou(rows[k], rows[i])) > iou_threshold for k in rivals):
                kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def match_boxes(
    gt_boxes: Tensor, boxes: Tensor, high: float, low: float, low_quality: bool
) -> tuple[list[int], list[float]]:
    """Matches and best IoUs of boxes ``[P, 4]``; float32 but for float64 boxes."""
    number = float if boxes.dtype == torch.float64 else np.float32
    gts, rows = (
        [[number(value) for value in row] for row in b.double().tolist()] for b in (gt_boxes, boxes)
    )
    with np.errstate(all="ignore"):
        ious = [[_iou(gt, row) for gt in gts] for row in rows]  # [P][G]
    if not gts:
        return [-1] * len(rows), [0.0] * len(rows)

    def first_best(values: list[Any]) -> int:
        for index, value in enumerate(values):
            if math.isnan(value):
                return index
        return values.index(max(values))

    peaks = [column[first_best(list(column))] for column in zip(*ious, strict=True)]
    matches, best = [], []
    for of_box in ious:
        index = first_best(of_box)
        iou = of_box[index]
        best_of_a_ground_truth = any(
            value == peak for value, peak in zip(of_box, peaks, strict=True)
        )
        if low_quality and best_of_a_ground_truth:
            matches.append(index)
        elif iou < number(low):
            matches.append(-1)
        elif number(low) <= iou < number(high):
            matches.append(-2)
        else:
            matches.append(index)
        best.append(float(iou))
    return matches, best


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    method: str,
    idxs: Tensor | None = None,
) -> tuple[list[int], list[float]]:
    """Soft suppression as the paper writes it; in float64 where an input is, else in float32."""
    wide = torch.float64 in (boxes.dtype, scores.dtype)
    number: Any = float if wide else np.float32
    rows = [[number(value) for value in row] for row in boxes.double().tolist()]
    left = {
        i: number(score)
        for i, score in enumerate(scores.double().tolist())
        if score >= score_threshold and all(math.isfinite(value) for value in rows[i])
    }
    classes = [0] * len(rows) if idxs is None else idxs.tolist()
    taken: dict[int, Any] = {}
    with np.errstate(all="ignore"):
        while left:
            best = max(left, key=lambda i: (left[i], -i))
            taken[best] = left.pop(best)
            for i in [i for i in left if classes[i] == classes[best]]:
                iou = _iou(rows[best], rows[i])
                if method == "gaussian":
                    left[i] *= number(math.exp(-float(iou * iou) / sigma)) if iou > 0 else number(1)
                elif float(iou) >= iou_threshold and iou > 0:
                    left[i] *= number(1) - iou
                if not float(left[i]) >= score_threshold:
                    del left[i]
    order = sorted(taken, key=lambda i: (-taken[i], i))
    return order, [float(taken[i]) for i in order]


def non_max_merging(
    boxes: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    metric: str,
    segments: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Greedy merging; boxes ``[N, 4]`` in the type to compute in, scores ``[N]``.

    Returns:
        Merged boxes ``[K, 4]``, the index of the best box of each, and the result of each box.
    """
    segments = np.zeros(len(boxes), dtype=np.int64) if segments is None else segments
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(boxes[order]).all(axis=1)]
    merged, kept, groups = [], [], np.full(len(boxes), -1, dtype=np.int64)
    with np.errstate(all="ignore"):
        areas = _areas(boxes)
        while len(order) > 0:
            best, rest = order[0], order[1:]
            overlaps = _overlaps(boxes[best], areas[best], boxes[rest], areas[rest], metric)
            claims = (overlaps.astype(np.float64) >= threshold) & (segments[rest] == segments[best])
            extent = boxes[best].copy()
            for i in rest[claims]:
                row = slice(i, i + 1)
                overlap = _overlaps(extent, _areas(extent), boxes[row], areas[row], metric)[0]
                if float(overlap) >= threshold:
                    extent[:2] = np.minimum(extent[:2], boxes[i, :2])
                    extent[2:] = np.maximum(extent[2:], boxes[i, 2:])
            groups[best] = groups[rest[claims]] = len(kept)
            merged.append(extent)
            kept.append(best)
            order = rest[~claims]
    return np.array(merged, boxes.dtype).reshape(-1, 4), np.array(kept, np.int64), groups


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _overlaps(
    box: np.ndarray, area: np.ndarray, others: np.ndarray, areas: np.ndarray, metric: str
) -> np.ndarray:
    """IoU or intersection over the smaller area of one box and others ``[M, 4]``."""
    sizes = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    overlap = np.maximum(sizes, 0).prod(axis=1)
    return overlap / (area + areas - overlap if metric == "iou" else np.minimum(area, areas))


def _axis_samples(
    start: float, end: float, bins: int, sampling_ratio: int, aligned: bool
) -> list[list[float]]:
    """Positions of the samples of each bin along one axis."""
    if aligned:
        start, end = start - 0.5, end - 0.5
        length = end - start
    else:
        length = max(end - start, 1.0)
    size = length / bins
    count = sampling_ratio if sampling_ratio > 0 else math.ceil(size)
    return [
        [start + b * size + (i + 0.5) * size / count for i in range(count)] for b in range(bins)
    ]


def _bilinear(y: float, x: float, height: int, width: int) -> list[tuple[int, int, float]]:
    """The pixels that a sample reads, with weights."""
    if y < -1 or y > height or x < -1 or x > width:
        return []
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    low_y, low_x = int(y), int(x)
    high_y, high_x = min(low_y + 1, height - 1), min(low_x + 1, width - 1)
    fy, fx = y - low_y, x - low_x
    return [
        (low_y, low_x, (1 - fy) * (1 - fx)),
        (low_y, high_x, (1 - fy) * fx),
        (high_y, low_x, fy * (1 - fx)),
        (high_y, high_x, fy * fx),
    ]


def _align_weights(
    rois: Tensor,
    height: int,
    width: int,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Iterator[tuple[int, int, int, int, int, int, float]]:
    """Every (RoI, image, bin row, bin column, pixel row, pixel column, weight)."""
    for k, (image, x1, y1, x2, y2) in enumerate(rois.double().tolist()):
        rows = _axis_samples(
            y1 * spatial_scale, y2 * spatial_scale, output_size[0], sampling_ratio, aligned
        )
        columns = _axis_samples(
            x1 * spatial_scale, x2 * spatial_scale, output_size[1], sampling_ratio, aligned
        )
        for ph, ys in enumerate(rows):
            for pw, xs in enumerate(columns):
                count = max(len(ys) * len(xs), 1)
                for y in ys:
                    for x in xs:
                        for row, column, weight in _bilinear(y, x, height, width):
                            yield k, int(image), ph, pw, row, column, weight / count


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """``[N, C, H, W]`` and ``[K, 5]`` to float64 ``[K, C, PH, PW]``."""
    features = input.double()
    output = torch.zeros(len(rois), input.shape[1], *output_size, dtype=torch.float64)
    for k, n, ph, pw, row, column, weight in _align_weights(
        rois, *input.shape[2:], output_size, spatial_scale, sampling_ratio, aligned
    ):
        output[k, :, ph, pw] += weight * features[n, :, row, column]
    return output


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    input_shape: Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """``[K, C, PH, PW]`` to the float64 gradient ``[N, C, H, W]``."""
    result = torch.zeros(*input_shape, dtype=torch.float64)
    upstream = grad.double()
    output_size = (grad.shape[2], grad.shape[3])
    for k, n, ph, pw, row, column, weight in _align_weights(
        rois, *input_shape[2:], output_size, spatial_scale, sampling_ratio, aligned
    ):
        result[n, :, row, column] += weight * upstream[k, :, ph, pw]
    return result


def _round(value: float) -> int:
    """Halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def _pool_ranges(start: float, end: float, bins: int, extent: int) -> list[range]:
    """Pixels of each bin along one axis."""
    first, last = _round(start), _round(end)
    length = max(last - first + 1, 1)
    # floor(b * length / bins) and ceil((b + 1) * length / bins), in whole numbers
    starts = [first + b * length // bins for b in range(bins)]
    ends = [first - (-(b + 1) * length) // bins for b in range(bins)]
    return [range(max(s, 0), min(e, extent)) for s, e in zip(starts, ends, strict=True)]


def roi_pool(
    input: Tensor, rois: Tensor, output_size: tuple[int, int], spatial_scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Maxima ``[K, C, PH, PW]`` and their pixels ``y * W + x`` (-1: no pixel)."""
    _, channels, height, width = input.shape
    features = input.double().tolist()
    output = torch.zeros(len(rois), channels, *output_size, dtype=torch.float64)
    argmax = torch.full(output.shape, -1)
    for k, (image, x1, y1, x2, y2) in enumerate(rois.double().tolist()):
        rows = _pool_ranges(y1 * spatial_scale, y2 * spatial_scale, output_size[0], height)
        columns = _pool_ranges(x1 * spatial_scale, x2 * spatial_scale, output_size[1], width)
        for c in range(channels):
            plane = features[int(image)][c]
            for ph, ys in enumerate(rows):
                for pw, xs in enumerate(columns):
                    pixels = [(y, x) for y in ys for x in xs]
                    if pixels:
                        y, x = max(pixels, key=lambda at: plane[at[0]][at[1]])  # noqa: B023
                        output[k, c, ph, pw] = plane[y][x]
                        argmax[k, c, ph, pw] = y * width + x
    return output, argmax


def roi_pool_backward(
    grad: Tensor, argmax: Tensor, rois: Tensor, input_shape: Sequence[int]
) -> Tensor:
    """``[K, C, PH, PW]`` and pixels of maxima to the float64 gradient ``[N, C, H, W]``."""
    result = torch.zeros(*input_shape, dtype=torch.float64)
    for k, c, ph, pw in (argmax >= 0).nonzero().tolist():
        y, x = divmod(int(argmax[k, c, ph, pw]), input_shape[3])
        result[int(rois[k, 0]), c, y, x] += grad[k, c, ph, pw].double()
    return result
