"""RoIPool in plain PyTorch: the pixels of every bin gathered side by side, then a maximum."""

from __future__ import annotations

import torch
from torch import Tensor

from rcnn_ext._memory_format import empty_map, is_channels_last
from rcnn_ext.reference.checks import (
    check,
    check_feature_shape,
    check_floating,
    check_pooled_gradient,
    check_pooled_size,
    check_roi_arguments,
    check_same_device,
    check_spatial_scale,
    name_of,
    valid_batch_indices,
)
from rcnn_ext.reference.roi_align import compute_dtype

_CHUNK_ELEMENTS = 1 << 24


def check_roi_pool(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> None:
    """Check the arguments as the native kernels do."""
    check_roi_arguments(input, rois, "roi_pool")
    check_pooled_size(pooled_height, pooled_width, "roi_pool")
    check_spatial_scale(spatial_scale, "roi_pool")
    _check_plane_size(input.shape[2], input.shape[3], "roi_pool")


def _check_plane_size(height: int, width: int, op: str) -> None:
    """Expect that the index of a pixel fits the int32 of an argmax."""
    check(
        height * width <= torch.iinfo(torch.int32).max,
        f"{op}: expected an input of at most 2^31 - 1 pixels per channel, got {height} x {width}",
    )


def check_roi_pool_backward(
    grad: Tensor, argmax: Tensor, rois: Tensor, spatial_scale: float, shape: tuple[int, ...]
) -> None:
    """Check the arguments as the native kernels do; ``shape`` is the input's, (N, C, H, W)."""
    check_feature_shape(shape, "roi_pool_backward")
    check_spatial_scale(spatial_scale, "roi_pool_backward")
    _check_plane_size(shape[2], shape[3], "roi_pool_backward")
    check_floating(grad, "roi_pool_backward", "grad")
    check(
        grad.dim() == 4,
        f"roi_pool_backward: expected grad of shape [K, C, PH, PW], got {list(grad.shape)}",
    )
    check_pooled_gradient(grad, rois, (shape[1], *grad.shape[2:]), "roi_pool_backward")
    check(
        argmax.dtype == torch.int32 and argmax.shape == grad.shape,
        f"roi_pool_backward: expected argmax to be int32 of shape {list(grad.shape)}, got "
        f"{name_of(argmax.dtype)} of shape {list(argmax.shape)}",
    )
    check_same_device(grad, argmax, "roi_pool_backward", "grad", "argmax")


def roi_pool(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    """Take the maximum of every bin of every RoI.

    Args:
        input: ``[N, C, H, W]``, floating.
        rois: ``[K, 5]`` (batch index, x1, y1, x2, y2), image pixels, floating.
        spatial_scale: Feature pixels per image pixel.
        pooled_height: Bins in y.
        pooled_width: Bins in x.

    Returns:
        The maxima ``[K, C, PH, PW]`` in the dtype of the input, 0 for an empty bin, and their
        pixels ``y * W + x``, int32 ``[K, C, PH, PW]``, -1 for an empty bin.

    Raises:
        RuntimeError: Wrong shape, dtype, device or option.
        IndexError: A batch index outside the batch (on the CPU).
    """
    check_roi_pool(input, rois, spatial_scale, pooled_height, pooled_width)
    batch_size, channels, height, width = input.shape
    valid = valid_batch_indices(rois, batch_size, "roi_pool")
    shape = (rois.shape[0], channels, pooled_height, pooled_width)
    channels_last = is_channels_last(input)
    output = empty_map(input, shape, channels_last=channels_last)
    argmax = empty_map(input, shape, channels_last=channels_last, dtype=torch.int32)
    if output.numel() == 0:
        return output, argmax
    geometry = rois.to(compute_dtype(input))
    image = torch.where(valid, rois[:, 0], 0).long()
    y_first, y_last = bin_limits(geometry, 2, spatial_scale, pooled_height, height)  # [K, PH]
    x_first, x_last = bin_limits(geometry, 1, spatial_scale, pooled_width, width)  # [K, PW]
    y_last = torch.where(valid[:, None], y_last, y_first)
    pixels = input.permute(0, 2, 3, 1).reshape(-1, channels)  # [N * H * W, C]
    largest = int((y_last - y_first).amax()) * int((x_last - x_first).amax())
    size = max(1, _CHUNK_ELEMENTS // max(1, largest * channels * pooled_height * pooled_width))
    for chunk in torch.arange(rois.shape[0], device=rois.device).split(size):
        y, y_inside = _bin_pixels(y_first[chunk], y_last[chunk])  # [k, PH, Sy]
        x, x_inside = _bin_pixels(x_first[chunk], x_last[chunk])  # [k, PW, Sx]
        # [k, PH, PW, Sy, Sx], then [k, PH, PW, S]
        pixel = (y[:, :, None, :, None] * width + x[:, None, :, None, :]).flatten(3)
        inside = (y_inside[:, :, None, :, None] & x_inside[:, None, :, None, :]).flatten(3)
        empty = ~inside.any(dim=3)[..., None]  # [k, PH, PW, 1]
        if pixel.shape[3] == 0:
            output[chunk], argmax[chunk] = 0, -1
            continue
        row = image[chunk][:, None, None, None] * (height * width) + torch.where(inside, pixel, 0)
        values = pixels[row]  # [k, PH, PW, S, C]
        values = torch.where(inside[..., None], values, -torch.inf)
        maximum, index = values.max(dim=3)  # [k, PH, PW, C]; the first of equals
        where = pixel.gather(3, index)
        output[chunk] = torch.where(empty, 0, maximum).permute(0, 3, 1, 2)
        argmax[chunk] = torch.where(empty, -1, where).to(torch.int32).permute(0, 3, 1, 2)
    return output, argmax


def roi_pool_backward(
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
    """Compute the gradient of :func:`roi_pool` with respect to its input.

    Args:
        grad: ``[K, C, PH, PW]``.
        argmax: ``[K, C, PH, PW]`` int32, from the forward call.
        rois: ``[K, 5]``, as in the forward call.
        spatial_scale: As in the forward call.
        batch_size: N of the input.
        channels: C of the input.
        height: H of the input.
        width: W of the input.
        channels_last: Memory format of the result.

    Returns:
        ``[N, C, H, W]`` in the dtype of grad.
    """
    shape = (batch_size, channels, height, width)
    check_roi_pool_backward(grad, argmax, rois, spatial_scale, shape)
    valid = valid_batch_indices(rois, batch_size, "roi_pool_backward")
    total = grad.new_zeros(batch_size * channels * height * width, dtype=compute_dtype(grad))
    index, used = _flat_index(argmax, rois, valid, shape)
    # index_put_ with accumulate adds in a fixed order on every device; scatter_add_ does not.
    total.index_put_((index[used],), grad[used].to(total.dtype), accumulate=True)
    return empty_map(grad, shape, channels_last=channels_last).copy_(total.view(shape))


def gather_at_maxima(values: Tensor, argmax: Tensor, rois: Tensor) -> Tensor:
    """Gather values at the maxima of the bins: the adjoint of :func:`roi_pool_backward`.

    Args:
        values: ``[N, C, H, W]``.
        argmax: ``[K, C, PH, PW]`` int32.
        rois: ``[K, 5]``.

    Returns:
        ``[K, C, PH, PW]``, 0 for an empty bin.
    """
    valid = (rois[:, 0] >= 0) & (rois[:, 0] < values.shape[0])
    index, used = _flat_index(argmax, rois, valid, tuple(values.shape))
    return torch.where(used, values.reshape(-1)[torch.where(used, index, 0)], 0)


def _flat_index(
    argmax: Tensor, rois: Tensor, valid: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return the flat index of each maximum in ``[N, C, H, W]``, and which of them exist."""
    _, channels, height, width = shape
    image = torch.where(valid, rois[:, 0], 0).long()[:, None, None, None]
    channel = torch.arange(channels, device=argmax.device)[None, :, None, None]
    index = (image * channels + channel) * (height * width) + argmax
    used = (argmax >= 0) & (argmax < height * width) & valid[:, None, None, None]
    return index, used


def _round(values: Tensor) -> Tensor:
    """Round to the nearest whole number, halves away from zero, as C does."""
    whole = values.trunc()
    half = (values - whole).abs() == 0.5
    return torch.where(half, whole + values.sign(), values.round())


def bin_limits(
    rois: Tensor, column: int, spatial_scale: float, bins: int, extent: int
) -> tuple[Tensor, Tensor]:
    """Return start and end pixel of every bin along one axis, clipped: int64 ``[K, bins]``."""
    scale = torch.tensor(spatial_scale, dtype=rois.dtype, device=rois.device)
    start, end = _round(rois[:, column] * scale), _round(rois[:, column + 2] * scale)
    usable = (start.abs() < 2**30) & (end.abs() < 2**30)
    start, end = torch.where(usable, start, 0), torch.where(usable, end, 0)
    bin_size = ((end.long() - start.long() + 1).clamp(min=1).to(rois.dtype) / bins)[:, None]
    index = torch.arange(bins, device=rois.device)
    offset = start.long()[:, None]
    first = ((index * bin_size).floor().long() + offset).clamp(0, extent)
    last = (((index + 1) * bin_size).ceil().long() + offset).clamp(0, extent)
    return first, torch.where(usable[:, None], last, first)


def _bin_pixels(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels ``[k, bins, S]`` of each bin and which exist; S is the largest bin's."""
    size = int((last - first).amax().clamp(min=0))
    pixel = first[..., None] + torch.arange(size, device=first.device)
    return pixel, pixel < last[..., None]
