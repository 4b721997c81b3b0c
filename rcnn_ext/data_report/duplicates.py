"""Pictures that occur twice, as the same file or nearly, within a split and between splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rcnn_ext.data.packed import PackedImages
from rcnn_ext.data_report.fingerprints import SIDE, Fingerprint, Fingerprints
from rcnn_ext.progress import Progress

# Bits of 63 that may differ, and the correlation that thumbnails must have besides. Of copies of
# 128 pictures of COCO these find all that are compressed (JPEG quality 10), of half the size,
# squeezed to squares, gray, 30 % brighter, mirrored or cropped by 2 %, 97 % of those cropped by 4 %
# and half of those cropped by 8 %. They name no different pictures there, and 3 pairs among 600
# synthetic images of shapes, which look alike. Measured on an x86-64 processor in November 2026.
MAX_BITS = 12
MIN_CORRELATION = 0.93

# Pairs that are compared at once: at 10 bytes each this is some 40 MB.
_PAIRS = 1 << 22

_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, np.uint8)


@dataclass(frozen=True)
class Duplicate:
    """A picture, and an earlier one that shows the same.

    Attributes:
        split: Index of its split.
        row: Its index in the split.
        other_split: Index of the split of the earlier one, which may be the same.
        other_row: Index of the earlier one.
        kind: ``copy`` (the same file), ``near`` or ``mirrored``.
    """

    split: int
    row: int
    other_split: int
    other_row: int
    kind: str


def find_duplicates(splits: Sequence[tuple[PackedImages, Fingerprints]]) -> list[Duplicate]:
    """Return for each picture the nearest earlier one of each split, where it shows the same.

    Args:
        splits: The images of each split and their fingerprints; pictures that have none, since
            they cannot be read, have no duplicates.

    Returns:
        Duplicates in the order of splits and rows.
    """
    tables = [_Table.of(images, taken) for images, taken in splits]
    found: list[Duplicate] = []
    total = sum(len(table) * (index + 1) for index, table in enumerate(tables))
    with Progress("Comparing", total, "image") as progress:
        for index, table in enumerate(tables):
            for other_index, other in enumerate(tables[: index + 1]):
                pairs = _pairs(table, other, same=index == other_index, progress=progress)
                found += [
                    Duplicate(index, int(table.rows[i]), other_index, int(other.rows[j]), kind)
                    for i, j, kind in pairs
                ]
    return sorted(found, key=lambda one: (one.split, one.row, one.other_split))


@dataclass(frozen=True)
class _Table:
    """The fingerprints of a split in columns."""

    rows: np.ndarray  # int64 [N], of the images that have one.
    digests: list[bytes]
    hashes: np.ndarray  # uint64 [N]
    mirrored: np.ndarray  # uint64 [N]
    plain: np.ndarray  # bool [N]
    prints: list[Fingerprint]

    @classmethod
    def of(cls, images: PackedImages, taken: Fingerprints) -> _Table:
        named = [(row, taken.by_path.get(path)) for row, path in enumerate(images.paths())]
        rows = [row for row, one in named if one is not None]
        prints = [one for _, one in named if one is not None]
        return cls(
            np.array(rows, dtype=np.int64),
            [one.digest for one in prints],
            np.array([one.hash for one in prints], dtype=np.uint64),
            np.array([one.mirrored for one in prints], dtype=np.uint64),
            np.array([one.plain for one in prints], dtype=bool),
            prints,
        )

    def __len__(self) -> int:
        return len(self.rows)


def _pairs(
    table: _Table, other: _Table, *, same: bool, progress: Progress
) -> list[tuple[int, int, str]]:
    first: dict[bytes, int] = {}
    found: list[tuple[int, int, str]] = []
    copied = np.zeros(len(table), dtype=bool)
    if not same:
        for j, digest in enumerate(other.digests):
            first.setdefault(digest, j)
    for i, digest in enumerate(table.digests):
        j = first.setdefault(digest, i) if same else first.get(digest, -1)
        if j >= 0 and not (same and j == i):
            copied[i] = True
            found.append((i, j, "copy"))
    progress.advance(int((copied | table.plain).sum()))
    wanted = np.flatnonzero(~copied & ~table.plain)
    # Copies of an earlier picture of a split would only repeat what that one finds.
    candidates = wanted if same else np.flatnonzero(~other.plain)
    if len(candidates) == 0:
        progress.advance(len(wanted))
        return found
    step = max(1, _PAIRS // len(candidates))
    for start in range(0, len(wanted), step):
        rows = wanted[start : start + step]
        near = _nearest(table, rows, other, candidates, same=same)
        found += near
        progress.advance(len(rows))
    return found


def _nearest(
    table: _Table, rows: np.ndarray, other: _Table, candidates: np.ndarray, *, same: bool
) -> list[tuple[int, int, str]]:
    if same:
        candidates = candidates[candidates < rows[-1]]
        if len(candidates) == 0:
            return []
    hashes = other.hashes[candidates][None]
    straight = _distances(table.hashes[rows][:, None], hashes)
    turned = _distances(table.mirrored[rows][:, None], hashes)
    if same:
        later = candidates[None] >= rows[:, None]
        straight[later] = turned[later] = 64
    found = []
    close = np.flatnonzero(np.minimum(straight.min(axis=1), turned.min(axis=1)) <= MAX_BITS)
    for place in close.tolist():
        best: tuple[float, int, str] = (MIN_CORRELATION, -1, "")
        for kind, distances in (("near", straight[place]), ("mirrored", turned[place])):
            # The few nearest by hash; which of these is nearest, the thumbnails tell.
            order = np.argsort(distances, kind="stable")[:8]
            for j in candidates[order[distances[order] <= MAX_BITS]].tolist():
                value = _correlation(table.prints[rows[place]], other.prints[j], kind)
                if value > best[0]:
                    best = (value, j, kind)
        if best[1] >= 0:
            found.append((int(rows[place]), best[1], best[2]))
    return found


def _distances(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the numbers of bits in which hashes differ, uint8 [N, M]."""
    different = hashes ^ others
    if hasattr(np, "bitwise_count"):  # NumPy 2
        counts: np.ndarray = np.bitwise_count(different)
        return counts
    bytes_of = np.ascontiguousarray(different).view(np.uint8).reshape(*different.shape, 8)
    return _BITS_OF_BYTE[bytes_of].sum(axis=-1, dtype=np.uint8)


def _correlation(one: Fingerprint, other: Fingerprint, kind: str) -> float:
    first, second = (_centered(each.thumbnail) for each in (one, other))
    if kind == "mirrored":
        first = first[:, ::-1]
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale > 0 else 0.0


def _centered(thumbnail: bytes) -> np.ndarray:
    values = np.frombuffer(thumbnail, dtype=np.uint8).reshape(SIDE, SIDE).astype(np.float64)
    return values - values.mean()
