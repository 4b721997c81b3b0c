"""Many image records in a few arrays, which processes share instead of copying.

A worker of a data loader that looks at a Python object changes its reference count, and so copies
the page of memory that it is in: with one object per image, each worker ends with a copy of all
annotations. Here they are one block of bytes, and records are made when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import context
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from rcnn_ext.data.ragged import gather_parts, starts_of
from rcnn_ext.data.records import ImageRecord
from rcnn_ext.data.segmentation import Segmentation

# Name, data type and shape of an array, and where it begins in the block.
_Layout = tuple[tuple[str, str, tuple[int, ...], int], ...]

_ALIGNMENT = 64
_RECORDS_PER_CHUNK = 1024

_PER_OBJECT = {
    "boxes": np.float32,
    "labels": np.int32,
    "areas": np.float32,
    "crowd": bool,
    "difficult": bool,
    "truncated": bool,
}


class PackedImages(Sequence[ImageRecord]):
    """An immutable sequence of image records in one block of memory.

    Records are built on access, with arrays of their own. Slices are packed too. In a forked worker
    the block stays shared, since nothing writes to it; a worker that is spawned maps it from shared
    memory.

    Made by :meth:`pack` from records, or by :meth:`from_arrays`.
    """

    def __init__(self, block: np.ndarray, layout: _Layout) -> None:
        self._block = block
        self._layout = layout
        self._shared: torch.Tensor | None = None
        self._arrays: dict[str, np.ndarray] = {}
        for name, dtype, shape, start in layout:
            kind = np.dtype(dtype)
            count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
            view = block[start : start + count].view(kind).reshape(shape)
            view.flags.writeable = False
            self._arrays[name] = view

    @classmethod
    def pack(cls, records: Iterable[ImageRecord]) -> PackedImages:
        """Pack records; what is packed already is returned as it is.

        Raises:
            ValueError: The arrays of a record differ in length, or its ``image_id`` is beyond
                64 bits.
        """
        if isinstance(records, PackedImages):
            return records
        chunks: list[dict[str, np.ndarray]] = []
        batch: list[ImageRecord] = []
        images: list[tuple[Any, ...]] = []
        packed: list[bytes] = []
        segmented = False
        for record in records:
            count = len(record.boxes)
            file, line = record.origin or ("", None)
            images.append(
                (
                    record.image_id,
                    str(record.path),
                    (record.width, record.height),
                    count,
                    str(file),
                    line or 0,
                    record.own_id,
                )
            )
            outlines = record.segmentations
            segmented = segmented or outlines is not None
            packed += [one.to_bytes() if one else b"" for one in outlines or (None,) * count]
            batch.append(record)
            if len(batch) == _RECORDS_PER_CHUNK:
                chunks.append(_objects_of(batch))
                batch = []
        chunks.append(_objects_of(batch))
        ids, paths, sizes, counts, files, lines, own = (
            zip(*images, strict=True) if images else ((),) * 7
        )
        try:
            image_ids = np.array(ids, dtype=np.int64)
        except OverflowError:
            raise ValueError("an image_id is beyond 64 bits") from None
        return cls.from_arrays(
            image_ids=image_ids,
            paths=paths,
            sizes=np.array(sizes, dtype=np.int32),
            counts=np.array(counts, dtype=np.int64),
            origin_files=files,
            origin_lines=np.array(lines, dtype=np.int64),
            own_ids=own,
            segmentations=packed if segmented else None,
            **{name: np.concatenate([chunk[name] for chunk in chunks]) for name in _PER_OBJECT},
        )

    @classmethod
    def from_arrays(
        cls,
        *,
        image_ids: np.ndarray,
        paths: Sequence[str],
        sizes: np.ndarray,
        counts: np.ndarray,
        boxes: np.ndarray,
        labels: np.ndarray,
        areas: np.ndarray,
        crowd: np.ndarray,
        difficult: np.ndarray | None = None,
        truncated: np.ndarray | None = None,
        origin_files: Sequence[str] | None = None,
        origin_lines: np.ndarray | None = None,
        own_ids: Sequence[int | str | float | None] | None = None,
        segmentations: Sequence[bytes] | None = None,
    ) -> PackedImages:
        """Pack the columns of M images with N objects in all, those of each image together.

        Args:
            image_ids: int64 [M].
            paths: The pictures, M.
            sizes: int32 [M, 2], width and height in pixels.
            counts: int64 [M], objects of each image.
            boxes: float32 [N, 4].
            labels: int [N], from 1.
            areas: float32 [N].
            crowd: bool [N].
            difficult: bool [N]; None: none is.
            truncated: bool [N]; None: none is.
            origin_files: The file that describes each image, M, "" for none; None: none has one.
            origin_lines: int64 [M], its line from 1, or 0 for none; None: none has one.
            own_ids: Ids that are no whole numbers, or beyond 64 bits, M; None: there are none.
            segmentations: :meth:`Segmentation.to_bytes` of each object, N, empty where it has
                none; None: they are not kept.
        """
        images, objects = len(image_ids), len(boxes)
        no_flags = np.zeros(objects, dtype=bool)
        columns: dict[str, np.ndarray] = {
            "image_ids": np.asarray(image_ids, dtype=np.int64),
            "sizes": np.asarray(sizes, dtype=np.int32).reshape(images, 2),
            "starts": starts_of(np.asarray(counts, dtype=np.int64)),
            "boxes": np.asarray(boxes, dtype=np.float32).reshape(objects, 4),
            "labels": np.asarray(labels, dtype=np.int32),
            "areas": np.asarray(areas, dtype=np.float32),
            "crowd": np.asarray(crowd, dtype=bool),
            "difficult": no_flags if difficult is None else np.asarray(difficult, dtype=bool),
            "truncated": no_flags if truncated is None else np.asarray(truncated, dtype=bool),
            "lines": np.zeros(images, np.int64)
            if origin_lines is None
            else np.asarray(origin_lines, dtype=np.int64),
        }
        files = [""] * images if origin_files is None else origin_files
        names = list(dict.fromkeys(files))
        index_of = {name: index for index, name in enumerate(names)}
        columns["file_index"] = np.array([index_of[name] for name in files], dtype=np.int32)
        _add_texts(columns, "files", [os.fsencode(name) for name in names])
        _add_texts(columns, "paths", [os.fsencode(path) for path in paths])
        if own_ids is not None and any(own is not None for own in own_ids):
            texts = [b"" if own is None else json.dumps(own).encode() for own in own_ids]
            _add_texts(columns, "own_ids", texts)
        if segmentations is not None:
            _add_texts(columns, "segmentations", segmentations)
        return cls._from_columns(columns)

    @classmethod
    def _from_columns(cls, columns: dict[str, np.ndarray]) -> PackedImages:
        images, objects = len(columns["image_ids"]), len(columns["boxes"])
        per_image = ("sizes", "lines", "file_index")
        if (
            any(len(columns[name]) != images for name in per_image)
            or any(len(columns[name]) != objects for name in _PER_OBJECT)
            or columns["starts"][-1] != objects
        ):
            raise ValueError("the columns of images or objects differ in length")
        layout, size = [], 0
        for name, column in columns.items():
            layout.append((name, column.dtype.str, column.shape, size))
            size += -(-column.nbytes // _ALIGNMENT) * _ALIGNMENT
        block = np.empty(size, dtype=np.uint8)
        for (_, _, _, start), column in zip(layout, columns.values(), strict=True):
            block[start : start + column.nbytes] = (
                np.ascontiguousarray(column).reshape(-1).view(np.uint8)
            )
        return cls(block, tuple(layout))

    def sha256(self) -> str:
        """Return the first 16 digits of a hash of all that is known of the images."""
        digest = hashlib.sha256()
        for name, column in sorted(self._arrays.items()):
            digest.update(name.encode())
            digest.update(column.tobytes())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._arrays["image_ids"])

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> PackedImages: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | PackedImages:
        """Return the record at an index, or the records of a slice, packed."""
        if isinstance(index, slice):
            rows = np.arange(len(self))[index]
            return self if len(rows) == len(self) and rows[:1] == 0 else self.take(rows)
        place = operator.index(index)
        place += len(self) if place < 0 else 0
        if not 0 <= place < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._record(place)

    def __iter__(self) -> Iterator[ImageRecord]:
        """Yield the records in order."""
        return map(self._record, range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the block; for a process that is being spawned, only a handle of it."""
        if context.get_spawning_popen() is None:
            return PackedImages, (self._block, self._layout)
        if self._shared is None:
            # A copy: sending a tensor moves its memory, and views of the block would dangle.
            self._shared = torch.from_numpy(self._block.copy()).share_memory_()
        return _from_shared, (self._shared, self._layout)

    @property
    def nbytes(self) -> int:
        """Memory that the images take, in bytes."""
        return len(self._block)

    @property
    def counts(self) -> np.ndarray:
        """Number of objects of each image, int64 [M]."""
        return np.diff(self._arrays["starts"])

    @property
    def boxes(self) -> np.ndarray:
        """Boxes of all objects, image after image, float32 [N, 4], read-only."""
        return self._arrays["boxes"]

    @property
    def labels(self) -> np.ndarray:
        """Labels of all objects, int32 [N], read-only."""
        return self._arrays["labels"]

    @property
    def areas(self) -> np.ndarray:
        """Areas of all objects in square pixels, float32 [N], read-only."""
        return self._arrays["areas"]

    @property
    def crowd(self) -> np.ndarray:
        """Which objects are crowds, bool [N], read-only."""
        return self._arrays["crowd"]

    @property
    def difficult(self) -> np.ndarray:
        """Which objects are difficult, bool [N], read-only."""
        return self._arrays["difficult"]

    @property
    def sizes(self) -> np.ndarray:
        """Width and height of the images in pixels, int32 [M, 2], read-only."""
        return self._arrays["sizes"]

    @property
    def has_segmentations(self) -> bool:
        """Whether outlines and masks are kept."""
        return "segmentations" in self._arrays

    @property
    def segmented(self) -> np.ndarray:
        """Which objects have an outline or mask, bool [N]."""
        starts = self._arrays.get("segmentations_starts", np.zeros(len(self.boxes) + 1))
        return np.diff(starts) > 0

    def object_images(self) -> np.ndarray:
        """Return the index of the image of each object, int64 [N]."""
        return np.repeat(np.arange(len(self)), self.counts)

    def paths(self) -> Iterator[Path]:
        """Yield the pictures' paths, without building records."""
        return (Path(os.fsdecode(self._text("paths", row))) for row in range(len(self)))

    def take(self, rows: np.ndarray | Sequence[int]) -> PackedImages:
        """Return some of the images, packed.

        Args:
            rows: int64 [K], their indices in the order wanted.
        """
        rows = np.asarray(rows, dtype=np.int64)
        old = self._arrays
        columns = {name: old[name][rows] for name in ("image_ids", "sizes", "lines", "file_index")}
        columns["starts"], objects = gather_parts(old["starts"], rows)
        columns |= {name: old[name][objects] for name in _PER_OBJECT}
        columns |= {name: old[name] for name in ("files", "files_starts")}
        for name in ("paths", "own_ids"):
            self._take_texts(columns, name, rows)
        self._take_texts(columns, "segmentations", objects)
        return self._from_columns(columns)

    def keep_objects(self, keep: np.ndarray) -> PackedImages:
        """Return the images with some of their objects.

        Args:
            keep: bool [N].
        """
        if keep.all():
            return self
        columns = dict(self._arrays)
        objects = np.flatnonzero(keep)
        columns |= {name: columns[name][objects] for name in _PER_OBJECT}
        columns["starts"] = np.searchsorted(objects, self._arrays["starts"]).astype(np.int64)
        self._take_texts(columns, "segmentations", objects)
        return self._from_columns(columns)

    def _take_texts(self, columns: dict[str, np.ndarray], name: str, rows: np.ndarray) -> None:
        if name in self._arrays:
            starts, places = gather_parts(self._arrays[f"{name}_starts"], rows)
            columns[f"{name}_starts"] = starts
            columns[name] = self._arrays[name][places]

    def _text(self, name: str, row: int) -> bytes:
        starts = self._arrays[f"{name}_starts"]
        return self._arrays[name][starts[row] : starts[row + 1]].tobytes()

    def _record(self, row: int) -> ImageRecord:
        arrays = self._arrays
        first, last = int(arrays["starts"][row]), int(arrays["starts"][row + 1])
        width, height = arrays["sizes"][row].tolist()
        file = os.fsdecode(self._text("files", int(arrays["file_index"][row])))
        own = self._text("own_ids", row) if "own_ids" in arrays else b""
        segmentations = None
        if self.has_segmentations:
            texts = (self._text("segmentations", place) for place in range(first, last))
            segmentations = tuple(Segmentation.from_bytes(t) if t else None for t in texts)
        return ImageRecord(
            image_id=int(arrays["image_ids"][row]),
            path=Path(os.fsdecode(self._text("paths", row))),
            width=width,
            height=height,
            boxes=arrays["boxes"][first:last].copy(),
            labels=arrays["labels"][first:last].astype(np.int64),
            areas=arrays["areas"][first:last].copy(),
            crowd=arrays["crowd"][first:last].copy(),
            difficult=arrays["difficult"][first:last].copy(),
            truncated=arrays["truncated"][first:last].copy(),
            origin=(Path(file), int(arrays["lines"][row]) or None) if file else None,
            own_id=json.loads(own) if own else None,
            segmentations=segmentations,
        )


def _from_shared(shared: torch.Tensor, layout: _Layout) -> PackedImages:
    return PackedImages(shared.numpy(), layout)


def _add_texts(columns: dict[str, np.ndarray], name: str, texts: Sequence[bytes]) -> None:
    columns[name] = np.frombuffer(b"".join(texts), dtype=np.uint8)
    columns[f"{name}_starts"] = starts_of(np.array([len(text) for text in texts], dtype=np.int64))


def _objects_of(records: Sequence[ImageRecord]) -> dict[str, np.ndarray]:
    return {
        name: np.concatenate(
            [np.zeros((0, 4) if name == "boxes" else 0, dtype=dtype)]
            + [np.asarray(getattr(record, name)).astype(dtype) for record in records]
        )
        for name, dtype in _PER_OBJECT.items()
    }
