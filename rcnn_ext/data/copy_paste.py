"""Copy-paste augmentation: objects of one image, cut out by their masks, are pasted into another.

After Ghiasi et al. 2021, https://arxiv.org/abs/2012.07177, without blending, which they found to
make no difference.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from rcnn_ext.data.records import ImageRecord
from rcnn_ext.data.samples import RawSample, keep_boxes
from rcnn_ext.data.segmentation import instance_boxes
from rcnn_ext.data.transforms import MIN_PART_LEFT, MIN_SIDE_LEFT
from rcnn_ext.errors import UserError

# Smallest and largest factor of the other image, after it is fitted into the first.
_FACTORS = (0.5, 2.0)

# Of a proposal of the other image, the part that must be inside the box of a pasted object.
_MIN_PART_OF_PROPOSAL = 0.5


class _Pasted(NamedTuple):
    """Objects where they are pasted, on a canvas of the size of the first image.

    Attributes:
        image: [C, H, W], what shows where ``numbers`` are not 0.
        numbers: int32 [H, W], 0 where nothing is pasted, else 1 + the index of an object.
        objects: int64 [K], their indices in the other image.
        boxes: int64 [K, 4] (x1, y1, x2, y2), around what is seen of each.
        areas: int64 [K], pixels of each that are seen.
        proposals: float32 [P, 4], those of the other image that are mostly inside such a box; None
            where it has none.
    """

    image: torch.Tensor
    numbers: np.ndarray
    objects: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    proposals: torch.Tensor | None


def copy_paste(
    sample: RawSample, record: ImageRecord, other: RawSample, source: ImageRecord
) -> RawSample:
    """Paste random objects of another image into an image.

    Each object of the other image that has an outline or mask is taken with probability one half,
    and at least one. The other image is fitted into the first, scaled by 0.5 to 2, mirrored with
    probability one half, and laid at a random place; what is cut out of it hides what is behind.
    Boxes and areas of the image's own objects become those of what is still seen, by their masks,
    or by their boxes where they have none. Draws from torch's global generator.

    Args:
        sample: The image, before augmentation.
        record: What it was read from, with its outlines and masks.
        other: The other image, of as many channels.
        source: What that was read from.

    Returns:
        A sample of the size and ``image_id`` of the first; it is the first itself where the other
        has nothing to paste. Objects of which less than a fifth, or less than 2 pixels, is seen are
        dropped, pasted or not.

    Raises:
        UserError: A mask is of another size than its image.
    """
    pasted = _paste(other, source, sample[0].shape[-2:])
    if pasted is None:
        return sample
    image, target = sample
    target = _keep_seen(target, record, pasted.numbers)
    hidden = torch.from_numpy(pasted.numbers > 0)
    joined = torch.where(hidden, pasted.image, image.as_subclass(torch.Tensor))
    return tv_tensors.Image(joined), _with_pasted(target, other[1], pasted)


def _paste(other: RawSample, source: ImageRecord, size: tuple[int, ...]) -> _Pasted | None:
    """Choose objects of an image and lay them on a canvas of ``size`` (height, width)."""
    outlines = source.segmentations or ()
    having = [index for index, outline in enumerate(outlines) if outline is not None]
    if not having:
        return None
    chosen = [index for index, r in zip(having, torch.rand(len(having)), strict=True) if r < 0.5]
    chosen = chosen or [having[int(torch.randint(len(having), ()))]]
    masks = {index: _mask(source, index) for index in chosen}
    # Small objects lie on top of large ones: a cup on a table rather than behind it.
    full = {index: int(mask.sum()) for index, mask in masks.items()}
    chosen.sort(key=lambda index: -full[index])
    numbers = np.zeros((source.height, source.width), dtype=np.int32)
    for number, index in enumerate(chosen, start=1):
        numbers[masks[index]] = number

    height, width = size
    fit = min(height / source.height, width / source.width)
    low, high = (math.log(factor) for factor in _FACTORS)
    # As often half as twice: uniform in the logarithm.
    factor = fit * math.exp(low + (high - low) * float(torch.rand(())))
    scaled = max(1, round(source.height * factor)), max(1, round(source.width * factor))
    mirrored = bool(torch.rand(()) < 0.5)
    # The smaller of the two lies anywhere within the larger.
    top, left = (
        int(torch.randint(abs(room) + 1, ())) * (1 if room > 0 else -1)
        for room in (height - scaled[0], width - scaled[1])
    )
    image = F.resize(other[0], list(scaled), antialias=True).as_subclass(torch.Tensor)
    numbers = _resize_nearest(numbers, scaled)
    if mirrored:
        image, numbers = image.flip(-1), numbers[:, ::-1]
    canvas = image.new_zeros((image.shape[0], height, width))
    shown = np.zeros((height, width), dtype=np.int32)
    to = slice(max(0, top), top + scaled[0]), slice(max(0, left), left + scaled[1])
    of = slice(max(0, -top), height - top), slice(max(0, -left), width - left)
    canvas[:, to[0], to[1]] = image[:, of[0], of[1]]
    shown[to] = numbers[of]

    boxes, areas = instance_boxes(shown, len(chosen))
    enlarged = scaled[0] * scaled[1] / (source.height * source.width)
    whole = np.array([full[index] for index in chosen]) * enlarged
    keep = (areas >= MIN_PART_LEFT * whole) & _large_enough(boxes)
    if not keep.any():
        return None
    shown[~np.concatenate([[True], keep])[shown]] = 0
    proposals = None
    if "proposals" in other[1]:
        proposals = other[1]["proposals"].as_subclass(torch.Tensor).clone()
        proposals *= proposals.new_tensor([scaled[1] / source.width, scaled[0] / source.height] * 2)
        if mirrored:
            proposals[:, [0, 2]] = scaled[1] - proposals[:, [2, 0]]
        proposals += proposals.new_tensor([left, top, left, top])
        proposals = _near(proposals, torch.from_numpy(boxes[keep]).float(), (height, width))
    return _Pasted(canvas, shown, np.array(chosen)[keep], boxes[keep], areas[keep], proposals)


def _mask(record: ImageRecord, index: int) -> np.ndarray:  # bool [height, width]
    """Return the pixels of an object: by its outline or mask, else by its box."""
    outline = record.segmentations[index] if record.segmentations is not None else None
    if outline is not None:
        try:
            mask = outline.mask(record.width, record.height)
        except ValueError as error:
            raise UserError(f"{record.path}: object {index}: {error}") from None
        if mask.any():
            return mask
    # None, or so thin that it has the center of no pixel.
    mask = np.zeros((record.height, record.width), dtype=bool)
    x1, y1, x2, y2 = _pixels_of(record.boxes[index])
    mask[y1:y2, x1:x2] = True
    return mask


def _pixels_of(box: np.ndarray) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = box.tolist()
    return math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)


def _keep_seen(target: dict[str, Any], record: ImageRecord, numbers: np.ndarray) -> dict[str, Any]:
    """Return the target with the boxes and areas of what is not hidden by what is pasted."""
    hidden = numbers > 0
    boxes = record.boxes.copy()
    areas = target["areas"].numpy().copy()
    keep = np.ones(len(boxes), dtype=bool)
    for index, box in enumerate(record.boxes):
        x1, y1, x2, y2 = _pixels_of(box)
        over = hidden[y1:y2, x1:x2]
        if not over.any():
            continue
        mask = _mask(record, index)[y1:y2, x1:x2]
        seen = mask & ~over
        (before, after), (whole, left) = _boxes_of(mask, seen)
        if left == whole:
            continue
        # Where the outermost pixels are still seen, the annotated side is more exact than they.
        moved = after + np.array([x1, y1, x1, y1])
        boxes[index] = np.where(after == before, box, moved)
        boxes[index] = np.clip(boxes[index], np.tile(box[:2], 2), np.tile(box[2:], 2))
        keep[index] = left >= MIN_PART_LEFT * whole and bool(_large_enough(boxes[index][None])[0])
        areas[index] *= left / max(1, whole)
    updated = tv_tensors.wrap(torch.from_numpy(boxes), like=target["boxes"])
    seen_target = {**target, "boxes": updated, "areas": torch.from_numpy(areas)}
    return keep_boxes(seen_target, torch.from_numpy(keep))


def _boxes_of(*masks: np.ndarray) -> tuple[list[np.ndarray], list[int]]:
    """Return the boxes of masks, int64 [4] each, and their numbers of pixels."""
    found = [instance_boxes(mask.astype(np.int32), 1) for mask in masks]
    return [boxes[0] for boxes, _ in found], [int(areas[0]) for _, areas in found]


def _with_pasted(target: dict[str, Any], other: dict[str, Any], pasted: _Pasted) -> dict[str, Any]:
    """Return a target with the objects, and the proposals, that were pasted."""
    objects = torch.from_numpy(pasted.objects)
    added = {name: other[name][objects] for name in ("labels", "crowd", "difficult")}
    added["areas"] = torch.from_numpy(pasted.areas).to(target["areas"].dtype)
    added["boxes"] = torch.from_numpy(pasted.boxes).to(target["boxes"].dtype)
    if pasted.proposals is not None and "proposals" in target:
        added["proposals"] = pasted.proposals
    joined = dict(target)
    for name, values in added.items():
        both = torch.cat([target[name].as_subclass(torch.Tensor), values])
        is_boxes = isinstance(target[name], tv_tensors.BoundingBoxes)
        joined[name] = tv_tensors.wrap(both, like=target[name]) if is_boxes else both
    return joined


def _resize_nearest(numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # [*size]
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64).clip(max=old - 1)
        for new, old in zip(size, numbers.shape, strict=True)
    )
    return numbers[rows[:, None], columns]


def _near(proposals: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return proposals [P, 4], cut to the image, that are mostly inside one of the boxes [K, 4]."""
    height, width = size
    cut = torch.minimum(proposals.clamp(min=0), proposals.new_tensor([width, height] * 2))
    areas = (proposals[:, 2:] - proposals[:, :2]).prod(dim=1)
    low = torch.maximum(cut[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(cut[:, None, 2:], boxes[None, :, 2:])
    inside = (high - low).clamp(min=0).prod(dim=2).max(dim=1).values  # [P]
    large = (cut[:, 2:] - cut[:, :2] >= MIN_SIDE_LEFT).all(dim=1)
    return cut[large & (inside >= _MIN_PART_OF_PROPOSAL * areas)]


def _large_enough(boxes: np.ndarray) -> np.ndarray:  # bool [N]
    large: np.ndarray = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE_LEFT).all(axis=1)
    return large
