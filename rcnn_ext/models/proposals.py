"""Proposals from outside a model: checked, brought to the size of the batch and clipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes

from rcnn_ext.models.box_utils import first_bad_box, image_size_tensor
from rcnn_ext.models.inputs import check_box_tensor
from rcnn_ext.reference.box_coding import clip


def resize_proposals(
    proposals: Sequence[Tensor], batch: ImageList, original_sizes: list[tuple[int, int]]
) -> list[Tensor]:
    """Check and scale proposals.

    Args:
        proposals: [P_i, 4] per image, pixels of the original images.
        batch: The resized images.
        original_sizes: (height, width) of the original images.

    Returns:
        [P_i, 4] per image, in pixels of the resized images and float32 at least.

    Raises:
        ValueError: A proposal is malformed; the message names it.
    """
    proposals = list(proposals)
    if len(proposals) != len(original_sizes):
        raise ValueError(
            f"{len(original_sizes)} images but proposals for {len(proposals)} were given"
        )
    images = batch.tensors
    for i, in_image in enumerate(proposals):
        if not isinstance(in_image, Tensor):
            raise ValueError(f"proposals[{i}] is a {type(in_image).__name__}; expected a tensor")
        check_box_tensor(in_image, f"proposals[{i}]")
        if in_image.device != images.device:
            raise ValueError(
                f"proposals[{i}] is on {in_image.device}, its image on {images.device}"
            )
    dtype = torch.promote_types(images.dtype, torch.float32)
    resized = [
        resize_boxes(in_image.to(dtype), original, new)
        for in_image, original, new in zip(
            proposals, original_sizes, batch.image_sizes, strict=True
        )
    ]
    bad = first_bad_box(resized)
    if bad is not None:
        image, box = bad
        raise ValueError(
            f"proposals[{image}][{box}] is {proposals[image][box].tolist()}; proposals are "
            "(x1, y1, x2, y2) and need finite coordinates, x1 < x2 and y1 < y2"
        )
    return resized


def clip_proposals(proposals: list[Tensor], image_sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Clip proposals [P_i, 4] to their images, and leave out those wholly outside."""
    sizes = image_size_tensor(image_sizes, like=proposals[0])  # [N, 2]
    clipped = [clip(boxes, size) for boxes, size in zip(proposals, sizes, strict=True)]
    return [boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)] for boxes in clipped]


def clip_padded(
    proposals: Tensor, counts: Tensor | None, image_sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Clip proposals to their images, without leaving any out.

    Args:
        proposals: [N, P, 4], pixels of the batch.
        counts: [N], how many of them are real; None means all.
        image_sizes: [N, 2] (height, width) of the images.

    Returns:
        Boxes [N, P, 4], and [N, P], which of them are real and not wholly outside.
    """
    boxes = clip(proposals, image_sizes[:, None])
    is_real = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)  # [N, P]
    if counts is not None:
        is_real = is_real & (torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None])
    # Whatever fills a tensor up must not reach the pooler: NaN has no place in a map.
    return torch.where(is_real[..., None], boxes, 0.0), is_real
