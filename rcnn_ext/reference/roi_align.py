"""RoIAlign in plain PyTorch, as two matrix products.

Bilinear sampling on a grid is separable: a bin of a RoI is ``Y @ plane @ X^T`` with weights Y
``[PH, H]`` and X ``[PW, W]`` of the RoI. Coordinates are feature pixels unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rcnn_ext._memory_format import empty_map, is_channels_last
from rcnn_ext.reference.checks import (
    check_feature_shape,
    check_pooled_gradient,
    check_pooled_size,
    check_roi_arguments,
    check_sampling_ratio,
    check_spatial_scale,
    valid_batch_indices,
)

# Elements of the largest temporary; RoIs are taken in chunks that keep to it.
_CHUNK_ELEMENTS = 1 << 25


def check_roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
) -> None:
    """Check the arguments as the native kernels do."""
    check_roi_arguments(input, rois, "roi_align")
    check_pooled_size(pooled_height, pooled_width, "roi_align")
    check_spatial_scale(spatial_scale, "roi_align")
    check_sampling_ratio(sampling_ratio, "roi_align")


def check_roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    shape: tuple[int, ...],
    sampling_ratio: int,
) -> None:
    """Check the arguments as the native kernels do; ``shape`` is the input's, (N, C, H, W)."""
    check_feature_shape(shape, "roi_align_backward")
    check_pooled_size(pooled_height, pooled_width, "roi_align_backward")
    check_spatial_scale(spatial_scale, "roi_align_backward")
    check_sampling_ratio(sampling_ratio, "roi_align_backward")
    check_pooled_gradient(grad, rois, (shape[1], pooled_height, pooled_width), "roi_align_backward")


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average of bilinear samples in every bin of every RoI.

    Args:
        input: ``[N, C, H, W]``, floating.
        rois: ``[K, 5]`` (batch index, x1, y1, x2, y2), image pixels, floating.
        spatial_scale: Feature pixels per image pixel.
        pooled_height: Bins in y.
        pooled_width: Bins in x.
        sampling_ratio: Samples along each axis of a bin; 0 or less takes one per feature pixel.
        aligned: Shift by half a pixel, so that integer coordinates are corners of pixels.

    Returns:
        ``[K, C, PH, PW]`` in the dtype of the input, channels-last where the input is.

    Raises:
        RuntimeError: Wrong shape, dtype, device or option.
        IndexError: A batch index outside the batch (on the CPU).
    """
    check_roi_align(input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio)
    batch_size, channels, height, width = input.shape
    valid = valid_batch_indices(rois, batch_size, "roi_align")
    output = empty_map(
        input,
        (rois.shape[0], channels, pooled_height, pooled_width),
        channels_last=is_channels_last(input),
    ).zero_()
    compute = compute_dtype(input)
    for image, chunk in _chunks(rois, valid, batch_size, pooled_height * channels * width):
        y, x = _bin_weights(
            rois[chunk].to(compute),
            spatial_scale,
            (pooled_height, pooled_width),
            sampling_ratio,
            aligned,
            (height, width),
        )  # [k, PH, H] and [k, PW, W]
        pooled = _weighted_sums(_pool, input[image].to(compute), y, x)
        output[chunk] = pooled.to(output.dtype)  # [k, C, PH, PW]
    return output


def _pool(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Compute ``Y @ plane @ X^T`` for every RoI and channel.

    Args:
        plane: ``[C, H, W]``.
        y: ``[k, PH, H]``.
        x: ``[k, PW, W]``.

    Returns:
        ``[k, C, PH, PW]``
    """
    count, pooled_height, height = y.shape
    channels, _, width = plane.shape
    columns = plane.permute(1, 0, 2).reshape(height, channels * width)
    rows = y.reshape(count * pooled_height, height) @ columns  # [k * PH, C * W]
    rows = rows.view(count, pooled_height * channels, width)
    pooled = rows @ x.transpose(1, 2)  # [k, PH * C, PW]
    return pooled.view(count, pooled_height, channels, x.shape[1]).transpose(1, 2)


