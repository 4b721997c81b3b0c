"""Verify an exported model: run it where it is to run, and compare with the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcnn_ext.data.images import ImageReader, list_images
from rcnn_ext.errors import UserError
from rcnn_ext.export.format import ExportOptions
from rcnn_ext.models.box_utils import at_least_float32
from rcnn_ext.models.fast_rcnn import needs_proposals
from rcnn_ext.ops import box_iou
from rcnn_ext.predict.checkpoint import SavedDetector

# Pixels of the resized picture, and probability.
BOX_TOLERANCE, SCORE_TOLERANCE = 1e-2, 1e-4
# How far two runtimes' IoUs of one pair of boxes may be apart.
_IOU_TOLERANCE = 1e-3
# Boxes of two RoIs that compete are further apart than this, in pixels; nearer is an inaccuracy.
_OTHER_BOX = 0.5
# Share of the detections that near-ties may explain: else something is wrong, and they no excuse.
_MAX_TIES = 0.1
_PICTURES, _PROPOSALS = 3, 40

Detections = dict[str, Tensor]


@dataclass
class Difference:
    """How far two lists of detections of one picture are apart.

    Attributes:
        matched: Number of detections that both have.
        box: Largest distance of a coordinate, pixels.
        score: Largest distance of a score.
        ties: Detections that one list lacks, which a near-tie explains.
        unmatched: Detections that one list lacks without such a reason.
    """

    matched: int = 0
    box: float = 0.0
    score: float = 0.0
    ties: int = 0
    unmatched: int = 0

    @property
    def is_acceptable(self) -> bool:
        """Whether nothing is missing but for a few near-ties."""
        return self.unmatched == 0 and self.ties <= _MAX_TIES * (self.matched + self.ties)

    def add(self, other: Difference) -> None:
        """Take in the difference in another picture."""
        self.matched += other.matched
        self.box = max(self.box, other.box)
        self.score = max(self.score, other.score)
        self.ties += other.ties
        self.unmatched += other.unmatched


@torch.no_grad()
def verify(saved: SavedDetector, exported: Any, runtime: str, options: ExportOptions) -> None:
    """Compare an exported model with the model itself, on pictures of three sizes.

    Each is searched alone, and then all three as one batch; or each with its mirror image as a
    batch, where the exported model takes none of several sizes. Detections are compared box by box,
    since those of nearly one score may come in another order.

    Args:
        saved: The model.
        exported: The exported model, an ``ExportedModel``.
        runtime: What runs it, for messages.
        options: ``options.pictures`` are used, else some are made; ``options.report`` is told the
            result.

    Raises:
        UserError: Boxes or scores are further apart than ``BOX_TOLERANCE`` and ``SCORE_TOLERANCE``.
    """
    detector: Any = saved.build(torch.device("cpu"))
    detector.transform.fixed_size = exported.transform.fixed_size  # that of --size
    images = verification_images(detector, options.pictures, ImageReader.of(saved.recipe.data))
    count, takes_sizes = len(images), exported.facts.takes_sizes
    if not takes_sizes:
        images += [image.flip(2) for image in images]
    proposals = [_proposals(image) for image in images] if needs_proposals(detector) else None
    total = Difference()
    batches = [[index] for index in range(count)]
    batches += [list(range(count))] if takes_sizes else [[i, i + count] for i in range(count)]
    for batch in batches:
        arguments: list[Any] = [[images[index] for index in batch]]
        if proposals is not None:
            arguments.append([proposals[index] for index in batch])
        expected, found = detector(*arguments), exported(*arguments)
        for index, (own, other) in zip(batch, zip(expected, found, strict=True), strict=True):
            height, width = images[index].shape[1:]
            scale = _resized_ratio(exported, height, width)
            total.add(compare(own, other, detector, max(1.0, 1 / scale)))
    in_batches = "as a batch" if takes_sizes else "in batches of one size"
    summary = (
        f"{total.matched} detections in {count} pictures, alone and {in_batches}: boxes "
        f"within {total.box:.2g} pixels, scores within {total.score:.2g}"
    )
    if not total.is_acceptable:
        raise UserError(
            f"the exported model differs from {saved.path} in {runtime} and was not written: of "
            f"{total.unmatched + total.ties} detections only one of the two has any within "
            f"{BOX_TOLERANCE:g} pixels and {SCORE_TOLERANCE:g} of score ({total.matched} are in "
            "both); try another version of the runtime, or export with --no-verify and see what "
            "rcnn-ext eval says"
        )
    options.report(f"verified in {runtime}: {summary}")


def verification_images(
    detector: nn.Module, pictures: Sequence[Path], reader: ImageReader
) -> list[Tensor]:
    """Return three images [C, H, W] in [0, 1], no two of one shape.

    Args:
        detector: The model.
        pictures: Picture files and folders of such; the first three are taken. Without any, images
            are made.
        reader: The reader of the files.
    """
    transform: Any = detector.transform
    channels = len(transform.image_mean)
    side = min(int(transform.min_size[-1]), 800)
    if not pictures:
        shapes = ((side, side * 4 // 3), (side * 4 // 3, side), (side, side * 16 // 9))
        return [_made_image(channels, *shape, seed) for seed, shape in enumerate(shapes)]
    found = list_images(pictures)[:_PICTURES]
    images = [_as_floats(reader.load_tensor(path)) for path, _ in found]
    images = [images[index % len(images)] for index in range(_PICTURES)]
    # Pictures of one camera have one size: the second is turned, and the third is cut.
    width = images[2].shape[2]
    return [images[0], torch.rot90(images[1], 1, (1, 2)), images[2][:, :, : -(-3 * width // 4)]]


def compare(
    expected: Detections, found: Detections, detector: nn.Module, pixels: float = 1.0
) -> Difference:
    """Compare the detections in a picture, whatever their order.

    A detection that only one list has is no difference where a near-tie explains it: its score is
    the lowest that there is room for, or is at the threshold; or the other list has, of the same
    class and almost its score, one that suppresses it.

    Args:
        expected: ``boxes`` [D, 4], ``labels`` [D] and ``scores`` [D].
        found: The same of the other model.
        detector: The model, whose thresholds say what a near-tie is.
        pixels: Pixels of the picture per pixel of the resized one.
    """
    tolerance = BOX_TOLERANCE * pixels
    a, b = (
        (at_least_float32(d["boxes"]), d["labels"], at_least_float32(d["scores"]))
        for d in (expected, found)
    )
    if len(a[1]) == 0 or len(b[1]) == 0:
        box_distance = score_distance = torch.zeros(len(a[1]), len(b[1]))
    else:
        box_distance = (a[0][:, None] - b[0]).abs().amax(dim=2)  # [A, B]
        score_distance = (a[2][:, None] - b[2]).abs()
    near = (
        (box_distance <= tolerance) & (score_distance <= SCORE_TOLERANCE) & (a[1][:, None] == b[1])
    )
    difference = Difference()
    free = torch.ones(len(b[1]), dtype=torch.bool)
    alone = []
    for index in range(len(a[1])):
        candidates = (near[index] & free).nonzero()[:, 0]
        if len(candidates) == 0:
            alone.append(index)
            continue
        best = candidates[score_distance[index, candidates].argmin()]
        free[best] = False
        difference.matched += 1
        difference.box = max(difference.box, float(box_distance[index, best]))
        difference.score = max(difference.score, float(score_distance[index, best]))
    explained = _near_ties(detector, pixels)
    reasons = [explained(a, index, b) for index in alone]
    reasons += [explained(b, int(index), a) for index in free.nonzero()[:, 0]]
    difference.ties = sum(reasons)
    difference.unmatched = len(reasons) - difference.ties
    return difference


_Columns = tuple[Tensor, Tensor, Tensor]


def _near_ties(detector: nn.Module, pixels: float) -> Callable[[_Columns, int, _Columns], bool]:
    heads: Any = getattr(detector, "roi_heads", None)
    if heads is None:  # a localizer, which selects nothing
        return lambda own, index, other: False
    threshold, limit = float(heads.score_thresh), int(heads.detections_per_img)
    nms_threshold = float(heads.nms_thresh)

    def explained(own: _Columns, index: int, other: _Columns) -> bool:
        score = float(own[2][index])
        if score <= threshold + SCORE_TOLERANCE:
            return True
        if len(other[2]) >= limit and score <= float(other[2].min()) + SCORE_TOLERANCE:
            return True
        rivals = (other[1] == own[1][index]) & (other[2] >= score - SCORE_TOLERANCE)
        if not bool(rivals.any()):
            return False
        overlap = box_iou(own[0][index : index + 1], other[0][rivals])[0]
        apart = (own[0][index] - other[0][rivals]).abs().amax(dim=1) > _OTHER_BOX * pixels
        # A rival of clearly more score would suppress the box in the model itself, unless their
        # IoU is at the threshold.
        level = other[2][rivals] <= score + SCORE_TOLERANCE
        suppresses = level & apart & (overlap > nms_threshold - _IOU_TOLERANCE)
        return bool((suppresses | ((overlap - nms_threshold).abs() <= _IOU_TOLERANCE)).any())

    return explained


def _resized_ratio(exported: Any, height: int, width: int) -> float:
    """Return the smaller ratio of the sides of a resized image to those of the picture."""
    resized = exported.transform.resize(torch.zeros(1, height, width))[0]
    return min(resized.shape[1] / height, resized.shape[2] / width)


def _as_floats(image: Tensor) -> Tensor:
    return image / 255 if image.dtype == torch.uint8 else image


def _made_image(channels: int, height: int, width: int, seed: int) -> Tensor:
    """Return rectangles and discs of any color over a gradient, with some noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    rows = torch.linspace(0, 1, height)[:, None]
    columns = torch.linspace(0, 1, width)
    image = draw(channels, 1, 1) * rows + draw(channels, 1, 1) * columns
    for index in range(12):
        y, x, tall, wide = (float(value) for value in draw(4))
        dy, dx = (rows - y) / (0.05 + tall / 5), (columns - x) / (0.05 + wide / 5)
        inside = (dy.abs() < 1) & (dx.abs() < 1) if index % 2 else dy**2 + dx**2 < 1
        image = torch.where(inside, draw(channels, 1, 1), image)
    noise = 0.05 * draw(channels, height, width)
    return (image + noise).clamp(0, 1)


def _proposals(image: Tensor) -> Tensor:
    """Return boxes [P, 4] of many sizes in an image [C, H, W]."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([image.shape[2], image.shape[1]], dtype=torch.float32)
    ends = torch.rand(2, _PROPOSALS, 2, generator=generator) * (size - 1)
    low, high = ends.amin(dim=0), ends.amax(dim=0)
    return torch.cat([low, torch.maximum(high, low + 1)], dim=1)
