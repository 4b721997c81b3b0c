"""Predictions of small detectors, and torchvision's results for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.peer import torchvision


def _steps(values: Tensor, step: float = 1 / 16) -> Tensor:
    """Multiples of a step, which every floating dtype holds: ties, and otherwise clear gaps.

    Sigmoids and exponentials of two libraries differ in the last bit; numbers as far apart as these
    keep their order all the same.
    """
    return (values / step).round() * step


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, threshold: float) -> Tensor:
    """torchvision's NMS class by class: moving the classes apart would round coordinates."""
    kept = [torch.empty(0, dtype=torch.int64)]
    for number in idxs.unique():
        members = (idxs == number).nonzero()[:, 0]
        kept.append(members[torchvision.ops.nms(boxes[members], scores[members], threshold)])
    everything = torch.cat(kept).sort().values
    return everything[scores[everything].sort(descending=True, stable=True).indices]


@contextlib.contextmanager
def _class_by_class() -> Iterator[None]:
    with mock.patch.object(torchvision.ops.boxes, "batched_nms", _batched_nms):
        yield


def _top(logits: Tensor, sizes: Sequence[int], count: int) -> Tensor:
    """Indices of the best of each level, ties by index; torch.topk promises nothing about them."""
    found, first = [], 0
    for level in logits.split(sizes, 1):
        order = level.sort(dim=1, descending=True, stable=True).indices
        found.append(order[:, :count] + first)
        first += level.shape[1]
    return torch.cat(found, 1)


@dataclass(frozen=True)
class Pyramid:
    """Arguments of ``generate_proposals``."""

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: Tensor  # [A, 4] or [N, A, 4]
    sizes: Tensor  # [N, 2]
    options: dict[str, Any] = field(default_factory=dict)

    def change(self, **changes: Any) -> Pyramid:
        """Return a copy with other fields."""
        return replace(self, **changes)

    def to(self, device: torch.device) -> Pyramid:
        """Return a copy on a device."""
        return self.change(
            logits=[t.to(device) for t in self.logits],
            deltas=[t.to(device) for t in self.deltas],
            anchors=self.anchors.to(device),
            sizes=self.sizes.to(device),
        )

    def run(self, device: torch.device) -> ops.Proposals:
        """This package's proposals, brought to the CPU."""
        here = self.to(device)
        found = ops.generate_proposals(
            here.logits, here.deltas, here.anchors, here.sizes, **self.options
        )
        return ops.Proposals(*(t.cpu() for t in found))

    def torchvision(self) -> list[tuple[Tensor, Tensor]]:
        """torchvision's boxes and scores of each image, half types in float32."""
        assert torchvision.ops  # skips where it can't be imported
        from torchvision.models.detection import rpn

        dtype = torch.promote_types(self.logits[0].dtype, torch.float32)
        options = self.options
        top = {"testing": options.get("pre_nms_top_n", 1000)}
        post = {"testing": options.get("post_nms_top_n", 1000)}
        threshold = options.get("iou_threshold", 0.7)
        theirs = rpn.RegionProposalNetwork(
            torch.nn.Identity(), torch.nn.Identity(), 0.7, 0.3, 256, 0.5, top, post, threshold,
            options.get("score_threshold", 0.0),
        ).eval()  # fmt: skip
        theirs._get_top_n_idx = lambda logits, sizes: _top(logits, sizes, top["testing"])
        theirs.min_size = options.get("min_size", 1e-3)
        theirs.box_coder.weights = options.get("weights", (1.0, 1.0, 1.0, 1.0))
        sizes = [logits[0].numel() for logits in self.logits]
        logits, deltas = rpn.concat_box_prediction_layers(
            [t.to(dtype) for t in self.logits], [t.to(dtype) for t in self.deltas]
        )
        images = len(self.sizes)
        anchors = self.anchors.to(dtype).expand(images, -1, 4)
        means = options.get("means", (0.0, 0.0, 0.0, 0.0))
        shifts = [m * w for m, w in zip(means, theirs.box_coder.weights, strict=True)]
        deltas = deltas + torch.tensor(shifts, dtype=dtype)
        boxes = theirs.box_coder.decode(deltas, list(anchors)).view(images, -1, 4)
        shapes = [tuple(size) for size in self.sizes.tolist()]
        with _class_by_class():
            found = theirs.filter_proposals(boxes, logits, shapes, sizes)
        return list(zip(*found, strict=True))


