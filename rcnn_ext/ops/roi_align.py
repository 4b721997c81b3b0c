"""RoIAlign.

CPU: ``csrc/roi_align/roi_align_cpu.cpp``, kernels in
``csrc/roi_align/roi_align_forward_cpu-inl.h``,
``csrc/roi_align/roi_align_few_cpu-inl.h``,
``csrc/roi_align/roi_align_transposed_cpu-inl.h``,
``csrc/roi_align/roi_align_backward_cpu-inl.h`` and
``csrc/roi_align/roi_align_backward_few_cpu-inl.h``.
CUDA: ``csrc/roi_align/roi_align_cuda.cu``, kernels in
``csrc/roi_align/roi_align_forward_cuda_kernels.cuh``,
``csrc/roi_align/roi_align_backward_cuda_kernels.cuh`` and ``csrc/cuda/roi_gather/roi_gather.cuh``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rcnn_ext import reference
from rcnn_ext._memory_format import empty_map, is_channels_last
from rcnn_ext.ops._library import define_operator
from rcnn_ext.ops._public import public_operator
from rcnn_ext.ops._rois import empty_bins, fold_rois, pair, to_rois
from rcnn_ext.reference.roi_align import check_roi_align, check_roi_align_backward


@public_operator
def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Average bilinear samples in each bin of each region of interest; differentiable in ``input``.

    Forward and backward are deterministic, and need no memory beyond their results.

    Args:
        input: Feature maps ``[N, C, H, W]``, float16, bfloat16, float32 or float64, contiguous or
            channels-last. Half types accumulate in float32.
        boxes: ``[K, 5]`` (batch index, x1, y1, x2, y2) or one ``[L, 4]`` (x1, y1, x2, y2) per
            image, in image pixels, floating; the dtype may be wider than that of input.
        output_size: Bins (height, width), or one number for both; 0 gives an empty result.
        spatial_scale: Feature pixels per image pixel: 1 / stride of the feature map.
        sampling_ratio: Samples along each axis of a bin, at most 4096; 0 or less takes one per
            feature pixel.
        aligned: Shift by half a pixel, so that coordinates and pixel centers agree (as detectron2);
            without it, RoIs are at least one feature pixel wide and high.

    Returns:
        ``[K, C, height, width]`` in the dtype and memory format of input.

    Raises:
        RuntimeError: Wrong shape, dtype, device or option.
        IndexError: A batch index outside the batch, on the CPU. On CUDA such a RoI gives zeros,
            since the check would synchronize.

    Drop-in replacement for :func:`torchvision.ops.roi_align`. He et al., "Mask R-CNN", ICCV 2017.

    Example:
        >>> features = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> roi_align(features, [torch.tensor([[0.0, 0, 4, 4]])], 2, aligned=True)
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """
    height, width = pair(output_size, "roi_align")
    rois = to_rois(boxes, "roi_align")
    if min(height, width) == 0:
        return empty_bins(input, rois, (height, width), "roi_align")
    return _roi_align(input, rois, spatial_scale, height, width, sampling_ratio, aligned)


class RoIAlign(nn.Module):
    """:func:`roi_align` as a module; a drop-in replacement for :class:`torchvision.ops.RoIAlign`.

    Args:
        output_size: As in :func:`roi_align`.
        spatial_scale: As in :func:`roi_align`.
        sampling_ratio: As in :func:`roi_align`.
        aligned: As in :func:`roi_align`.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """Pool ``[N, C, H, W]`` to ``[K, C, height, width]``; see :func:`roi_align`."""
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )

    def extra_repr(self) -> str:
        """Return the options, for ``repr``."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


def _fake(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    check_roi_align(input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio)
    shape = (rois.shape[0], input.shape[1], pooled_height, pooled_width)
    return empty_map(input, shape, channels_last=is_channels_last(input))


def _fake_backward(
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
) -> Tensor:
    shape = (batch_size, channels, height, width)
    check_roi_align_backward(
        grad, rois, spatial_scale, pooled_height, pooled_width, shape, sampling_ratio
    )
    return empty_map(grad, shape, channels_last=channels_last)


def _save_rois(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, *ctx.options = inputs
    ctx.save_for_backward(rois)
    ctx.shape = input.shape
    ctx.channels_last = is_channels_last(input)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned = ctx.options
    grad_input = _roi_align_backward(
        grad,
        rois,
        spatial_scale,
        pooled_height,
        pooled_width,
        *ctx.shape,
        sampling_ratio,
        aligned,
        ctx.channels_last,
    )
    return grad_input, None, *[None] * len(ctx.options)


def _jvp(ctx: Any, tangent: Tensor | None, *others: Any) -> Tensor | None:
    # RoIAlign is linear in its input; where RoIs move, it has no derivative here.
    _, rois = ctx.saved_tensors
    return None if tangent is None else _roi_align(tangent, rois, *ctx.options)


def _save_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, rois, *options = inputs
    ctx.save_for_backward(rois)
    # (spatial_scale, PH, PW) of the first five, (sampling_ratio, aligned) after the input's shape
    ctx.options = (*options[:3], *options[7:9])


def _double_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    # RoIAlign is linear in its input, so its derivative is RoIAlign again.
    (rois,) = ctx.saved_tensors
    return _roi_align(grad, rois, *ctx.options), *[None] * 11


def _vmap(
    info: Any, in_dims: tuple[int | None, ...], input: Tensor, rois: Tensor, *options: Any
) -> tuple[Tensor, int]:
    input_dim, rois_dim = in_dims[:2]
    if rois_dim is None:
        assert input_dim is not None
        # One set of RoIs: the batch becomes channels. [V, N, C, H, W] -> [N, V * C, H, W]
        images = input.movedim(input_dim, 1)  # [N, V, C, H, W]
        pooled = _roi_align(images.flatten(1, 2), rois, *options)  # [K, V * C, PH, PW]
        return pooled.unflatten(1, images.shape[1:3]), 1
    rois = rois.movedim(rois_dim, 0)  # [V, K, 5]
    count = rois.shape[1]
    if input_dim is None:
        rois = rois.flatten(0, 1)
    else:
        images = input.movedim(input_dim, 0)  # [V, N, C, H, W]
        rois, input = fold_rois(rois, images.shape[1]), images.flatten(0, 1)
    pooled = _roi_align(input, rois, *options)  # [V * K, C, PH, PW]
    return pooled.unflatten(0, (info.batch_size, count)), 0


_roi_align_backward = define_operator(
    "roi_align_backward",
    "(Tensor grad, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, "
    "bool aligned, bool channels_last) -> Tensor",
    reference=reference.roi_align_backward,
    fake=_fake_backward,
    backward=_double_backward,
    setup_context=_save_for_double_backward,
)
_roi_align = define_operator(
    "roi_align",
    "(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    reference=reference.roi_align,
    fake=_fake,
    backward=_backward,
    setup_context=_save_rois,
    vmap=_vmap,
    jvp=_jvp,
)
