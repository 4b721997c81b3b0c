"""Formats of boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from rcnn_ext.ops._arguments import check_readable

FORMATS = ("xyxy", "xywh", "cxcywh")


def corners(boxes: Tensor, op: str, fmt: str = "xyxy") -> Tensor:
    """Return boxes as (x1, y1, x2, y2).

    Args:
        boxes: ``[..., 4]``. The format of ``torchvision.tv_tensors.BoundingBoxes`` is respected.
        op: Name of the operator, for error messages.
        fmt: Format of boxes that don't say theirs, one of ``FORMATS``.

    Raises:
        RuntimeError: Bounding boxes of a format that has rotations or four corners; or boxes of
            another shape, where they have to be converted.
    """
    if type(boxes) is not Tensor:
        own = getattr(getattr(boxes, "format", None), "name", None)
        if isinstance(own, str):
            fmt = own.lower()
            if fmt not in FORMATS:
                raise RuntimeError(
                    f"{op}: expected bounding boxes of format XYXY, XYWH or CXCYWH, got {own}; "
                    "rotated boxes are not supported"
                )
            if fmt != "xyxy":
                boxes = boxes.as_subclass(Tensor)
    if fmt == "xyxy":
        return boxes
    if boxes.dim() == 0 or boxes.shape[-1] != 4:
        raise RuntimeError(f"{op}: expected boxes of shape [..., 4], got {list(boxes.shape)}")
    check_readable(boxes, op, "boxes")
    start, size = boxes[..., :2], boxes[..., 2:]
    if fmt == "cxcywh":
        start = start - size / 2
    return torch.cat([start, start + size], dim=-1)
