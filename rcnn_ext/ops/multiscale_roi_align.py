"""RoIAlign over the levels of a feature pyramid.

CPU: ``csrc/multiscale_roi_align/multiscale_roi_align_cpu.cpp``.
CUDA: ``csrc/multiscale_roi_align/multiscale_roi_align_cuda.cu``.
Both run the kernels of RoIAlign, see :mod:`rcnn_ext.ops.roi_align`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rcnn_ext import reference
from rcnn_ext._memory_format import empty_map, is_channels_last
from rcnn_ext.ops._library import define_operator
from rcnn_ext.ops._public import public_operator
from rcnn_ext.ops._rois import empty_bins, fold_rois, folded, pair, to_rois
from rcnn_ext.reference.multiscale_roi_align import (
    check_multiscale_roi_align,
    check_multiscale_roi_align_backward,
)


@public_operator
def multiscale_roi_align(
    inputs: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    canonical_scale: float = 224.0,
    canonical_level: int = 4,
) -> Tensor:
    """Apply :func:`roi_align` to every box on the pyramid level that fits its size.

    A box of side ``canonical_scale`` belongs to level ``canonical_level`` (level l has stride
    2^l), and each halving of the side goes one level down: ``floor(canonical_level +
    log2(sqrt(area) / canonical_scale) + 1e-6)``, within the levels that there are. The level is
    chosen in the kernel, in the dtype that it computes in. Differentiable in ``inputs``;
    deterministic forward and backward.

    Args:
        inputs: Maps ``[N, C, H, W]``, finest first, each with twice the stride of the one before;
            of one dtype, batch size and depth. Up to 32.
        boxes: As in :func:`roi_align`.
        output_size: Bins (height, width), or one number for both; 0 gives an empty result.
        spatial_scales: Feature pixels per image pixel of each map: 1 / its stride.
        sampling_ratio: As in :func:`roi_align`.
        aligned: As in :func:`roi_align`.
        canonical_scale: Side of a box, in image pixels.
        canonical_level: Level that such a box is pooled from.

    Returns:
        ``[K, C, height, width]`` in the dtype and memory format of the first map.

    Raises:
        RuntimeError: Wrong shape, dtype, device or option.
        IndexError: A batch index outside the batch, on the CPU. On CUDA such a RoI gives zeros.

    Lin et al., "Feature Pyramid Networks", CVPR 2017, equation 1.

    Example:
        >>> maps = [torch.rand(1, 256, 64, 64), torch.rand(1, 256, 32, 32)]
        >>> boxes = [torch.tensor([[8.0, 8, 96, 96], [0, 0, 224, 224]])]
        >>> multiscale_roi_align(maps, boxes, 7, [1 / 4, 1 / 8], 2).shape
        torch.Size([2, 256, 7, 7])
    """
    height, width = pair(output_size, "multiscale_roi_align")
    rois = to_rois(boxes, "multiscale_roi_align")
    if inputs and min(height, width) == 0:
        return empty_bins(inputs[0], rois, (height, width), "multiscale_roi_align")
    return _multiscale_roi_align(
        list(inputs),
        rois,
        list(spatial_scales),
        height,
        width,
        sampling_ratio,
        aligned,
        canonical_scale,
        canonical_level,
    )


def _fake(
    inputs: Sequence[Tensor],
    rois: Tensor,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> Tensor:
    check_multiscale_roi_align(
        inputs, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio, canonical_scale
    )
    shape = (rois.shape[0], inputs[0].shape[1], pooled_height, pooled_width)
    return empty_map(inputs[0], shape, channels_last=is_channels_last(inputs[0]))


def _fake_backward(
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
) -> list[Tensor]:
    check_multiscale_roi_align_backward(
        grad,
        rois,
        spatial_scales,
        pooled_height,
        pooled_width,
        batch_size,
        channels,
        heights,
        widths,
        sampling_ratio,
        canonical_scale,
    )
    return [
        empty_map(grad, (batch_size, channels, height, width), channels_last=channels_last)
        for height, width in zip(heights, widths, strict=True)
    ]


def _save_rois(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, rois, *ctx.options = inputs
    ctx.save_for_backward(rois)
    ctx.shapes = [feature.shape for feature in maps]
    ctx.channels_last = is_channels_last(maps[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    scales, pooled_height, pooled_width, *rest = ctx.options
    grads = _multiscale_roi_align_backward(
        grad,
        rois,
        scales,
        pooled_height,
        pooled_width,
        ctx.shapes[0][0],
        ctx.shapes[0][1],
        [shape[2] for shape in ctx.shapes],
        [shape[3] for shape in ctx.shapes],
        *rest,
        ctx.channels_last,
    )
    return grads, None, *[None] * len(ctx.options)


def _save_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, rois, scales, pooled_height, pooled_width, _, _, heights, widths, *rest, _ = inputs
    ctx.save_for_backward(rois)
    ctx.options = (scales, pooled_height, pooled_width, *rest)
    ctx.shapes = [result.shape for result in output]


def _double_backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    # The gradient is linear in grad, so its derivative is multiscale_roi_align itself.
    (rois,) = ctx.saved_tensors
    given = next(grad for grad in grads if grad is not None)
    maps = [
        given.new_zeros(shape) if grad is None else grad
        for grad, shape in zip(grads, ctx.shapes, strict=True)
    ]
    return _multiscale_roi_align(maps, rois, *ctx.options), *[None] * 13


def _jvp(ctx: Any, tangents: Sequence[Tensor | None], *others: Any) -> Tensor | None:
    # Linear in its inputs; where RoIs move, it has no derivative here.
    *maps, rois = ctx.saved_tensors
    if all(tangent is None for tangent in tangents):
        return None
    along = [
        torch.zeros_like(feature) if tangent is None else tangent
        for feature, tangent in zip(maps, tangents, strict=True)
    ]
    return _multiscale_roi_align(along, rois, *ctx.options)


def _vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    inputs: Sequence[Tensor],
    rois: Tensor,
    *options: Any,
) -> tuple[Tensor, int]:
    """Pool from the images of all members of the batch in one call."""
    size, (input_dims, rois_dim, *_) = info.batch_size, in_dims
    moved = rois.expand(size, -1, -1) if rois_dim is None else rois.movedim(rois_dim, 0)
    count = moved.shape[1]
    if all(dim is None for dim in input_dims):
        maps, rois = list(inputs), moved.flatten(0, 1)
    else:
        maps = [folded(m, dim, size) for m, dim in zip(inputs, input_dims, strict=True)]
        rois = fold_rois(moved, maps[0].shape[0] // size)
    pooled = _multiscale_roi_align(maps, rois, *options)  # [V * K, C, PH, PW]
    return pooled.unflatten(0, (size, count)), 0


def _vmap_backward(
    info: Any,
    in_dims: tuple[Any, ...],
    grad: Tensor,
    rois: Tensor,
    scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    *options: Any,
) -> tuple[list[Tensor], list[int]]:
    """Compute the gradients of the images of all members of the batch in one call."""
    size, (grad_dim, rois_dim, *_) = info.batch_size, in_dims
    moved = rois.expand(size, -1, -1) if rois_dim is None else rois.movedim(rois_dim, 0)
    results = _multiscale_roi_align_backward(
        folded(grad, grad_dim, size),
        fold_rois(moved, batch_size),
        scales,
        pooled_height,
        pooled_width,
        size * batch_size,
        *options,
    )
    return [r.unflatten(0, (size, batch_size)) for r in results], [0] * len(results)


_multiscale_roi_align_backward = define_operator(
    "multiscale_roi_align_backward",
    "(Tensor grad, Tensor rois, float[] spatial_scales, int pooled_height, int pooled_width, "
    "SymInt batch_size, SymInt channels, SymInt[] heights, SymInt[] widths, int sampling_ratio, "
    "bool aligned, float canonical_scale, int canonical_level, bool channels_last) -> Tensor[]",
    reference=reference.multiscale_roi_align_backward,
    fake=_fake_backward,
    backward=_double_backward,
    setup_context=_save_for_double_backward,
    vmap=_vmap_backward,
    takes_lists=True,
)
_multiscale_roi_align = define_operator(
    "multiscale_roi_align",
    "(Tensor[] inputs, Tensor rois, float[] spatial_scales, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned, float canonical_scale, int canonical_level) -> Tensor",
    reference=reference.multiscale_roi_align,
    fake=_fake,
    backward=_backward,
    setup_context=_save_rois,
    vmap=_vmap,
    jvp=_jvp,
    takes_lists=True,
)
