"""Formulas by which ``torch.utils.flop_counter.FlopCounterMode`` counts the operators.

Importing that module takes 90 ms, so the formulas are registered when somebody else imports it.
PyTorch's conventions hold: a multiplication and an addition are two operations, what a faster
algorithm saves is not subtracted, and samples beyond a map count like those inside.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from rcnn_ext.reference.box_iou import COMPLETE, DISTANCE, GENERALIZED, IOU, SMALLER
from rcnn_ext.reference.multiscale_roi_align import pyramid_levels
from rcnn_ext.reference.roi_align import compute_dtype, samples_of_bins
from rcnn_ext.reference.roi_pool import bin_limits

_COUNTER = "torch.utils.flop_counter"

# A bilinear sample is four products, each with a sum.
_FLOPS_PER_SAMPLE = 8
# Operations for each box alone: its area; for COMPLETE also the angle of its diagonal.
_FLOPS_PER_BOX = {IOU: 3, GENERALIZED: 3, DISTANCE: 3, COMPLETE: 5, SMALLER: 3}
# Operations for each pair, minimum and maximum counted as one each. The intersection takes 9, the
# rest of the IoU 3, the sides of the enclosing box 8. GENERALIZED: its area, and 3 for the part of
# it that is empty. DISTANCE: 13 for the squared distance of the centers, 4 for the squared
# diagonal, a quotient and a difference. COMPLETE: besides these 3 for the angles, 4 for the weight
# of that term and 2 to subtract it.
_FLOPS_PER_PAIR = {IOU: 12, GENERALIZED: 24, DISTANCE: 39, COMPLETE: 48, SMALLER: 11}


def _has_values(tensor: Tensor) -> bool:
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def _samples_per_roi(
    rois: Tensor,
    dtype: torch.dtype,
    scales: float | Tensor,
    bins: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> int:
    """Return the number of samples in a bin of each RoI, summed over RoIs."""
    if sampling_ratio > 0:
        return rois.shape[0] * sampling_ratio**2
    if not _has_values(rois):
        return rois.shape[0]
    # Of the size of a RoI: one sample per feature pixel.
    y, x = samples_of_bins(rois.to(dtype), scales, bins, sampling_ratio, aligned)
    samples = y.double().clamp(min=0) * x.double().clamp(min=0)
    return int(samples.nan_to_num(nan=0.0, posinf=0.0).sum())


def _roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    *_: Any,
    out_val: Any = None,
) -> int:
    bins = (pooled_height, pooled_width)
    samples = _samples_per_roi(
        rois, compute_dtype(input), spatial_scale, bins, sampling_ratio, aligned
    )
    return _FLOPS_PER_SAMPLE * samples * input.shape[1] * pooled_height * pooled_width


def _roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
    channels_last: bool,
    *,
    out_val: Any = None,
) -> int:
    return _roi_align(
        grad, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned
    )


def _multiscale_roi_align(
    inputs: Sequence[Tensor],
    rois: Tensor,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
    *,
    out_val: Any = None,
) -> int:
    dtype = compute_dtype(inputs[0])
    scales: float | Tensor = 1.0
    if sampling_ratio <= 0 and _has_values(rois):
        boxes = rois.to(dtype)
        levels = pyramid_levels(boxes, spatial_scales, canonical_scale, canonical_level)
        scales = torch.tensor(spatial_scales, dtype=dtype, device=rois.device)[levels]
    bins = (pooled_height, pooled_width)
    samples = _samples_per_roi(rois, dtype, scales, bins, sampling_ratio, aligned)
    return _FLOPS_PER_SAMPLE * samples * inputs[0].shape[1] * pooled_height * pooled_width


def _multiscale_roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
    channels_last: bool,
    *,
    out_val: Any = None,
) -> int:
    return _multiscale_roi_align(
        [grad],
        rois,
        spatial_scales,
        pooled_height,
        pooled_width,
        sampling_ratio,
        aligned,
        canonical_scale,
        canonical_level,
    )


def _roi_pool(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    *,
    out_val: Any = None,
) -> int:
    """Count a comparison per pixel of a bin."""
    if not _has_values(rois):
        return rois.shape[0] * input.shape[1] * pooled_height * pooled_width
    boxes = rois.to(compute_dtype(input))
    pixels = []  # along each axis, summed over the bins, [K]
    for column, bins, extent in (
        (2, pooled_height, input.shape[2]),
        (1, pooled_width, input.shape[3]),
    ):
        first, last = bin_limits(boxes, column, spatial_scale, bins, extent)
        pixels.append((last - first).sum(dim=1))
    return int((pixels[0] * pixels[1]).sum()) * input.shape[1]


def _roi_pool_backward(grad: Tensor, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Count an addition per bin and channel."""
    return grad.numel()


