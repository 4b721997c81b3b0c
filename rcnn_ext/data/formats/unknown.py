"""What to say of a data folder that looks like no format."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rcnn_ext.config.data import FormatName
from rcnn_ext.data.archives import SUFFIXES as ARCHIVE_SUFFIXES
from rcnn_ext.data.formats.folder_tree import walk
from rcnn_ext.data.formats.format import Format
from rcnn_ext.errors import UserError

# Formats whose annotations have a suffix, the commonest first.
_NEAREST: dict[str, tuple[FormatName, ...]] = {
    ".json": ("coco", "labelme", "label_studio"),
    ".jsonl": ("imagefolder",),
    ".xml": ("voc", "cvat"),
    ".yaml": ("yolo",),
    ".yml": ("yolo",),
    ".txt": ("yolo", "kitti"),
    ".csv": ("csv",),
    ".tsv": ("csv",),
}
_MAX_SUFFIXES = 4
_MAX_NEAREST = 3


def unknown_format(root: Path, formats: Mapping[FormatName, Format]) -> UserError:
    """Return the error for a folder that looks like no format.

    It says which files the folder has, and what the nearest formats would have instead; or what
    to export instead of data that are known and not read.

    Args:
        root: The folder.
        formats: All formats by name.
    """
    known = _known_and_unread(root)
    if known is not None:
        return known
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for folder, files in walk(root):
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            counts[suffix] += 1
            first.setdefault(suffix, str((folder / name).relative_to(root)))
    choice = "name one with data.format=NAME (check: --format NAME)"
    if not counts:
        return UserError(f"{root} looks like none of the known formats: it has no files")
    # Annotations before pictures, which every format has.
    suffixes = sorted(counts, key=lambda one: (one not in _NEAREST, -counts[one]))[:_MAX_SUFFIXES]
    found = ", ".join(f"{counts[one]} {one or 'without a suffix'}" for one in suffixes)
    nearest = [name for one in suffixes for name in _NEAREST.get(one, ())]
    nearest = list(dict.fromkeys(nearest))[:_MAX_NEAREST]
    if not nearest:
        return UserError(
            f"{root} looks like none of the known formats: it has no annotations, only files such "
            f"as {first[suffixes[0]]} (by suffix: {found}); put the files of annotations into it, "
            f"or {choice}"
        )
    marks = "; ".join(f"{name}, which has {formats[name].looked_for}" for name in nearest)
    return UserError(
        f"{root} looks like none of the known formats: it has files such as {first[suffixes[0]]} "
        f"(by suffix: {found}). The nearest are {marks}; {choice}"
    )


def _known_and_unread(root: Path) -> UserError | None:
    records = first_file(root, (".tfrecord", ".tfrecords", ".record"))
    if records is not None:
        return UserError(
            f"{records} is a TFRecord file (TensorFlow), which is not read: export the data as "
            "COCO JSON, VOC XML or YOLO instead, which every tool that writes TFRecord has too"
        )
    tracks = _mot_file(root)
    if tracks is not None:
        return UserError(
            f"{tracks} is a MOTChallenge file (boxes by frame and track), which is not read: "
            "convert it to COCO JSON or YOLO instead; CVAT, for instance, imports MOT 1.1 and "
            "exports both"
        )
    archive = first_file(root, ARCHIVE_SUFFIXES)
    if archive is not None:
        return UserError(
            f"{root} has no annotations, but an archive: name {archive} in place of the folder"
        )
    return None


def _mot_file(root: Path) -> Path | None:
    """Return the first ``gt/gt.txt`` or ``det/det.txt`` below a folder."""
    for folder, files in walk(root):
        if folder.name in ("gt", "det") and f"{folder.name}.txt" in files:
            return folder / f"{folder.name}.txt"
    return None


def first_file(root: Path, suffixes: tuple[str, ...]) -> Path | None:
    """Return the first file below a folder with one of some suffixes, or numbered shards of it."""
    for folder, files in walk(root):
        for name in files:
            # Shards are called train.tfrecord-00000-of-00002.
            if re.sub(r"-\d+-of-\d+$", "", name.lower()).endswith(suffixes):
                return folder / name
    return None
