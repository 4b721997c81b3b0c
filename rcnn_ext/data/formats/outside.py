"""Pictures outside of the data folder, which names with ``..`` and absolute paths lead to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.problems import Report


def note_outside(annotations: AnnotationSet, folders: Sequence[Path], report: Report) -> None:
    """Note how many pictures lie in none of some folders, and the first of them.

    Links are not followed: where one within a folder leads is its owner's affair.

    Args:
        annotations: The images.
        folders: The data folder, and those that the recipe names.
        report: Where the note goes.
    """
    inside = tuple(os.path.join(os.path.abspath(folder), "") for folder in folders)
    known: dict[str, bool] = {}
    count, first = 0, None
    for path in annotations.images.paths():
        folder = os.path.dirname(path)
        if folder not in known:
            known[folder] = os.path.join(os.path.abspath(folder), "").startswith(inside)
        if not known[folder]:
            count += 1
            first = first or path
    if count:
        pictures = "1 picture lies" if count == 1 else f"{count} pictures lie"
        report.note(
            annotations.source,
            None,
            f"{pictures} outside of the data folder {folders[0]}, the first is {first}",
        )