def make_pyramid(
    grids: Sequence[tuple[int, int, int]] = ((3, 9, 11), (3, 5, 6), (3, 2, 3)),
    images: int = 3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **options: Any,
) -> Pyramid:
    """A pyramid of levels (anchors per position, rows, columns) over 80 x 96 pixels."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    logits = [_steps(2 * randn(images, k, h, w)).to(dtype) for k, h, w in grids]
    deltas = [_steps(randn(images, 4 * k, h, w), 1 / 64).to(dtype) for k, h, w in grids]
    count = sum(k * h * w for k, h, w in grids)
    centers = torch.rand(count, 2, generator=generator) * torch.tensor([96.0, 80.0])
    halves = 4 + torch.rand(count, 2, generator=generator) * 16
    anchors = torch.cat([centers - halves, centers + halves], dim=1).round()
    sizes = torch.tensor([[80 - 7 * n, 96 - 13 * n] for n in range(images)]).view(-1, 2)
    return Pyramid(logits, deltas, anchors, sizes, options)


@dataclass(frozen=True)
class Heads:
    """Arguments of ``postprocess_detections``."""

    logits: Tensor  # [R, K]
    deltas: Tensor  # [R, 4 K] or [R, 4]
    rois: Tensor  # [R, 4]
    image_ids: Tensor  # [R]
    sizes: Tensor  # [N, 2]
    options: dict[str, Any] = field(default_factory=dict)

    def change(self, **changes: Any) -> Heads:
        """Return a copy with other fields."""
        return replace(self, **changes)

    def run(self, device: torch.device) -> ops.Detections:
        """This package's detections, brought to the CPU."""
        tensors = (self.logits, self.deltas, self.rois, self.image_ids, self.sizes)
        found = ops.postprocess_detections(*(t.to(device) for t in tensors), **self.options)
        return ops.Detections(*(t.cpu() for t in found))

    def torchvision(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """torchvision's boxes, scores and labels of each image, half types in float32."""
        assert torchvision.ops  # skips where it can't be imported
        from torchvision.models.detection.roi_heads import RoIHeads

        dtype = torch.promote_types(self.logits.dtype, torch.float32)
        options = self.options
        nothing: Any = None
        theirs = RoIHeads(
            nothing, nothing, nothing, 0.5, 0.5, 512, 0.25,
            options.get("weights"), options.get("score_threshold", 0.05),
            options.get("iou_threshold", 0.5), options.get("detections_per_image", 100),
        )  # fmt: skip
        means = options.get("means", (0.0, 0.0, 0.0, 0.0))
        shifts = [m * w for m, w in zip(means, theirs.box_coder.weights, strict=True)]
        deltas = self.deltas.to(dtype).unflatten(1, (-1, 4)) + torch.tensor(shifts, dtype=dtype)
        # Class-agnostic boxes it knows only as equal ones.
        deltas = deltas.expand(-1, self.logits.shape[1], 4).flatten(1)
        members = [(self.image_ids == n).nonzero()[:, 0] for n in range(len(self.sizes))]
        order = torch.cat(members)
        shapes = [tuple(size) for size in self.sizes.tolist()]
        with _class_by_class():
            found = theirs.postprocess_detections(
                self.logits.to(dtype)[order],
                deltas[order],
                [self.rois.to(dtype)[ids] for ids in members],
                shapes,
            )
        return list(zip(*found, strict=True))


def make_heads(
    counts: Sequence[int] = (30, 0, 21),
    classes: int = 5,
    agnostic: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **options: Any,
) -> Heads:
    """Predictions for so many RoIs of each image of 80 x 96 pixels; many overlap."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    logits = _steps(3 * torch.randn(total, classes, generator=generator), 1 / 4).to(dtype)
    deltas = torch.randn(total, 4 * (1 if agnostic else classes), generator=generator)
    low = (torch.rand(total, 2, generator=generator) * 60).round()
    sides = 5 + (torch.rand(total, 2, generator=generator) * 40).round()
    return Heads(
        logits,
        _steps(2 * deltas).to(dtype),
        torch.cat([low, low + sides], dim=1),
        torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        torch.tensor([[80 - 7 * n, 96 - 13 * n] for n in range(len(counts))]),
        options,
    )
