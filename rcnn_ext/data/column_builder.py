"""From columns over all images of a file to a checked :class:`AnnotationSet`.

Does what :class:`SetBuilder` does image by image, for files of a million objects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rcnn_ext.data.annotations import ClassList, PackedImages, clean_boxes
from rcnn_ext.data.builder import ReadOptions, SetBuilder
from rcnn_ext.data.segmentation import Segmentation
from rcnn_ext.errors import UserError


@dataclass(frozen=True)
class ImageColumns:
    """The images of a file, M.

    Attributes:
        image_ids: int64 [M], all different.
        own_ids: Their ids where these are no whole numbers; None: all are.
        paths: The pictures.
        missing: What to say of pictures that do not exist, by index.
        sizes: int64 [M, 2], width and height in pixels, 0 where the file does not say.
        broken: bool [M], those of which the reader has reported that something is broken.
        others: bool [M], those that are of another split, and are no matter here.
        line: Finds the line of an image.
    """

    image_ids: np.ndarray
    own_ids: Sequence[int | str | float | None] | None
    paths: Sequence[str]
    missing: Mapping[int, str]
    sizes: np.ndarray
    broken: np.ndarray
    others: np.ndarray
    line: Callable[[int], int | None]


@dataclass(frozen=True)
class ObjectColumns:
    """The objects of a file, N, in its order.

    Attributes:
        images: int64 [N], index of the image.
        classes: int64 [N], index into ``names``.
        names: Names of the classes.
        boxes: float64 [N, 4] (x1, y1, x2, y2), image pixels, unchecked.
        areas: float64 [N], in square pixels; NaN takes that of the box.
        crowd: bool [N].
        called: How messages call an object.
        line: Finds its line.
        segmentations: Packed outlines, N; None: they are not kept.
    """

    images: np.ndarray
    classes: np.ndarray
    names: Sequence[str]
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    called: Callable[[int], str]
    line: Callable[[int], int | None]
    segmentations: Sequence[bytes] | None = None


class ColumnBuilder(SetBuilder):
    """Checks all images and objects of one file at once.

    Args:
        source: The file.
        options: What the caller wants.
    """

    def __init__(self, source: Path, options: ReadOptions) -> None:
        super().__init__(source, options)
        self._columns: tuple[ImageColumns, ObjectColumns] | None = None
        self._used = np.zeros(0, dtype=bool)  # [M]
        self._order = np.zeros(0, dtype=np.int64)  # [K], objects kept, image after image.
        self._boxes = np.zeros((0, 4), dtype=np.float32)  # [K, 4]
        self._sizes = np.zeros((0, 2), dtype=np.int64)  # [M, 2]

    def add_columns(self, images: ImageColumns, objects: ObjectColumns) -> None:
        """Add the images and objects of the file, and report what cannot be used."""
        self._expected += int((~images.others).sum())
        sizes, used = self._checked_sizes(images)
        self._skipped += int((~used & ~images.others).sum())
        keep = used[objects.images]
        if self.options.classes is not None:
            wanted = np.isin(np.array(objects.names, dtype=object), list(self.options.classes))
            other = keep & ~wanted[objects.classes]
            self._other += int(other.sum())
            keep &= ~other
        chosen = np.flatnonzero(keep)
        own_sizes = sizes[objects.images[chosen]]  # [K, 2]
        corners = objects.boxes if keep.all() else objects.boxes[chosen]
        boxes, good, _ = clean_boxes(corners, own_sizes[:, 0], own_sizes[:, 1])
        cut = self._count_corrected(corners, boxes, good)
        for place in np.flatnonzero(cut | ~good).tolist():
            index = int(chosen[place])
            width, height = own_sizes[place].tolist()
            done = self._what_was_done(corners[place], bool(good[place]), (width, height))
            self.report.warning(
                self.source, objects.line(index), f"{objects.called(index)}: {done}"
            )
        if not good.all():
            chosen, boxes = chosen[good], boxes[good]
        objects = self._with_fitting_masks(objects, chosen, sizes)
        order = np.argsort(objects.images[chosen], kind="stable")
        self._columns = images, objects
        self._used, self._order, self._boxes = used, chosen[order], boxes[order]
        self._sizes = sizes

    def _with_fitting_masks(
        self, objects: ObjectColumns, chosen: np.ndarray, sizes: np.ndarray
    ) -> ObjectColumns:
        """Return the objects without masks that are of another size than their image."""
        if objects.segmentations is None:
            return objects
        kept = list(objects.segmentations)
        for index in chosen.tolist():
            size = Segmentation.size_of_runs(kept[index])
            width, height = sizes[objects.images[index]].tolist()
            if size is not None and size != (height, width):
                kept[index] = b""
                self.report.warning(
                    self.source,
                    objects.line(index),
                    f"{objects.called(index)}: its mask is {size[1]}x{size[0]} pixels, the image "
                    f"{width}x{height}; the mask was left out",
                )
        return dataclasses.replace(objects, segmentations=kept)

    def _checked_sizes(self, images: ImageColumns) -> tuple[np.ndarray, np.ndarray]:
        """Return the sizes of all images, and which can be used."""
        sizes, used = images.sizes.copy(), ~images.broken & ~images.others
        for row, message in sorted(images.missing.items()):
            if images.others[row]:
                continue
            self.report.error(self.source, images.line(row), message)
            self._missing.append(Path(images.paths[row]))
            used[row] = False
        for row in np.flatnonzero(used & (sizes[:, 0] == 0)).tolist():
            try:
                sizes[row] = self.options.reader.image_size(Path(images.paths[row]))
            except UserError as error:
                self.report.error(self.source, images.line(row), str(error))
                used[row] = False
        return sizes, used

    def _packed(self, classes: ClassList) -> PackedImages:
        """Return the images added, with the labels of the classes chosen."""
        if self._columns is None:
            return PackedImages.pack(())
        images, objects = self._columns
        rows = np.flatnonzero(self._used)
        order, boxes = self._order, self._boxes
        label_of = {name: label for label, name in enumerate(classes.names, start=1)}
        labels = np.array([label_of.get(name, 0) for name in objects.names], dtype=np.int32)
        counts = np.bincount(objects.images[order], minlength=len(self._used))[rows]
        areas = objects.areas[order]
        sides = boxes[:, 2:] - boxes[:, :2]  # [K, 2]
        areas = np.where(np.isnan(areas), sides[:, 0] * sides[:, 1], areas)
        lines = None
        if self.options.lines:
            lines = np.array([images.line(row) or 0 for row in rows.tolist()], dtype=np.int64)
        own, outlines = images.own_ids, objects.segmentations
        return PackedImages.from_arrays(
            image_ids=images.image_ids[rows],
            paths=[images.paths[row] for row in rows.tolist()],
            sizes=self._sizes[rows],
            counts=counts,
            boxes=boxes,
            labels=labels[objects.classes[order]] if len(order) else np.zeros(0, np.int32),
            areas=areas,
            crowd=objects.crowd[order],
            origin_files=[str(self.source)] * len(rows),
            origin_lines=lines,
            own_ids=None if own is None else [own[row] for row in rows.tolist()],
            segmentations=None if outlines is None else [outlines[i] for i in order.tolist()],
        )
