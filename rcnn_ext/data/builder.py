"""From what a reader finds in files to a checked :class:`AnnotationSet`.

Every format goes through here, so that boxes are cut, classes chosen and problems named alike.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rcnn_ext.data.annotations import (
    AnnotationSet,
    ClassList,
    ImageRecord,
    PackedImages,
    clean_boxes,
)
from rcnn_ext.data.images import ImageReader
from rcnn_ext.data.problems import Report
from rcnn_ext.data.segmentation import Segmentation
from rcnn_ext.errors import UserError


@dataclass(frozen=True)
class ReadOptions:
    """Options of a reader, whatever the format.

    Attributes:
        classes: Names of the classes, which get labels 1, 2, ... in this order; objects of others
            are left out. None takes those of the data: in the order that the format declares, or
            sorted where it declares none.
        missing_classes_ok: Whether ``classes`` may name some that the data declare nowhere; a
            validation split need not have all.
        other_classes: ``leave_out``: objects of classes that are not in ``classes`` are no problem;
            ``error``: they are.
        report: Where problems go, and broken images are left out; None raises for errors.
        lines: Whether every record is to have its line, even where that costs a second reading.
        require_annotations: Whether data that only list images are an error.
        encoding: See :class:`rcnn_ext.config.data.DataConfig`.
        reader: Reads the pictures.
        masks: Whether outlines and masks of objects are kept, where the format has them.
    """

    classes: Sequence[str] | None = None
    missing_classes_ok: bool = False
    other_classes: str = "leave_out"
    report: Report | None = None
    lines: bool = False
    require_annotations: bool = False
    encoding: str | None = None
    reader: ImageReader = ImageReader()
    masks: bool = False


class RawObject(NamedTuple):
    """One object as a file has it.

    Attributes:
        box: (x1, y1, x2, y2), image pixels, unchecked.
        name: Its class.
        line: Its line in the annotation file, or whatever ``locate`` turns into one.
        what: How messages call it, when its line does not say enough.
        area: Area of the object in square pixels; None takes that of its box.
        crowd: See :class:`ImageRecord`.
        difficult: See :class:`ImageRecord`.
        truncated: See :class:`ImageRecord`.
        outline: The shape that the box was taken around, such as ``polygon``; empty where the data
            have the box itself.
        segmentation: Makes its outline or mask, which is called only where it is to be kept; None
            where it has none.
    """

    box: tuple[float, float, float, float]
    name: str
    line: int | None = None
    what: str = ""
    area: float | None = None
    crowd: bool = False
    difficult: bool = False
    truncated: bool = False
    outline: str = ""
    segmentation: Callable[[], Segmentation | None] | None = None


class SetBuilder:
    """Collects images and their objects.

    Args:
        source: The file or folder that is read.
        options: What the caller wants.
        locate: Finds the line of what ``line`` stands for, when a problem needs it; None where it
            is a line already.
    """

    def __init__(
        self,
        source: Path,
        options: ReadOptions,
        locate: Callable[[int], int | None] | None = None,
    ) -> None:
        self.source = source
        self.options = options
        self.report = Report() if options.report is None else options.report
        self._before = len(self.report.problems)
        self._locate = locate
        self._records: list[tuple[ImageRecord, list[RawObject]]] = []
        self._listings: dict[Path, set[str]] = {}
        self._missing: list[Path] = []
        self._expected = 0
        self._declared: dict[str, int | str | float] | None = None
        self._strangers: Counter[str] = Counter()
        self._first_seen: dict[str, tuple[Path, int | None]] = {}
        self._clipped = self._dropped = self._skipped = self._other = 0
        self._outlines: Counter[str] = Counter()

    def declare(self, names: Sequence[tuple[str, int | str | float]]) -> None:
        """Names and category ids that the format declares, in the order of their labels.

        Called before any image is added; without it the names that occur are the classes, sorted.
        """
        self._declared = dict(names)

    def exists(self, path: Path) -> bool:
        """Return whether there is such a file, by one listing of a folder of perhaps 100,000."""
        folder = path.parent
        if folder not in self._listings:
            try:
                self._listings[folder] = set(os.listdir(folder))
            except (OSError, ValueError):
                # There is none, it cannot be read, or no folder can have such a name.
                self._listings[folder] = set()
        return path.name in self._listings[folder]

    def skip(self) -> None:
        """Count an image whose annotations the reader found broken, and reported."""
        self._expected += 1
        self._skipped += 1

    def add(
        self,
        image_id: int,
        path: Path,
        size: tuple[int, int] | None,
        objects: Sequence[RawObject],
        origin: tuple[Path, int | None],
        *,
        broken: bool = False,
        verify_size: bool = False,
    ) -> None:
        """Add an image, or report why that is not possible.

        Args:
            image_id: What annotation and result files call it.
            path: The picture.
            size: Width and height in pixels by its annotations; None reads the picture's header.
            objects: What is in it.
            origin: File and line that describe the image.
            broken: Whether the reader has reported that something of it is broken.
            verify_size: Whether to compare ``size`` with the picture's header now, not only when it
                is loaded.
        """
        self._expected += 1
        file, line = origin
        if not self.exists(path):
            self.report.error(file, line, f"the image {path} does not exist")
            self._missing.append(path)
            broken = True
        elif size is None or verify_size:
            try:
                actual = self.options.reader.image_size(path)
            except UserError as error:
                self.report.error(file, line, str(error))
                broken = True
            else:
                # A picture that EXIF turns may be annotated as it is stored, too.
                if size is not None and sorted(size) != sorted(actual):
                    self.report.error(
                        file,
                        line,
                        f"the size is given as {size[0]}x{size[1]}, but {path.name} is "
                        f"{actual[0]}x{actual[1]} pixels",
                    )
                    broken = True
                size = size or actual
        if broken or size is None:
            self._skipped += 1
            return
        wanted = self._of_wanted_classes(objects, file)
        if wanted is None:
            self._skipped += 1
            return
        objects = wanted
        corners = np.array([item.box for item in objects], dtype=np.float64).reshape(-1, 4)
        boxes, keep, _ = clean_boxes(corners, *size)
        kept = [item for item, good in zip(objects, keep, strict=True) if good]
        self._report_corrected(objects, corners, boxes, keep, size, file)
        self._outlines.update(item.outline for item in kept if item.outline)
        boxes = boxes[keep]
        sides = boxes[:, 2:] - boxes[:, :2]  # [N, 2]
        areas = [
            float(side[0]) * float(side[1]) if item.area is None else item.area
            for item, side in zip(kept, sides, strict=True)
        ]
        record = ImageRecord(
            image_id=image_id,
            path=path,
            width=size[0],
            height=size[1],
            boxes=boxes,
            labels=np.zeros(len(kept), dtype=np.int64),
            areas=np.array(areas, dtype=np.float32),
            crowd=np.array([item.crowd for item in kept], dtype=bool),
            difficult=np.array([item.difficult for item in kept], dtype=bool),
            truncated=np.array([item.truncated for item in kept], dtype=bool),
            origin=origin,
            segmentations=_segmentations(kept) if self.options.masks else None,
        )
        if record.segmentations is not None:
            # What makes them may hold on to the mask of a whole image.
            kept = [item._replace(segmentation=None) for item in kept]
        self._records.append((record, kept))

    def finish(
        self, *, annotated: bool = True, looked_for: str = "", required: bool = False
    ) -> AnnotationSet:
        """Return the set of all images added.

        Args:
            annotated: See :class:`AnnotationSet`.
            looked_for: Where annotations were looked for, for messages.
            required: Whether there must be some even where the options do not require them.

        Raises:
            UserError: Nothing is left, the classes asked for are not there, there are no
                annotations where they are required, or something is broken and the caller gave no
                report.
        """
        if self._missing and len(self._missing) == self._expected:
            folder, first = self._missing[0].parent, self._missing[0].name
            raise UserError(
                f"none of the {self._expected} images that {self.source} lists is in {folder}, "
                f"the first is {first}"
            )
        if not annotated and (required or self.options.require_annotations):
            message = f"{self._expected} images, but no annotations: looked for {looked_for}"
            self.report.error(self.source, None, message)
            raise UserError(f"{self.source}: {message}")
        classes = self._choose_classes()
        self._name_strangers(classes)
        if self.options.report is None:
            self.report.raise_if_errors(self.source)
        images = self._packed(classes)
        if not images:
            found = self.report.errors()
            reason = f" ({found[0]})" if found else ""
            raise UserError(f"{self.source} has no images that can be used{reason}")
        return AnnotationSet(
            self.source,
            classes,
            images,
            self._clipped,
            self._dropped,
            self._other,
            self._skipped,
            annotated,
            tuple(self.report.problems[self._before :]),
            dict(self._outlines),
            self.options.reader,
        )

    def _packed(self, classes: ClassList) -> PackedImages:
        """Return the images added, with the labels of the classes chosen."""
        label_of = {name: label for label, name in enumerate(classes.names, start=1)}
        for record, objects in self._records:
            record.labels[:] = [label_of[item.name] for item in objects]
        return PackedImages.pack(record for record, _ in self._records)

    def _of_wanted_classes(
        self, objects: Sequence[RawObject], file: Path
    ) -> Sequence[RawObject] | None:
        """Return the objects of the classes asked for; None if others make the image unusable."""
        wanted = self.options.classes
        if wanted is None:
            return objects
        others = [item for item in objects if item.name not in wanted]
        unknown = [item for item in others if item.name not in (self._declared or ())]
        for item in unknown:
            self._strangers[item.name] += 1
            if item.name not in self._first_seen:
                self._first_seen[item.name] = file, self._line(item.line)
        if unknown and self.options.other_classes == "error":
            return None
        self._other += len(others)
        return [item for item in objects if item.name in wanted] if others else objects

    def _line(self, key: int | None) -> int | None:
        return key if key is None or self._locate is None else self._locate(key)

    def _report_corrected(
        self,
        objects: Sequence[RawObject],
        corners: np.ndarray,
        boxes: np.ndarray,
        keep: np.ndarray,
        size: tuple[int, int],
        file: Path,
    ) -> None:
        cut = self._count_corrected(corners, boxes, keep)
        for index in np.flatnonzero(cut | ~keep).tolist():
            item = objects[index]
            what = f"{item.what}: " if item.what else ""
            done = self._what_was_done(corners[index], bool(keep[index]), size)
            self.report.warning(file, self._line(item.line), f"{what}{done}")

    def _count_corrected(
        self, corners: np.ndarray, boxes: np.ndarray, keep: np.ndarray
    ) -> np.ndarray:
        """Count boxes that were cut or dropped, and return which were cut, bool [N]."""
        # Annotation tools round to whole pixels: only boxes farther out are worth a word.
        with np.errstate(invalid="ignore"):
            cut: np.ndarray = np.abs(boxes - corners).max(axis=1, initial=0) > 1
        self._clipped += int((cut & keep).sum())
        self._dropped += int((~keep).sum())
        return cut

    @staticmethod
    def _what_was_done(corners: np.ndarray, kept: bool, size: tuple[int, int]) -> str:
        """Describe what became of a box that was cut or dropped.

        Args:
            corners: float64 [4], as the file has it.
            kept: Whether something of it is left.
            size: Width and height of the image in pixels.
        """
        if kept:
            done = f"reaches out of the image ({size[0]}x{size[1]}) and was cut"
        elif not np.isfinite(corners).all():
            done = "is not finite and was dropped"
        elif (corners[2:] <= corners[:2]).any():
            done = "has no area and was dropped"
        else:
            done = f"has nothing inside the image ({size[0]}x{size[1]}) and was dropped"
        return f"the box [{', '.join(f'{value:g}' for value in corners)}] {done}"

    def _name_strangers(self, classes: ClassList) -> None:
        errors = self.options.other_classes == "error"
        for name, count in self._strangers.items():
            near = difflib.get_close_matches(name, classes.names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            objects = "1 object" if count == 1 else f"{count} objects, the first here"
            add = self.report.error if errors else self.report.warning
            add(*self._first_seen[name], f"unknown class {name!r}{hint}: {objects}")

    def _choose_classes(self) -> ClassList:
        known, wanted = self._declared, self.options.classes
        if wanted is None:
            if known is not None:
                return ClassList(tuple(known), tuple(known.values()))
            occurring = {item.name for _, objects in self._records for item in objects}
            return ClassList(tuple(sorted(occurring)), tuple(range(1, len(occurring) + 1)))
        names = tuple(wanted)
        if known is None:
            # Such a format has no list of its own, so any class may be one that does not occur.
            return ClassList(names, tuple(range(1, len(names) + 1)))
        unknown = [name for name in names if name not in known]
        if unknown and (not self.options.missing_classes_ok or len(unknown) == len(names)):
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(
                f"{self.source} has no class {unknown[0]!r}{hint}; it has {', '.join(known)}"
            )
        # A class that the file does not have needs an id that it does not use either.
        first = max((i for i in known.values() if isinstance(i, int)), default=0) + 1
        spare = iter(range(first, first + len(unknown)))
        return ClassList(names, tuple(known[n] if n in known else next(spare) for n in names))


def _segmentations(objects: Sequence[RawObject]) -> tuple[Segmentation | None, ...]:
    return tuple(None if one.segmentation is None else one.segmentation() for one in objects)
