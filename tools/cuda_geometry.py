"""Counts of what RoIs touch on a feature map, for the model of RoIAlign's kernels."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

TILE_HEIGHT = 8  # of roi_gather.cuh
# Pixels by which a footprint there is larger than what is sampled.
FOOTPRINT_SLACK = 2


@dataclasses.dataclass(frozen=True)
class Axis:
    """What the bins of RoIs read along one axis: bool ``[K, bins, extent]``."""

    reads: NDArray[np.bool_]

    @property
    def taps(self) -> NDArray[np.int64]:
        """Pixels that each bin reads: ``[K, bins]``."""
        return self.reads.sum(axis=2)

    @property
    def pixels(self) -> NDArray[np.int64]:
        """Pixels that each RoI reads: ``[K]``."""
        return self.reads.any(axis=1).sum(axis=1)

    def sectors(self, pixels: int) -> NDArray[np.int64]:
        """Return how many groups of pixels, such as sectors, each RoI reads: ``[K]``."""
        return self._grouped(pixels).any(axis=(1, 3)).sum(axis=1)

    def tiles_reached(self, pixels: int) -> NDArray[np.bool_]:
        """Return which tiles each RoI's footprint overlaps: ``[K, tiles]``."""
        read = self.reads.any(axis=1)
        wider = read.copy()
        for shift in range(1, FOOTPRINT_SLACK + 1):
            wider[:, shift:] |= read[:, :-shift]
            wider[:, :-shift] |= read[:, shift:]
        return _group(wider[:, None], pixels).any(axis=(1, 3))

    def bins_in_tiles(self, pixels: int) -> NDArray[np.int64]:
        """Return how many bins read any pixel of each tile: ``[K, tiles]``."""
        return self._grouped(pixels).any(axis=3).sum(axis=1)

    def most_bins_of_pixel(self, pixels: int) -> NDArray[np.int64]:
        """Return how many bins read the most read pixel of each tile: ``[K, tiles]``."""
        return self._grouped(pixels).sum(axis=1).max(axis=2)

    def _grouped(self, pixels: int) -> NDArray[np.bool_]:
        return _group(self.reads, pixels)


def _group(reads: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Reshape ``[K, bins, extent]`` to ``[K, bins, groups, pixels]``."""
    count, bins, extent = reads.shape
    groups = -(-extent // pixels)
    padded = np.zeros((count, bins, groups * pixels), dtype=np.bool_)
    padded[:, :, :extent] = reads
    return padded.reshape(count, bins, groups, pixels)


def make_axis(
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    scale: float,
    bins: int,
    samples: int,
    extent: int,
) -> Axis:
    """Find what RoIAlign reads along one axis, with ``aligned=False``.

    Args:
        start: Lower edges, ``[K]``, image pixels.
        end: Upper edges, ``[K]``, image pixels.
        scale: Feature pixels per image pixel.
        bins: Bins along the axis.
        samples: Samples per bin.
        extent: Pixels of the map.
    """
    first = start * scale
    size = np.maximum(end * scale - first, 1.0) / bins
    offsets = (np.arange(bins * samples) + 0.5) / samples
    at = first[:, None] + offsets * size[:, None]  # [K, bins * samples]
    inside = (at >= -1) & (at <= extent)
    at = np.clip(at, 0, extent - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + (at > low), extent - 1)
    reads = np.zeros((len(start), bins, extent), dtype=np.bool_)
    roi = np.arange(len(start))[:, None]
    bin_ = (np.arange(bins * samples) // samples)[None]
    for pixel in (low, high):
        where = np.broadcast_to(roi, pixel.shape), np.broadcast_to(bin_, pixel.shape), pixel
        reads[tuple(part[inside] for part in where)] = True
    return Axis(reads)
