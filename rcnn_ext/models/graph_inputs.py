"""What stays outside the graph when a whole model is compiled: the resizing, and the last cut.

Sizes of pictures in a graph would be formulas with minima and quotients, which take PyTorch minutes
to reason about, and a graph for each. Behind the resizing there are batches only, of a height and a
width. Checks of values are outside too, since a graph cannot raise for what it meets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.image_list import ImageList

from rcnn_ext.models.box_utils import image_size_tensor
from rcnn_ext.models.core import PaddedDetections
from rcnn_ext.models.inputs import prepare_batch
from rcnn_ext.models.sampler import SEED


class PaddedTargets(NamedTuple):
    """Targets of a batch, with as many objects for each image.

    Attributes:
        boxes: [N, G, 4] (x1, y1, x2, y2), image pixels; G is 2 or more. What fills up an image with
            objects is its first object again, so that it is matched to no other box than that.
        labels: [N, G] int64.
        counts: [N] int64, how many objects are real.
    """

    boxes: Tensor
    labels: Tensor
    counts: Tensor


class GraphInputs(NamedTuple):
    """A batch as tensors alone.

    Attributes:
        images: [N, 3, H, W], resized, normalized and padded.
        sizes: [N, 2] float32 (height, width) without padding.
        ratios: [N, 4], from pixels of the batch to those of the original images.
        targets: In training.
        proposals: [N, P, 4] for Fast R-CNN, else None; P is 2 or more.
        proposal_counts: [N], how many of them are real.
    """

    images: Tensor
    sizes: Tensor
    ratios: Tensor
    targets: PaddedTargets | None
    proposals: Tensor | None
    proposal_counts: Tensor | None

    @classmethod
    def of(
        cls,
        batch: ImageList,
        original_sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None,
        proposals: list[Tensor] | None,
    ) -> GraphInputs:
        """Pad what differs from image to image.

        Args:
            batch: The resized batch.
            original_sizes: (height, width) of each image before resizing.
            targets: For each image ``boxes`` [G_i, 4] and ``labels`` [G_i], pixels of the batch.
            proposals: [P_i, 4] per image, pixels of the batch.
        """
        like = batch.tensors.new_empty(0, dtype=torch.float32)
        sizes = image_size_tensor(batch.image_sizes, like=like)
        ratios = image_size_tensor(original_sizes, like=like) / sizes
        padded, counts = None, None
        if proposals is not None:
            counts = torch.tensor([len(boxes) for boxes in proposals], device=sizes.device)
            padded = pad_sequence([F.pad(boxes, (0, 0, 0, 2)) for boxes in proposals], True)
        return cls(
            batch.tensors,
            sizes,
            ratios[:, [1, 0, 1, 0]],
            None if targets is None else _padded_targets(targets),
            padded,
            counts,
        )


# For a model whose batches differ in nothing but their number of images.
prepare_outside = torch.compiler.disable(prepare_batch)


def has_seeds(targets: object) -> bool:
    """Return whether images draw their samples from generators of their own.

    No graph can be made of those, so that such a step is compiled in parts.
    """
    return isinstance(targets, list | tuple) and any(
        isinstance(target, dict) and SEED in target for target in targets
    )


@torch.compiler.disable
def cut_detections(found: PaddedDetections, ratios: Tensor) -> list[dict[str, Tensor]]:
    """Cut padded detections into those of each image.

    Args:
        found: Boxes [N, D, 4], scores [N, D], labels [N, D] and counts [N].
        ratios: [N, 4], what to multiply the boxes by.

    Returns:
        For each image ``boxes`` [D_i, 4], ``labels`` [D_i] and ``scores`` [D_i]. One
        synchronization per batch.
    """
    boxes, scores, labels, counts = found
    boxes = boxes * ratios[:, None]
    return [
        {"boxes": boxes[i, :n], "labels": labels[i, :n], "scores": scores[i, :n]}
        for i, n in enumerate(counts.tolist())
    ]


def _padded_targets(targets: list[dict[str, Tensor]]) -> PaddedTargets:
    counts = [len(target["labels"]) for target in targets]
    size = max(2, *counts)
    boxes, labels = [], []
    for target, count in zip(targets, counts, strict=True):
        # Objects in order, then the first again; an image without objects gets some box, which is
        # never looked at.
        order = [*range(count), *[0] * (size - count)]
        in_image, classes = target["boxes"], target["labels"]
        if count == 0:
            in_image, classes = in_image.new_tensor([[0.0, 0, 1, 1]]), classes.new_zeros(1)
        boxes.append(in_image[order])
        labels.append(classes[order])
    device = boxes[0].device
    return PaddedTargets(
        torch.stack(boxes), torch.stack(labels), torch.tensor(counts, device=device)
    )
