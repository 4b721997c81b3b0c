"""RoIPool.

CPU: ``csrc/roi_pool/roi_pool_cpu.cpp``, kernels in ``csrc/roi_pool/roi_pool_cpu-inl.h`` and
``csrc/roi_pool/roi_pool_strips_cpu-inl.h``.
CUDA: ``csrc/roi_pool/roi_pool_cuda.cu``, backward in
``csrc/cuda/roi_gather/roi_gather.cuh``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rcnn_ext import reference
from rcnn_ext._memory_format import empty_map, is_channels_last
from rcnn_ext.ops._library import define_operator
from rcnn_ext.ops._public import public_operator
from rcnn_ext.ops._rois import empty_bins, pair, to_rois
from rcnn_ext.reference.roi_pool import check_roi_pool, check_roi_pool_backward, gather_at_maxima


@public_operator
def roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """Take the maximum of each bin of each region of interest; differentiable in ``input``.

    Bins are rounded to whole feature pixels. An empty bin gives 0; a bin with a NaN gives NaN.

    Args:
        input: Feature maps ``[N, C, H, W]``, float16, bfloat16, float32 or float64, contiguous or
            channels-last.
        boxes: ``[K, 5]`` (batch index, x1, y1, x2, y2) or one ``[L, 4]`` (x1, y1, x2, y2) per
            image, in image pixels, floating; the dtype may be wider than that of input.
        output_size: Bins (height, width), or one number for both; 0 gives an empty result.
        spatial_scale: Feature pixels per image pixel: 1 / stride of the feature map.

    Returns:
        ``[K, C, height, width]`` in the dtype and memory format of input.

    Raises:
        RuntimeError: Wrong shape, dtype, device or option.
        IndexError: A batch index outside the batch, on the CPU. On CUDA such a RoI gives zeros.

    Drop-in replacement for :func:`torchvision.ops.roi_pool`. Girshick, "Fast R-CNN", ICCV 2015.

    Example:
        >>> features = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> roi_pool(features, [torch.tensor([[0.0, 0, 3, 3]])], 2)
        tensor([[[[ 5.,  7.],
                  [13., 15.]]]])
    """
    height, width = pair(output_size, "roi_pool")
    rois = to_rois(boxes, "roi_pool")
    if min(height, width) == 0:
        return empty_bins(input, rois, (height, width), "roi_pool")
    return _roi_pool(input, rois, spatial_scale, height, width)[0]


class RoIPool(nn.Module):
    """:func:`roi_pool` as a module; a drop-in replacement for :class:`torchvision.ops.RoIPool`.

    Args:
        output_size: As in :func:`roi_pool`.
        spatial_scale: As in :func:`roi_pool`.
    """

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """Pool ``[N, C, H, W]`` to ``[K, C, height, width]``; see :func:`roi_pool`."""
        return roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        """Return the options, for ``repr``."""
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


def _fake(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    check_roi_pool(input, rois, spatial_scale, pooled_height, pooled_width)
    shape = (rois.shape[0], input.shape[1], pooled_height, pooled_width)
    channels_last = is_channels_last(input)
    return (
        empty_map(input, shape, channels_last=channels_last),
        empty_map(input, shape, channels_last=channels_last, dtype=torch.int32),
    )


def _fake_backward(
    grad: Tensor,
    argmax: Tensor,
    rois: Tensor,
    spatial_scale: float,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    shape = (batch_size, channels, height, width)
    check_roi_pool_backward(grad, argmax, rois, spatial_scale, shape)
    return empty_map(grad, shape, channels_last=channels_last)


def _save_argmax(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, rois, ctx.spatial_scale, _, _ = inputs
    _, argmax = output
    ctx.mark_non_differentiable(argmax)
    ctx.save_for_backward(argmax, rois)
    ctx.shape = input.shape
    ctx.channels_last = is_channels_last(input)


def _backward(ctx: Any, grad: Tensor, grad_argmax: Tensor | None) -> tuple[Any, ...]:
    argmax, rois = ctx.saved_tensors
    grad_input = _roi_pool_backward(
        grad, argmax, rois, ctx.spatial_scale, *ctx.shape, ctx.channels_last
    )
    return grad_input, None, None, None, None


def _save_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, argmax, rois, *_ = inputs
    ctx.save_for_backward(argmax, rois)


def _double_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return gather_at_maxima(grad, *ctx.saved_tensors), *[None] * 8


_roi_pool_backward = define_operator(
    "roi_pool_backward",
    "(Tensor grad, Tensor argmax, Tensor rois, float spatial_scale, SymInt batch_size, "
    "SymInt channels, SymInt height, SymInt width, bool channels_last) -> Tensor",
    reference=reference.roi_pool_backward,
    fake=_fake_backward,
    backward=_double_backward,
    setup_context=_save_for_double_backward,
)
_roi_pool = define_operator(
    "roi_pool",
    "(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width) "
    "-> (Tensor, Tensor)",
    reference=reference.roi_pool,
    fake=_fake,
    backward=_backward,
    setup_context=_save_argmax,
)
