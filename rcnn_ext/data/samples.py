"""From an image record to the tensors that a model is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from rcnn_ext.data.annotations import ImageRecord, clean_boxes
from rcnn_ext.data.images import ImageReader, boxes_as_annotated
from rcnn_ext.errors import UserError

# An image [C, H, W], float32 in [0, 1], and its target: boxes float32 [N, 4] (x1, y1, x2, y2) in
# image pixels, labels int64 [N], areas float32 [N], crowd and difficult bool [N],
# image_id int64 []; and proposals float32 [P, 4], where there is a source of them.
Sample = tuple[torch.Tensor, dict[str, torch.Tensor]]

# A sample before augmentation: its image and boxes are tv_tensors; an RGB image is uint8, one of
# other channels float32 in [0, 1].
RawSample = tuple[tv_tensors.Image, dict[str, Any]]

# The entries of a target that have one value a box.
PER_BOX = ("labels", "areas", "crowd", "difficult")


class ProposalSource(Protocol):
    """A source of proposals, such as :class:`rcnn_ext.selective_search.ProposalCache`."""

    def boxes(self, image: Path) -> np.ndarray | torch.Tensor:
        """Return the proposals for a picture.

        Args:
            image: The file.

        Returns:
            float32 [P, 4] (x1, y1, x2, y2), pixels of the upright picture.
        """
        ...


def raw_sample(
    record: ImageRecord,
    proposals: ProposalSource | None = None,
    reader: ImageReader | None = None,
) -> RawSample:
    """Read a picture and return it with what is known of it.

    Args:
        record: The image.
        proposals: Where its proposals come from; they go through every transform like its boxes.
        reader: Reads the picture; None reads it as RGB.

    Raises:
        UserError: The picture is missing, damaged or of another size than annotated; or its
            proposals are no boxes.
    """
    size = (record.width, record.height)
    image = (reader or ImageReader()).load_tensor(record.path, size)
    target = raw_target(record)
    if proposals is not None:
        found = torch.as_tensor(proposals.boxes(record.path), dtype=torch.float32)
        if found.ndim != 2 or found.shape[1] != 4:
            raise UserError(
                f"the proposals for {record.path} have the shape {tuple(found.shape)}, not [P, 4]"
            )
        placed = boxes_as_annotated(found.double().numpy(), record.path, size)
        boxes, keep, _ = clean_boxes(placed, *size)
        target["proposals"] = _boxes(boxes[keep], size)
    return tv_tensors.Image(image), target


def raw_target(record: ImageRecord) -> dict[str, Any]:
    """Return the annotations of an image as tensors."""
    return {
        "boxes": _boxes(record.boxes, (record.width, record.height)),
        "labels": torch.from_numpy(record.labels),
        "areas": torch.from_numpy(record.areas),
        "crowd": torch.from_numpy(record.crowd),
        "difficult": torch.from_numpy(record.difficult),
        "image_id": torch.tensor(record.image_id),
    }


def apply_transform(sample: RawSample, transform: v2.Transform) -> Sample:
    """Apply a transform to a sample and return what a model takes."""
    image, target = transform(*sample)
    image = F.to_dtype(image, torch.float32, scale=True)
    # Plain tensors: the subclasses would slow down every operation of the model.
    return image.as_subclass(torch.Tensor), {
        name: value.as_subclass(torch.Tensor) for name, value in target.items()
    }


def keep_boxes(target: dict[str, Any], keep: torch.Tensor) -> dict[str, Any]:
    """Return the target with some of its boxes, and what belongs to them.

    Args:
        target: A target with ``boxes`` [N, 4] and the entries of ``PER_BOX``.
        keep: bool [N].
    """
    chosen = {name: target[name][keep] for name in PER_BOX}
    return {
        **target,
        "boxes": tv_tensors.wrap(target["boxes"][keep], like=target["boxes"]),
    } | chosen


def _boxes(boxes: np.ndarray, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(
        torch.from_numpy(boxes),
        format=tv_tensors.BoundingBoxFormat.XYXY,
        canvas_size=(size[1], size[0]),
    )
