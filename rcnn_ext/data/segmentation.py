"""Outlines and masks of single objects: COCO's polygons and run lengths."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Of the packed form: b"P" and the points of each polygon, or b"R", the size and the runs.
_POLYGONS, _RUNS = b"P", b"R"

# Points (x, y).
Polygon = Sequence[tuple[float, float]]

# Far beyond any picture, and far within what float32 holds.
_MAX_COORDINATE = 1e7


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The pixels of one object, as polygons or as run lengths.

    Attributes:
        polygons: float32 [K, 2] (x, y) each, in upright image pixels; the object is their union.
        runs: uint32 [R], lengths of runs of pixels that are not, are, are not ... of the object,
            down the first column, then the second and so on. None where there are polygons.
        size: Height and width of the mask that ``runs`` describe, in pixels.
    """

    polygons: tuple[np.ndarray, ...] = ()
    runs: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)

    @classmethod
    def parse(cls, value: Any) -> Segmentation | None:
        """Read the ``segmentation`` of a COCO annotation.

        Args:
            value: A list of polygons, each ``[x1, y1, x2, y2, ...]``; one such polygon; or run
                lengths, ``{"counts": ..., "size": [height, width]}`` with a list or COCO's text.

        Returns:
            The segmentation; None where the value is empty.

        Raises:
            ValueError: The value is none of these.
        """
        if value is None or value == [] or value == {} or value == "":
            return None
        if isinstance(value, dict):
            return cls._parse_runs(value)
        if not isinstance(value, list):
            raise ValueError("is neither a list of polygons nor run lengths")
        polygons = value if isinstance(value[0], list) else [value]
        points = []
        for polygon in polygons:
            if not isinstance(polygon, list) or not all(type(v) in (int, float) for v in polygon):
                raise ValueError("has a polygon that is no list of numbers")
            if len(polygon) % 2:
                raise ValueError(f"has a polygon of {len(polygon)} numbers, which are no pairs")
            if polygon:
                points.append(_float_points(polygon))
        return cls(tuple(points)) if points else None

    @classmethod
    def _parse_runs(cls, value: dict[str, Any]) -> Segmentation | None:
        counts, size = value.get("counts"), value.get("size")
        if (
            not isinstance(size, list)
            or len(size) != 2
            or not all(type(side) is int and 0 < side < 2**31 for side in size)
        ):
            raise ValueError("has run lengths without a 'size' of height and width")
        if isinstance(counts, str):
            counts = _decode_runs(counts)
        if not isinstance(counts, list) or not all(type(v) is int and v >= 0 for v in counts):
            raise ValueError("has 'counts' that are neither a list of run lengths nor their text")
        height, width = size
        if sum(counts) != height * width:
            raise ValueError(
                f"has runs of {sum(counts)} pixels together for a mask of {height}x{width}"
            )
        if sum(counts[1::2]) == 0:
            return None
        return cls(runs=np.array(counts, dtype=np.uint32), size=(height, width))

    @classmethod
    def from_mask(cls, mask: np.ndarray) -> Segmentation:
        """Return the run lengths of a mask.

        Args:
            mask: bool [H, W].
        """
        flat = np.asarray(mask, dtype=bool).ravel(order="F")
        changes = np.flatnonzero(np.diff(flat)) + 1
        first = [0] if len(flat) and flat[0] else []
        edges = np.concatenate([first, [0], changes, [len(flat)]]).astype(np.int64)
        return cls(
            runs=np.diff(np.sort(edges)).astype(np.uint32), size=(mask.shape[0], mask.shape[1])
        )

    @classmethod
    def from_polygons(
        cls, polygons: Sequence[Polygon], holes: Sequence[Polygon] = ()
    ) -> Segmentation | None:
        """Return the object that is the union of polygons, without some holes.

        Args:
            polygons: Lists of points, in upright image pixels.
            holes: More of these, within the first polygon.

        Returns:
            The segmentation; None where no polygon has three points.
        """
        points = [_bounded(one) for one in polygons if len(one) > 2]
        cut_out = [_bounded(one) for one in holes if len(one) > 2]
        if not points:
            return None
        start = points[0][:1]
        for hole in cut_out:
            # There and back along one line, whose two passes cancel out by the even-odd rule.
            points[0] = np.concatenate([points[0], start, hole, hole[:1], start])
        return cls(tuple(points))

    def box(self) -> tuple[float, float, float, float]:
        """Return the smallest box around the object, (x1, y1, x2, y2) in image pixels."""
        if self.runs is None:
            points = np.concatenate(self.polygons).astype(np.float64)
            low, high = points.min(axis=0).tolist(), points.max(axis=0).tolist()
            return low[0], low[1], high[0], high[1]
        ends = np.cumsum(self.runs, dtype=np.int64)
        first, last = ends[:-1:2], ends[1::2]  # Pixels [first, last) are of the object.
        first, last = first[: len(last)], last[: len(first)]
        filled = last > first
        first, last = first[filled], last[filled] - 1
        if len(first) == 0:
            return 0.0, 0.0, 0.0, 0.0
        height = self.size[0]
        left, right = int(first[0] // height), int(last[-1] // height)
        if (first // height == last // height).all():
            top, bottom = int((first % height).min()), int((last % height).max())
        else:  # A run that goes on in the next column has the last row and the first.
            top, bottom = 0, height - 1
        return float(left), float(top), float(right + 1), float(bottom + 1)

    def area(self) -> float:
        """Return the area in pixels; overlaps of polygons count twice, as in COCO's files."""
        if self.runs is not None:
            return float(self.runs[1::2].sum(dtype=np.int64))
        total = 0.0
        for polygon in self.polygons:
            x, y = polygon.T.astype(np.float64)
            total += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
        return total

    def mask(self, width: int, height: int) -> np.ndarray:
        """Return which pixels are of the object.

        A pixel is inside a polygon if its center is.

        Args:
            width: Width of the image in pixels.
            height: Height of the image in pixels.

        Returns:
            bool [height, width], upright.

        Raises:
            ValueError: Run lengths are of an image of another size.
        """
        if self.runs is None:
            found = np.zeros((height, width), dtype=bool)
            for polygon in self.polygons:
                _fill(found, polygon.astype(np.float64))
            return found
        if self.size != (height, width):
            raise ValueError(
                f"the mask is {self.size[1]}x{self.size[0]} pixels, the image {width}x{height}"
            )
        values = np.arange(len(self.runs)) % 2 == 1
        return np.ascontiguousarray(np.repeat(values, self.runs).reshape(width, height).T)

    def to_bytes(self) -> bytes:
        """Return the packed form, which :meth:`from_bytes` reads."""
        if self.runs is not None:
            return _RUNS + struct.pack("<II", *self.size) + self.runs.astype("<u4").tobytes()
        parts = [
            struct.pack("<I", len(polygon)) + polygon.astype("<f4").tobytes()
            for polygon in self.polygons
        ]
        return _POLYGONS + b"".join(parts)

    @staticmethod
    def size_of_runs(packed: bytes) -> tuple[int, int] | None:
        """Return height and width of packed run lengths; None for polygons, or nothing."""
        if packed[:1] != _RUNS:
            return None
        height, width = struct.unpack_from("<II", packed, 1)
        return height, width

    @classmethod
    def from_bytes(cls, packed: bytes) -> Segmentation:
        """Return what :meth:`to_bytes` packed."""
        if packed[:1] == _RUNS:
            height, width = struct.unpack_from("<II", packed, 1)
            runs = np.frombuffer(packed, dtype="<u4", offset=9).astype(np.uint32)
            return cls(runs=runs, size=(height, width))
        polygons, at = [], 1
        while at < len(packed):
            (count,) = struct.unpack_from("<I", packed, at)
            points = np.frombuffer(packed, dtype="<f4", count=2 * count, offset=at + 4)
            polygons.append(points.astype(np.float32).reshape(-1, 2))
            at += 4 + 8 * count
        return cls(tuple(polygons))


def instance_boxes(numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes around the instances of a mask.

    Args:
        numbers: int [H, W], 0 for the background and from 1 for the instances.
        count: Number of instances, N.

    Returns:
        int64 [N, 4] (x1, y1, x2, y2), with x2 and y2 beyond the last pixel, all 0 for an instance
        without pixels; and their numbers of pixels, int64 [N].
    """
    places = np.nonzero(numbers)
    own = numbers[places].astype(np.int64) - 1
    areas = np.bincount(own, minlength=count)
    boxes = np.zeros((count, 4), dtype=np.int64)
    for axis, positions in ((0, places[1]), (1, places[0])):
        low, high = np.full(count, max(numbers.shape)), np.full(count, -1)
        np.minimum.at(low, own, positions)
        np.maximum.at(high, own, positions)
        boxes[:, axis], boxes[:, axis + 2] = low, high + 1
    boxes[areas == 0] = 0
    return boxes, areas


def _bounded(points: Polygon) -> np.ndarray:  # float32 [K, 2]
    limit = _MAX_COORDINATE
    return np.array(points, dtype=np.float64).clip(-limit, limit).astype(np.float32)


def _float_points(polygon: list[float]) -> np.ndarray:  # float32 [K, 2]
    try:
        points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    except OverflowError:
        raise ValueError("has a polygon with a number beyond all bounds") from None
    if not np.isfinite(points).all():
        raise ValueError("has a polygon with a number that is not finite")
    return points.astype(np.float32)


def _decode_runs(text: str) -> list[int]:
    """Decode COCO's text: numbers of 5 bits per character, from the third on as differences."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError("has 'counts' with characters that COCO's run lengths do not have")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("has 'counts' that end in the middle of a number")
    return counts


def _fill(found: np.ndarray, polygon: np.ndarray) -> None:
    """Set the pixels whose centers are inside a polygon, by the even-odd rule."""
    height, width = found.shape
    top = int(np.clip(np.floor(polygon[:, 1].min()), 0, height))
    bottom = int(np.clip(np.ceil(polygon[:, 1].max()), 0, height))
    if top == bottom:
        return
    start, end = polygon, np.roll(polygon, -1, axis=0)  # [K, 2]
    centers = np.arange(top, bottom) + 0.5  # [R]
    crossed = (start[:, 1] <= centers[:, None]) != (end[:, 1] <= centers[:, None])  # [R, K]
    rows, edges = np.nonzero(crossed)
    along = (centers[rows] - start[edges, 1]) / (end[edges, 1] - start[edges, 1])
    across = start[edges, 0] + along * (end[edges, 0] - start[edges, 0])
    columns = np.clip(np.ceil(across - 0.5), 0, width).astype(np.int64)
    toggles = np.zeros((bottom - top, width + 1), dtype=np.int32)
    np.add.at(toggles, (rows, columns), 1)
    found[top:bottom] |= np.cumsum(toggles[:, :-1], axis=1) % 2 == 1
