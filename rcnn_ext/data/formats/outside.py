"""Pictures outside of the data folder, which names with ``..`` and absolute paths lead to."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.problems import Report


def is_inside(folder: Path | str, folders: Sequence[Path]) -> bool:
    """Return whether a folder is one of some folders or lies in one.

    Links are not followed: where one within a folder leads is its owner's affair.
    """
    inside = tuple(os.path.join(os.path.abspath(one), "") for one in folders)
    return os.path.join(os.path.abspath(folder), "").startswith(inside)


def leave_out_outside(
    annotations: AnnotationSet, folders: Sequence[Path], report: Report, *, allowed: bool
) -> AnnotationSet:
    """Leave out pictures that lie in none of some folders, unless they are allowed.

    Args:
        annotations: The images.
        folders: The data folder, and those that the recipe names.
        report: Where an error goes that counts them and names the first; if they are allowed, a
            note.
        allowed: Whether they are read.

    Returns:
        The images that are read.
    """
    known: dict[Path, bool] = {}
    outside = np.zeros(len(annotations), dtype=bool)
    first = None
    for index, path in enumerate(annotations.images.paths()):
        folder = path.parent
        if folder not in known:
            known[folder] = not is_inside(folder, folders)
        if known[folder]:
            outside[index] = True
            first = first or path
    if first is None:
        return annotations
    count = int(outside.sum())
    pictures = "1 picture lies" if count == 1 else f"{count} pictures lie"
    message = f"{pictures} outside of the data folder {folders[0]}, the first is {first}"
    if allowed:
        report.note(annotations.source, None, message)
        return annotations
    report.error(
        annotations.source,
        None,
        f"{message}: data.allow_outside=true reads them, where the data are trusted",
    )
    return dataclasses.replace(
        annotations,
        images=annotations.images.take(np.flatnonzero(~outside)),
        skipped=annotations.skipped + count,
    )
