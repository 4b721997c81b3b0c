"""Argument checks of the references and of the fake kernels, with the native kernels' messages.

The counterpart of ``csrc/core/checks.h``. Every failure is a ``RuntimeError``, as in PyTorch's
own operators (a bad batch index an ``IndexError``), that names the operator, the argument, what was
expected and what was given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype for messages, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def check(condition: bool, message: str) -> None:
    """Raise ``RuntimeError(message)`` unless the condition holds."""
    if not condition:
        raise RuntimeError(message)


def check_floating(tensor: Tensor, op: str, argument: str) -> None:
    """Expect a floating dtype that the kernels have."""
    check(
        tensor.dtype in FLOATING,
        f"{op}: expected {argument} to be float16, bfloat16, float32 or float64, "
        f"got {name_of(tensor.dtype)}",
    )


def check_same_device(a: Tensor, b: Tensor, op: str, name_a: str, name_b: str) -> None:
    """Expect two tensors on one device."""
    check(
        a.device == b.device,
        f"{op}: expected {name_a} and {name_b} on one device, got {a.device} and {b.device}",
    )


def check_boxes(boxes: Tensor, op: str, argument: str = "boxes") -> None:
    """Expect boxes ``[N, 4]``."""
    check(
        boxes.dim() == 2 and boxes.shape[1] == 4,
        f"{op}: expected {argument} of shape [N, 4], got {list(boxes.shape)}",
    )


def check_per_box(values: Tensor, boxes: Tensor, op: str, argument: str) -> None:
    """Expect one value per box, ``[N]``."""
    check(
        values.dim() == 1 and values.shape[0] == boxes.shape[0],
        f"{op}: expected {argument} of shape [{boxes.shape[0]}], one for each box, "
        f"got {list(values.shape)}",
    )
    check_same_device(values, boxes, op, argument, "boxes")


def check_rois(rois: Tensor, op: str) -> None:
    """Expect RoIs ``[K, 5]``."""
    check_floating(rois, op, "rois")
    check(
        rois.dim() == 2 and rois.shape[1] == 5,
        f"{op}: expected rois of shape [K, 5] (batch index, x1, y1, x2, y2), "
        f"got {list(rois.shape)}",
    )


def check_roi_arguments(input: Tensor, rois: Tensor, op: str) -> None:
    """Expect features ``[N, C, H, W]`` and RoIs ``[K, 5]`` on one device."""
    check_floating(input, op, "input")
    check(
        input.dim() == 4,
        f"{op}: expected input of shape [N, C, H, W], got {list(input.shape)}",
    )
    check_rois(rois, op)
    check_same_device(input, rois, op, "input", "rois")
    check_side_lengths(input.shape[2], input.shape[3], op)


def check_side_lengths(height: int, width: int, op: str) -> None:
    """Expect rows and columns that 32 bits can count, as the kernels do."""
    max_length = torch.iinfo(torch.int32).max
    check(
        height <= max_length and width <= max_length,
        f"{op}: expected an input of at most 2^31 - 1 rows and columns, got {height} x {width}",
    )


def check_pooled_size(pooled_height: int, pooled_width: int, op: str) -> None:
    """Expect a positive output size."""
    check(
        pooled_height > 0 and pooled_width > 0,
        f"{op}: expected a positive output size, got {pooled_height} x {pooled_width}",
    )
    check(
        pooled_height * pooled_width <= torch.iinfo(torch.int32).max,
        f"{op}: expected an output size of at most 2^31 - 1 bins, "
        f"got {pooled_height} x {pooled_width}",
    )


def check_spatial_scale(spatial_scale: float, op: str) -> None:
    """Expect a positive, finite scale."""
    check(
        0 < spatial_scale <= torch.finfo(torch.float32).max,
        f"{op}: expected a positive, finite spatial_scale, got {spatial_scale:g}",
    )


def check_sampling_ratio(sampling_ratio: int, op: str) -> None:
    """Expect no more samples per axis of a bin than the kernels accept."""
    max_ratio = 4096
    check(
        sampling_ratio <= max_ratio,
        f"{op}: expected a sampling_ratio of at most {max_ratio}, got {sampling_ratio}",
    )


def check_feature_shape(shape: Sequence[int], op: str) -> None:
    """Expect a valid size (N, C, H, W) of the input of a backward operator."""
    check(
        all(size >= 0 for size in shape),
        f"{op}: expected an input size without negative numbers, got {list(shape)}",
    )
    check_side_lengths(shape[2], shape[3], op)


def check_pooled_gradient(grad: Tensor, rois: Tensor, shape: Sequence[int], op: str) -> None:
    """Expect a gradient ``[K, C, PH, PW]``; ``shape`` is ``(C, PH, PW)``."""
    check_floating(grad, op, "grad")
    check_rois(rois, op)
    expected = [rois.shape[0], *shape]
    check(
        list(grad.shape) == expected,
        f"{op}: expected grad of shape {expected}, got {list(grad.shape)}",
    )
    check_same_device(grad, rois, op, "grad", "rois")


def valid_batch_indices(rois: Tensor, batch_size: int, op: str) -> Tensor:
    """Return which RoIs have a batch index within the batch, bool ``[K]``.

    Raises:
        IndexError: A batch index lies outside the batch, on the CPU. Elsewhere the check would
            synchronize; such a RoI gives zeros.
    """
    index = rois[:, 0]
    valid = (index >= 0) & (index < batch_size)
    if rois.device.type == "cpu" and not bool(valid.all()):
        k = int((~valid).nonzero()[0])
        images = "image" if batch_size == 1 else "images"
        raise IndexError(
            f"{op}: rois[{k}, 0] is {index[k].item():g}, not a batch index of an input with "
            f"{batch_size} {images}"
        )
    return valid


def check_box_coding(weights: Sequence[float], means: Sequence[float], op: str) -> None:
    """Expect four positive weights and four means."""
    check(
        len(weights) == 4 and len(means) == 4,
        f"{op}: expected four weights and four means, got {len(weights)} and {len(means)}",
    )
    for weight in weights:
        check(weight > 0, f"{op}: expected positive weights, got {weight:g}")


def check_positive(count: int, op: str, argument: str) -> None:
    """Expect a count above 0."""
    check(count > 0, f"{op}: expected a positive {argument}, got {count}")


def check_image_sizes(image_sizes: Tensor, like: Tensor, op: str) -> None:
    """Expect sizes ``[N, 2]`` on the device of ``like``, the logits."""
    check(
        image_sizes.dim() == 2 and image_sizes.shape[1] == 2,
        f"{op}: expected image_sizes of shape [N, 2] (height, width), "
        f"got {list(image_sizes.shape)}",
    )
    check(
        not image_sizes.is_complex(),
        f"{op}: expected image_sizes to be real numbers, got {name_of(image_sizes.dtype)}",
    )
    check_same_device(image_sizes, like, op, "image_sizes", "logits")
