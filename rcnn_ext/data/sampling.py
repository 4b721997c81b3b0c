"""The order of training images: one random order after another, with rare classes repeated."""

from __future__ import annotations

import numpy as np
import torch

from rcnn_ext.data.packed import PackedImages

# Repeat factors are multiples of 1 / 2^20, so that places in the order are whole numbers, exact
# after any number of epochs.
_FRACTION_BITS = 20
_ONE = 1 << _FRACTION_BITS

# Images whose repeats are worked out at once.
_CHUNK = 4096


def mixed_seed(*parts: int) -> int:
    """Mix numbers into a seed of which every bit depends on all; ``seed + step`` would not."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def repeat_factors(images: PackedImages, threshold: float) -> np.ndarray:
    """Return how often each image is to occur in an epoch: the repeat factors of LVIS.

    A class in the fraction f of the images has the factor max(1, sqrt(threshold / f)), an image the
    largest of its classes; https://arxiv.org/abs/1908.03195, appendix B.

    Args:
        images: The training images, M, with the objects that are trained on.
        threshold: Fraction of the images below which a class is rare, above 0.

    Returns:
        float64 [M], at least 1; 1 for images without objects.
    """
    labels = images.labels.astype(np.int64)
    image_of = images.object_images()
    num_labels = int(labels.max(initial=0)) + 1
    # One for each image and class in it, however many objects.
    seen = np.unique(image_of * num_labels + labels) % num_labels
    with_class = np.bincount(seen, minlength=num_labels)  # [num_labels]
    shares = np.maximum(with_class, 1) / max(1, len(images))
    of_class = np.sqrt(np.maximum(threshold / shares, 1.0))
    factors = np.ones(len(images))
    np.maximum.at(factors, image_of, of_class[labels])
    return factors


class SampleOrder:
    """An endless order of images, in which each position depends on itself and the seed alone.

    An epoch is a random order of all images, in which an image with the repeat factor r occurs
    floor(r) or ceil(r) times: by systematic sampling, with one offset that goes on from epoch to
    epoch, so that the position at which an epoch begins needs no look at those before.

    Args:
        count: Number of images, M.
        seed: Seed of the orders.
        factors: Repeat factors, float64 [M], at least 1; None: every image once.
    """

    def __init__(self, count: int, seed: int, factors: np.ndarray | None = None) -> None:
        self.count = count
        self.seed = seed
        self._ends: np.ndarray | None = None  # int64 [M], cumulative factors.
        if factors is not None and (factors > 1).any():
            self._ends = np.cumsum(np.rint(factors * _ONE).astype(np.int64))
        self._offset = 0 if self._ends is None else mixed_seed(seed, 7) % _ONE
        self._epoch: tuple[int, np.ndarray] | None = None

    @property
    def positions_per_epoch(self) -> float:
        """Number of positions in an epoch, on average."""
        return self.count if self._ends is None else int(self._ends[-1]) / _ONE

    def place(self, position: int) -> tuple[int, int]:
        """Return the epoch of a position, from 0, and its place in that."""
        if self._ends is None:
            return divmod(position, self.count)
        total = int(self._ends[-1])
        epoch = (((position + 1) << _FRACTION_BITS) - 1 - self._offset) // total
        return epoch, position - ((self._offset + epoch * total) >> _FRACTION_BITS)

    def index(self, position: int) -> int:
        """Return the index of the image at a position, from 0."""
        epoch, place = self.place(position)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = None  # Its memory is free for that of the next.
            self._epoch = epoch, self._order_of(epoch)
        return int(self._epoch[1][place])

    def draw(self) -> int:
        """Return the index of a random image, drawn by repeat factor from torch's generator."""
        if self._ends is None:
            return int(torch.randint(self.count, ()))
        place = int(torch.randint(int(self._ends[-1]), ()))
        return int(np.searchsorted(self._ends, place, side="right"))

    def _order_of(self, epoch: int) -> np.ndarray:  # int32 [positions of the epoch]
        # Every worker has its own, so it is made in place: annotations take little more.
        seed = mixed_seed(self.seed, epoch, 0)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.count, generator=generator, dtype=torch.int32).numpy()
        if self._ends is None:
            return order
        total = int(self._ends[-1])
        offset = (self._offset + epoch * total) % _ONE
        repeated = np.empty((offset + total) >> _FRACTION_BITS, dtype=np.int32)
        filled = 0
        for first in range(0, self.count, _CHUNK):
            images = order[first : first + _CHUNK]
            before = np.where(images > 0, self._ends[images - 1], 0)
            ends = (np.cumsum(self._ends[images] - before) + offset) >> _FRACTION_BITS
            offset += int((self._ends[images] - before).sum())
            found = np.repeat(images, np.diff(ends, prepend=filled))
            repeated[filled : filled + len(found)] = found
            filled += len(found)
        # Once more, since those of an image are side by side.
        np.random.Generator(np.random.PCG64(seed)).shuffle(repeated)
        return repeated
