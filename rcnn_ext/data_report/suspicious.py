"""Boxes that may be mistakes: tiny, huge, thin, doubled, or of two classes at one place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rcnn_ext.data.packed import PackedImages

MIN_SIDE = 4.0  # pixels
MAX_TRAINED_SIDE = 1333  # pixels: the usual longest side that a network sees
HUGE_PART = 0.95  # of the picture's area
THIN_RATIO = 20.0
DOUBLED_IOU = 0.9


@dataclass(frozen=True, eq=False)
class Suspicion:
    """Boxes of one kind that may be mistakes.

    Attributes:
        kind: ``tiny``, ``huge``, ``thin``, ``doubled`` or ``two classes``.
        meaning: The rule, in words.
        objects: int64 [K], indices of the objects in the split.
        partners: int64 [K], the object at the same place, for the last two kinds; else None.
    """

    kind: str
    meaning: str
    objects: np.ndarray
    partners: np.ndarray | None = None


def find_suspicious(images: PackedImages) -> list[Suspicion]:
    """Return the boxes of a split that may be mistakes, by kind; kinds without any are left out.

    Crowds are not looked at: their boxes are rough by nature.

    Args:
        images: The images.
    """
    boxes = images.boxes.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]  # [N, 2]
    sizes = images.sizes[images.object_images()].astype(np.float64)  # [N, 2]
    alone = ~images.crowd
    scale = np.minimum(1, MAX_TRAINED_SIDE / np.maximum(sizes.max(axis=1, initial=1), 1))
    tiny = alone & ((sides.min(axis=1, initial=np.inf) * scale) < MIN_SIDE)
    huge = alone & (sides.prod(axis=1) >= HUGE_PART * sizes.prod(axis=1))
    longer, shorter = sides.max(axis=1, initial=0), sides.min(axis=1, initial=np.inf)
    thin = alone & (longer > THIN_RATIO * shorter)
    first, second = _same_place(images, boxes, alone)
    one_class = images.labels[first] == images.labels[second]
    found = [
        Suspicion(
            "tiny",
            f"a side below {MIN_SIDE:g} pixels, in the picture or once its longer side is "
            f"{MAX_TRAINED_SIDE}",
            np.flatnonzero(tiny),
        ),
        Suspicion("huge", f"at least {HUGE_PART:.0%} of the picture", np.flatnonzero(huge)),
        Suspicion("thin", f"one side over {THIN_RATIO:g} times the other", np.flatnonzero(thin)),
        Suspicion(
            "doubled",
            f"an IoU of {DOUBLED_IOU:g} or more with another box of its class",
            second[one_class],
            first[one_class],
        ),
        Suspicion(
            "two classes",
            f"an IoU of {DOUBLED_IOU:g} or more with a box of another class",
            second[~one_class],
            first[~one_class],
        ),
    ]
    return [one for one in found if len(one.objects)]


def _same_place(
    images: PackedImages, boxes: np.ndarray, alone: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of objects at one place, the earlier and the later of each, int64 [P]."""
    image_of = images.object_images()
    chosen = np.flatnonzero(alone)
    order = chosen[np.lexsort((boxes[chosen, 0], image_of[chosen]))]
    placed, image = boxes[order], image_of[order]
    # With such an IoU, the left edges differ by at most this part of the first box's width.
    reach = placed[:, 0] + (1 - DOUBLED_IOU) * (placed[:, 2] - placed[:, 0]) + 1e-6
    alive = np.arange(len(order))
    firsts, seconds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    step = 0
    while len(alive):
        step += 1
        alive = alive[alive + step < len(order)]
        later = alive + step
        # Edges only grow with the step, so what is out of reach stays so.
        alive = alive[(image[later] == image[alive]) & (placed[later, 0] <= reach[alive])]
        later = alive + step
        same = _iou(placed[alive], placed[later]) >= DOUBLED_IOU
        firsts.append(np.minimum(order[alive[same]], order[later[same]]))
        seconds.append(np.maximum(order[alive[same]], order[later[same]]))
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    # Of several partners, the first.
    by_object = np.lexsort((first, second))
    first, second = first[by_object], second[by_object]
    kept = np.ones(len(second), dtype=bool)
    kept[1:] = second[1:] != second[:-1]
    return first[kept], second[kept]


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the IoU of each pair of boxes [P, 4], which have an area."""
    inside = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    common = inside.clip(0).prod(axis=1)
    areas = [(one[:, 2:] - one[:, :2]).prod(axis=1) for one in (first, second)]
    result: np.ndarray = common / (areas[0] + areas[1] - common)
    return result
