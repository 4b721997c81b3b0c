"""Convert a data set: read all splits of any format, and write them in another one."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet, ClassList
from rcnn_ext.data.conversion.classes import is_numbered, merge_classes, rename_classes
from rcnn_ext.data.conversion.coco_target import CocoTarget
from rcnn_ext.data.conversion.csv_target import CsvTarget
from rcnn_ext.data.conversion.losses import Losses
from rcnn_ext.data.conversion.pictures import ImagesMode
from rcnn_ext.data.conversion.source import reading
from rcnn_ext.data.conversion.split_writer import SplitWriter
from rcnn_ext.data.conversion.target import Target
from rcnn_ext.data.conversion.voc_target import VocTarget
from rcnn_ext.data.conversion.yolo_target import YoloTarget
from rcnn_ext.data.problems import Problem
from rcnn_ext.errors import UserError
from rcnn_ext.files import replacing_folder
from rcnn_ext.progress import Progress

TargetName = Literal["coco", "voc", "yolo", "csv"]

TARGETS: dict[str, type[Target]] = {
    "coco": CocoTarget,
    "voc": VocTarget,
    "yolo": YoloTarget,
    "csv": CsvTarget,
}
_MODES = ("copy", "link", "none")


@dataclass(frozen=True)
class Conversion:
    """The result of converting a data set.

    Attributes:
        out: The folder that was written.
        read_format: The format that was read.
        written_format: The format that was written.
        images: Number of images that are written, by split.
        objects: Number of objects that are written, by split.
        classes: The classes, as they are written.
        not_kept: What was not kept, a sentence with the count for each kind; empty: all was.
        problems: What was corrected, left out or to be known in the data that were read.
    """

    out: Path
    read_format: str
    written_format: str
    images: dict[str, int]
    objects: dict[str, int]
    classes: ClassList
    not_kept: tuple[str, ...]
    problems: tuple[Problem, ...]

    def summary(self) -> str:
        """Return one line about what was written."""
        splits = ", ".join(
            f"{split}: {self.images[split]} images with {self.objects[split]} objects"
            for split in self.images
        )
        return f"{self.out}: {self.written_format}, {splits}, {len(self.classes)} classes"


def convert(
    root: Path | str,
    out: Path | str,
    format: TargetName,
    *,
    config: DataConfig | None = None,
    splits: Sequence[str] | None = None,
    images: ImagesMode = "copy",
    overwrite: bool = False,
) -> Conversion:
    """Write a data set in another format, whole or not at all.

    Boxes and sizes are written in pixels of the upright pictures, as all readers here take them;
    the pictures are not changed, whatever their metadata say. Boxes read back as the same float32
    values.

    Args:
        root: The data folder, an archive of it, or a name of the Hugging Face Hub.
        out: The folder to write, which must be new or empty.
        format: ``coco``, ``voc``, ``yolo`` or ``csv``.
        config: How to read the data; None detects the format. ``val_fraction`` and
            ``test_fraction`` cut splits from the training images. ``on_error`` says what broken
            images do: stop, or be left out.
        splits: Names of the splits to convert; None takes all.
        images: What pictures become: ``copy``; ``link``: hard links, or copies where the file
            system has none; ``none``: they stay where they are, and are named by their absolute
            paths (COCO, CSV) or by symbolic links (VOC, YOLO), which find pictures by their place.
        overwrite: Whether ``out`` is replaced if it holds something.

    Returns:
        What was written, and what could not be kept.

    Raises:
        UserError: The data are missing or wrong, or ``out`` holds something or cannot be written.

    Example:
        >>> convert("VOCdevkit", "voc_as_yolo", "yolo").images
        {'train': 8}
    """
    if format not in TARGETS:
        raise UserError(f"unknown format {format!r} to write: choose from {', '.join(TARGETS)}")
    if images not in _MODES:
        raise UserError(f"unknown images={images!r}: choose from {', '.join(_MODES)}")
    root, out = Path(root), Path(out)
    try:
        _check_out(root, out, overwrite)
    except OSError as error:
        raise _unwritable(error, out) from error
    with reading(config or DataConfig(), root, splits, out, images) as source:
        _check_not_inside(source.sets, out)
        losses = Losses()
        kind = TARGETS[format]
        _count_read(source.sets, losses, keeps_outlines=kind.keeps_areas)
        merged = merge_classes([one.classes for one in source.sets.values()], losses)
        classes = rename_classes(merged, kind.held_name, kind.title, losses)
        try:
            with replacing_folder(out.resolve(), overwrite=overwrite) as folder:
                target = kind(folder, classes, losses)
                written = _write(target, source.sets, merged, out, images, source.config)
        except OSError as error:
            raise _unwritable(error, out) from error
        problems = tuple(p for one in source.sets.values() for p in one.problems)
        return Conversion(
            out,
            source.config.format,
            format,
            {split: counts[0] for split, counts in written.items()},
            {split: counts[1] for split, counts in written.items()},
            classes,
            losses.texts(),
            problems,
        )


def _write(
    target: Target,
    sets: dict[str, AnnotationSet],
    merged: ClassList,
    out: Path,
    images: ImagesMode,
    config: DataConfig,
) -> dict[str, tuple[int, int]]:
    """Write all splits, and return the numbers of images and objects of each."""
    written: dict[str, tuple[int, int]] = {}
    label_of = {name: label for label, name in enumerate(merged.names, start=1)}
    total = sum(len(one) for one in sets.values())
    writer = SplitWriter(target, out, images, skip_broken=config.on_error == "skip")
    with Progress("Converting", total, "image") as progress:
        for split, annotations in sets.items():
            labels = np.array([0, *(label_of[name] for name in annotations.classes.names)])
            written[split] = writer.write(split, annotations, labels, progress)
            if not written[split][0]:
                raise UserError(f"{annotations.source} has no images that can be used")
    if not isinstance(target, CocoTarget | CsvTarget):
        made_up = all(is_numbered(one.classes) for one in sets.values())
        first = 0 if isinstance(target, YoloTarget) else 1
        target.count_category_ids(range(first, first + len(merged)), made_up)
    target.finish()
    return written


def _check_out(root: Path, out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a new folder to write the data set into")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"{out} is not empty: name a new folder, or replace all that is in it with --overwrite "
            "(in Python, overwrite=True)"
        )
    place = out.resolve()
    for kept, what in ((root.resolve(), "the data to convert"), (Path.cwd(), "the current folder")):
        if kept == place or place in kept.parents:
            raise UserError(f"{out} is or contains {what}, and is not overwritten: name another")


def _check_not_inside(sets: dict[str, AnnotationSet], out: Path) -> None:
    """Refuse to overwrite pictures that are to be converted."""
    place = out.resolve()
    if not place.is_dir() or not any(place.iterdir()):
        return
    for one in sets.values():
        for path in one.images.paths():
            if place in path.resolve().parents:
                raise UserError(
                    f"{out} has pictures of the data to convert, such as {path}, and is not "
                    "overwritten: name another folder"
                )


def _count_read(sets: dict[str, AnnotationSet], losses: Losses, *, keeps_outlines: bool) -> None:
    """Count what reading corrected or left out."""
    for one in sets.values():
        skipped = "they or their annotations are broken: left out"
        losses.add("images", skipped, one.skipped)
        losses.add("boxes", "cut to their image", one.clipped)
        losses.add("boxes", "without area, or outside of their image: left out", one.dropped)
        losses.add("objects", "of classes that were not asked for: left out", one.other)
        if keeps_outlines and one.outlines and one.images.has_segmentations:
            shapes = sum(one.outlines.values())
            outlines = (kept for record in one.images for kept in record.segmentations or ())
            kept = sum(outline is not None for outline in outlines)
            why = "no outline is known: the box around them is written"
            losses.add("objects that are no boxes", why, max(0, shapes - kept))
            continue
        for shape, count in one.outlines.items():
            losses.add(f"objects of shape {shape}", "the box around it is written", count)


def _unwritable(error: OSError, out: Path) -> UserError:
    reason = error.strerror or str(error)
    hints = {
        errno.ENOSPC: "free some space, or use --images link",
        errno.EDQUOT: "free some space, or use --images link",
        errno.ENAMETOOLONG: "name a folder with a shorter path",
    }
    hint = f": {hints[error.errno]}" if error.errno in hints else ""
    return UserError(f"cannot write {out}: {reason}; nothing was written{hint}")