def roi_align_backward(
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
    """Compute the gradient of :func:`roi_align` with respect to its input.

    Args:
        grad: ``[K, C, PH, PW]``.
        rois: ``[K, 5]``, as in the forward call.
        spatial_scale: As in the forward call.
        pooled_height: As in the forward call.
        pooled_width: As in the forward call.
        batch_size: N of the input.
        channels: C of the input.
        height: H of the input.
        width: W of the input.
        sampling_ratio: As in the forward call.
        aligned: As in the forward call.
        channels_last: Memory format of the result.

    Returns:
        ``[N, C, H, W]`` in the dtype of grad.
    """
    shape = (batch_size, channels, height, width)
    check_roi_align_backward(
        grad, rois, spatial_scale, pooled_height, pooled_width, shape, sampling_ratio
    )
    valid = valid_batch_indices(rois, batch_size, "roi_align_backward")
    compute = compute_dtype(grad)
    total = grad.new_zeros(shape, dtype=compute)
    for image, chunk in _chunks(rois, valid, batch_size, pooled_height * channels * width):
        y, x = _bin_weights(
            rois[chunk].to(compute),
            spatial_scale,
            (pooled_height, pooled_width),
            sampling_ratio,
            aligned,
            (height, width),
        )  # [k, PH, H] and [k, PW, W]
        total[image] += _weighted_sums(_pool_backward, grad[chunk].to(compute), y, x)
    return empty_map(grad, shape, channels_last=channels_last).copy_(total)


def _pool_backward(upstream: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Apply the adjoint of :func:`_pool` in the plane, summed over RoIs.

    Args:
        upstream: ``[k, C, PH, PW]``.
        y: ``[k, PH, H]``.
        x: ``[k, PW, W]``.

    Returns:
        ``[C, H, W]``
    """
    count, channels, pooled_height, pooled_width = upstream.shape
    height, width = y.shape[2], x.shape[2]
    rows = upstream.transpose(1, 2).reshape(count, pooled_height * channels, pooled_width) @ x
    rows = rows.view(count * pooled_height, channels * width)
    total = y.reshape(count * pooled_height, height).t() @ rows  # [H, C * W]
    return total.view(height, channels, width).transpose(0, 1)


def _weighted_sums(
    product: Callable[[Tensor, Tensor, Tensor], Tensor], values: Tensor, y: Tensor, x: Tensor
) -> Tensor:
    """Return ``product(values, y, x)`` without values of weight 0, be they NaN or infinite."""
    finite = values.isfinite()
    if bool(finite.all()):
        return product(values, y, x)
    result = product(torch.where(finite, values, 0), y, x)
    sampled_y, sampled_x = (y > 0).to(y.dtype), (x > 0).to(x.dtype)
    for mask, value in (
        (values.isnan(), math.nan),
        (values == math.inf, math.inf),
        (values == -math.inf, -math.inf),
    ):
        found = product(mask.to(values.dtype), sampled_y, sampled_x) > 0
        result = torch.where(found, result + value, result)
    return result


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype that a kernel computes in: half types accumulate in float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _chunks(
    rois: Tensor, valid: Tensor, batch_size: int, elements_per_roi: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield the RoIs of each image in chunks: (image, indices ``[k]``)."""
    size = max(1, _CHUNK_ELEMENTS // max(1, elements_per_roi))
    index = torch.where(valid, rois[:, 0], -1).long()
    for image in range(batch_size):
        for chunk in (index == image).nonzero()[:, 0].split(size):
            if chunk.numel() > 0:
                yield image, chunk


def _bin_weights(
    rois: Tensor,
    spatial_scale: float,
    bins: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    extents: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return the weights of every pixel in every bin: ``[k, PH, H]`` and ``[k, PW, W]``.

    Their products add up to the average over the samples of a bin.
    """
    samples = samples_of_bins(rois, spatial_scale, bins, sampling_ratio, aligned)
    axes = []
    for axis, (count, extent) in enumerate(zip(bins, extents, strict=True)):
        start, length = _axis(rois, axis, spatial_scale, aligned)
        weights = _axis_weights(start, length / count, samples[axis], count, extent)
        axes.append(weights)
    y, x = axes
    average = (samples[0] * samples[1]).nan_to_num(nan=1.0).clamp(min=1)
    return y / average[:, None, None], x


def _axis(
    rois: Tensor, axis: int, spatial_scale: float | Tensor, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Return start and length ``[k]`` of each RoI along y (axis 0) or x, in feature pixels."""
    scale = torch.as_tensor(spatial_scale, dtype=rois.dtype, device=rois.device)
    column = 2 - axis  # y comes after x in a RoI
    offset = 0.5 if aligned else 0.0
    start = rois[:, column] * scale - offset
    length = (rois[:, column + 2] * scale - offset) - start
    return start, length if aligned else length.clamp(min=1)


def samples_of_bins(
    rois: Tensor,
    spatial_scale: float | Tensor,
    bins: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor]:
    """Return the number of samples in a bin of each RoI along y and x.

    Args:
        rois: ``[k, 5]`` (batch index, x1, y1, x2, y2), image pixels, float32 or float64.
        spatial_scale: Feature pixels per image pixel, for all RoIs or of each, ``[k]``.
        bins: Bins (height, width) per RoI.
        sampling_ratio: As in :func:`roi_align`.
        aligned: As in :func:`roi_align`.

    Returns:
        Whole numbers ``[k]`` and ``[k]`` in the dtype of rois; 0 or less for an inverted RoI.
    """
    counts = []
    for axis in (0, 1):
        _, length = _axis(rois, axis, spatial_scale, aligned)
        counts.append(
            torch.full_like(length, sampling_ratio)
            if sampling_ratio > 0
            else (length / bins[axis]).ceil()
        )
    return counts[0], counts[1]


def _axis_weights(
    start: Tensor, bin_size: Tensor, samples: Tensor, bins: int, extent: int
) -> Tensor:
    """Sum the bilinear weights of a bin's samples along one axis.

    Args:
        start: Start of each RoI, ``[k]``.
        bin_size: Size of the bins of each RoI, ``[k]``.
        samples: Number of samples per bin, ``[k]``, whole numbers.
        bins: Number of bins per RoI.
        extent: Pixels of the feature map along the axis.

    Returns:
        ``[k, bins, extent]``
    """
    if extent == 0:
        return start.new_zeros((start.shape[0], bins, 0))
    usable = (samples >= 1) & start.isfinite() & bin_size.isfinite() & samples.isfinite()
    start, bin_size = torch.where(usable, start, 0), torch.where(usable, bin_size, 1)
    samples = torch.where(usable, samples, 1)
    bin_start = start[:, None] + torch.arange(bins, device=start.device) * bin_size[:, None]
    # A huge RoI has more samples than memory, but only those within a pixel of the map count. Where
    # their numbers have lost their fractions there is nothing to sample: the weight of one sample
    # among so many is 0 all the same.
    countable = 2.0**24 if start.dtype == torch.float32 else 2.0**40
    spacing = (bin_size / samples)[:, None]  # [k, 1]
    ends = torch.stack([-1 - bin_start, extent - bin_start]) / spacing  # [2, k, bins]
    # Multiplied before it is summed, which would overflow.
    slack = 2 + (ends.abs() * (1e-6 if start.dtype == torch.float32 else 1e-15)).sum(dim=0)
    first = (ends.amin(dim=0) - slack).floor().clamp(min=0)
    last = torch.minimum((ends.amax(dim=0) + slack).ceil(), samples[:, None])
    # A bin without extent has all its samples in one place.
    flat = spacing.expand_as(first) == 0
    first = torch.where(flat, 0, first)
    last = torch.where(flat, samples[:, None].expand_as(last), last)
    last = torch.where(first < countable, last.clamp(max=countable), first)
    max_samples = (
        int((last - first).nan_to_num(nan=0).amax().clamp(min=0)) if start.numel() > 0 else 0
    )
    sample = first[..., None] + torch.arange(
        max_samples, device=start.device
    )  # [k, bins, max_samples]
    position = (
        bin_start[..., None] + (sample + 0.5) * bin_size[:, None, None] / samples[:, None, None]
    )
    inside = (position >= -1) & (position <= extent) & usable[:, None, None]
    inside &= sample < last[..., None]
    position = torch.where(inside, position, 0).clamp(min=0)
    low = position.floor().clamp(max=extent - 1)
    high_weight = torch.where(low >= extent - 1, 0, position - low)
    weights = start.new_zeros((start.shape[0], bins, extent))
    for pixel, weight in ((low, 1 - high_weight), (low + 1, high_weight)):
        index = pixel.clamp(max=extent - 1).long()
        weights.scatter_add_(2, index, torch.where(inside, weight, 0))
    return weights
