"""Arguments that roi_align and roi_pool share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rcnn_ext.ops._arguments import check_readable
from rcnn_ext.ops._boxes import corners
from rcnn_ext.reference.checks import check_roi_arguments


def pair(value: int | Sequence[int], op: str) -> tuple[int, int]:
    """Return (height, width) from one number or two."""
    if isinstance(value, Sequence):
        if len(value) == 1:
            return value[0], value[0]
        if len(value) == 2:
            return value[0], value[1]
        raise ValueError(f"{op}: expected output_size of one or two numbers, got {tuple(value)}")
    return value, value


def to_rois(boxes: Tensor | Sequence[Tensor], op: str) -> Tensor:
    """Return RoIs ``[K, 5]`` (batch index, x1, y1, x2, y2) from RoIs or the boxes of each image.

    Args:
        boxes: ``[K, 5]``, or one ``[L, 4]`` per image.
        op: Name of the operator, for error messages.

    Raises:
        RuntimeError: Another shape, or an empty list.
    """
    if isinstance(boxes, Tensor):
        if boxes.dim() != 2 or boxes.shape[1] != 5:
            raise RuntimeError(
                f"{op}: expected boxes of shape [K, 5] (batch index, x1, y1, x2, y2) or a list of "
                f"[L, 4], got a tensor of shape {list(boxes.shape)}"
            )
        return boxes
    if not isinstance(boxes, Sequence) or not all(isinstance(b, Tensor) for b in boxes):
        raise RuntimeError(f"{op}: expected boxes to be a tensor or a list of tensors")
    if len(boxes) == 0:
        raise RuntimeError(f"{op}: expected one tensor of boxes for each image, got an empty list")
    boxes = [corners(tensor, op) for tensor in boxes]
    for image, tensor in enumerate(boxes):
        if tensor.dim() != 2 or tensor.shape[1] != 4:
            raise RuntimeError(
                f"{op}: expected boxes[{image}] of shape [L, 4], got {list(tensor.shape)}"
            )
        check_readable(tensor, op, f"boxes[{image}]")
    rois = []
    for image, tensor in enumerate(boxes):
        # Half types hold whole numbers only up to 256 or 2048: too few for a batch index.
        wide = tensor.to(torch.float32) if tensor.dtype.itemsize < 4 else tensor
        index = torch.full_like(wide[:, :1], image)  # [L, 1]
        rois.append(torch.cat([index, wide], dim=1))  # [L, 5]
    return torch.cat(rois)


def empty_bins(input: Tensor, rois: Tensor, size: tuple[int, int], op: str) -> Tensor:
    """Return the result of pooling to bins of which there are none, ``[K, C, height, width]``.

    Connected to ``input``, whose gradient is 0.
    """
    check_roi_arguments(input, rois, op)
    return input.new_empty(rois.shape[0], input.shape[1], *size) + input.flatten()[:0].sum()


def fold_rois(rois: Tensor, num_images: int) -> Tensor:
    """Return the RoIs of several batches of images as those of one batch that holds them all.

    Args:
        rois: ``[V, K, 5]`` (batch index, x1, y1, x2, y2).
        num_images: Number of images of each of the V batches.

    Returns:
        ``[V * K, 5]``, at least float32.
    """
    if rois.dtype.itemsize < 4:
        rois = rois.to(torch.float32)  # half types can't count the images of a larger batch
    index = rois[..., 0]
    batches = torch.arange(rois.shape[0], device=rois.device, dtype=rois.dtype)
    offset = num_images * batches[:, None]
    # An invalid index becomes -1, instead of reaching into another image of the batch.
    index = torch.where((index >= 0) & (index < num_images), index + offset, -1)
    return torch.cat([index[..., None], rois[..., 1:]], dim=-1).flatten(0, 1)


def folded(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Return a tensor with the mapped dimension of ``torch.vmap`` folded into the first other one.

    Args:
        tensor: ``[N, ...]``, and V at ``dim``.
        dim: The mapped dimension; ``None`` where all V are the same.
        size: V.

    Returns:
        ``[V * N, ...]``
    """
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.flatten(0, 1)