def _box_iou(
    boxes1: Tensor, boxes2: Tensor, measure: int, eps: float, *, out_val: Any = None
) -> int:
    batch, rows, columns = boxes1.shape[0], boxes1.shape[1], boxes2.shape[1]
    pairs, boxes = batch * rows * columns, batch * (rows + columns)
    return _FLOPS_PER_PAIR[measure] * pairs + _FLOPS_PER_BOX[measure] * boxes


def _box_iou_backward(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, measure: int, eps: float, *, out_val: Any = None
) -> int:
    """Count a forward pass, and as much again for the gradient by each set of boxes."""
    return 3 * _box_iou(boxes1, boxes2, measure, eps)


def _match_boxes(
    gt_boxes: Tensor,
    gt_counts: Sequence[int],
    boxes: Tensor,
    box_counts: Sequence[int],
    *_: Any,
    out_val: Any = None,
    **__: Any,
) -> int:
    """Count the IoUs of each image."""
    total = 0
    for index, gt_count in enumerate(gt_counts):
        count = box_counts[index] if box_counts else boxes.shape[0]
        total += _FLOPS_PER_PAIR[IOU] * gt_count * count + _FLOPS_PER_BOX[IOU] * (gt_count + count)
    return total


def _conv3x3_winograd(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    relu: bool,
    tile: int,
    out_channels: int,
    *,
    out_val: Any = None,
) -> int:
    """Count the direct convolution, as PyTorch does whatever the algorithm."""
    return 2 * 9 * x.numel() * out_channels


def _conv3x3_winograd_out(out: Tensor, x: Tensor, *_: Any, out_val: Any = None, **__: Any) -> int:
    return 2 * 9 * x.numel() * out.shape[1]


FORMULAS: dict[str, Callable[..., int]] = {
    "box_iou": _box_iou,
    "box_iou_backward": _box_iou_backward,
    "conv3x3_winograd": _conv3x3_winograd,
    "conv3x3_winograd_out": _conv3x3_winograd_out,
    "match_boxes": _match_boxes,
    "multiscale_roi_align": _multiscale_roi_align,
    "multiscale_roi_align_backward": _multiscale_roi_align_backward,
    "roi_align": _roi_align,
    "roi_align_backward": _roi_align_backward,
    "roi_pool": _roi_pool,
    "roi_pool_backward": _roi_pool_backward,
}


def _register(counter: ModuleType) -> None:
    """Register the formulas with ``torch.utils.flop_counter``, where it has none of them yet."""
    for name, formula in FORMULAS.items():
        operator = getattr(torch.ops.rcnn_ext, name)
        if operator not in counter.flop_registry:
            counter.register_flop_formula(operator, get_raw=True)(formula)


class _Finder(importlib.abc.MetaPathFinder):
    """Register the formulas when ``torch.utils.flop_counter`` has been imported, or reloaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the module's own specification, with a loader that registers; else ``None``."""
        if fullname != _COUNTER:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = None if find is None else find(fullname, path, target)
            if spec is not None:
                _register_after(spec.loader)
                return spec
        return None


def _register_after(loader: Any) -> None:
    """Let a loader register the formulas after it has run the module."""
    execute = loader.exec_module

    def execute_and_register(module: ModuleType) -> None:
        execute(module)
        try:
            _register(module)
        except Exception as error:  # counting must not break the import of others
            warnings.warn(
                f"rcnn_ext's operators are not counted by {_COUNTER}: {error}", stacklevel=2
            )

    loader.exec_module = execute_and_register


def install() -> None:
    """Register the formulas now where the counter is imported already, else when it is."""
    if _COUNTER in sys.modules:
        # Waits for another thread that is importing it.
        _register(importlib.import_module(_COUNTER))
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
