"""Small box functions that the RPN, the RoI heads and Fast R-CNN share."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return ``values`` in float32 if they are float16 or bfloat16, else unchanged.

    Box coordinates need more than the 8 to 11 significant bits of the half types: in bfloat16
    pixel 257 does not exist.
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def image_size_tensor(image_sizes: list[tuple[int, int]], like: Tensor) -> Tensor:
    """Return sizes (height, width) as a tensor [N, 2] of the dtype and device of ``like``."""
    return torch.tensor(image_sizes, dtype=like.dtype, device=like.device).reshape(-1, 2)


def first_bad_box(boxes: list[Tensor]) -> tuple[int, int] | None:
    """Find a box that is not finite or has no positive width and height.

    Args:
        boxes: One tensor [n_i, 4] (x1, y1, x2, y2) per image.

    Returns:
        (image index, box index) of the first such box, or None. One synchronization per batch.
    """
    if torch.compiler.is_compiling():
        return None  # A graph cannot raise for the values that it meets.
    together = torch.cat(boxes)  # [sum n_i, 4]
    good = together.isfinite().all(dim=1) & (together[:, 2:] > together[:, :2]).all(dim=1)
    if bool(good.all()):
        return None
    position = int((~good).nonzero()[0])
    for image, in_image in enumerate(boxes):
        if position < len(in_image):
            return image, position
        position -= len(in_image)
    raise AssertionError("unreachable: a bad box lies in one of the images")


def unpad(counts: Tensor, *padded: Tensor) -> list[tuple[Tensor, ...]]:
    """Cut padded results into those of each image.

    Args:
        counts: [N] int64, how many entries of an image are real.
        padded: [N, P, ...] each.

    Returns:
        For each image, [P_i, ...] of every argument. One synchronization per batch.
    """
    if torch.compiler.is_compiling():
        # torch.export refuses to cut at a number that depends on data, and takes a mask.
        real = torch.arange(padded[0].shape[1], device=counts.device) < counts[:, None]  # [N, P]
        return [
            tuple(values[image][real[image]] for values in padded) for image in range(len(counts))
        ]
    return [
        tuple(values[image, :count] for values in padded)
        for image, count in enumerate(counts.tolist())
    ]
