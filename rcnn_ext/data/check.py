"""Check a data set: collect all its problems in one report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet, ImageRecord
from rcnn_ext.data.formats.registry import SPLITS, has_split, open_split
from rcnn_ext.data.hub import check_stream, open_stream, stream_splits
from rcnn_ext.data.images import load_image
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from rcnn_ext.progress import tracked


@dataclasses.dataclass(frozen=True)
class CheckedSplit:
    """The result of checking a split.

    Attributes:
        name: Name of the split.
        annotations: Its usable annotations; None if it cannot be read at all.
        report: Its problems.
    """

    name: str
    annotations: AnnotationSet | None
    report: Report


def check_split(
    config: DataConfig,
    root: Path,
    split: str,
    classes: Sequence[str] | None = None,
    *,
    workers: int = 2,
) -> CheckedSplit:
    """Read all annotations and all pictures of a split.

    Args:
        config: The data section of a recipe.
        root: The data folder.
        split: ``train``, ``val`` or ``test``.
        classes: The classes of training, if others would be a mistake.
        workers: Threads that read pictures.
    """
    report = Report()
    try:
        annotations = open_split(config, root, split, classes, report)
    except UserError as error:
        if not report.errors():
            report.error(root, None, str(error))
        return CheckedSplit(split, None, report)
    check_images(annotations.images, report, workers)
    return CheckedSplit(split, annotations, report)


def check_stream_split(
    config: DataConfig, root: Path, split: str, classes: Sequence[str] | None = None
) -> CheckedSplit:
    """Read and decode every row of a streamed split (``format: hf``), keeping none.

    Args:
        config: The data section of a recipe.
        root: The name or the folder of the data set.
        split: ``train``, ``val`` or ``test``.
        classes: The classes of training, if others would be a mistake.
    """
    report = Report()
    try:
        annotations = check_stream(open_stream(config, root, split, classes), report)
    except UserError as error:
        if not report.errors():
            report.error(root, None, str(error))
        return CheckedSplit(split, None, report)
    return CheckedSplit(split, annotations, report)


def check_images(records: Sequence[ImageRecord], report: Report, workers: int = 2) -> None:
    """Read pictures from their first to their last byte, and report those that cannot be used.

    Args:
        records: The images.
        report: Where the problems go, in the order of the images.
        workers: Threads that read.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        found: Iterable[tuple[Path, int | None, str] | None] = pool.map(_problem_of, records)
        for problem in tracked(found, "Reading", len(records)):
            if problem is not None:
                report.error(*problem)


def _problem_of(record: ImageRecord) -> tuple[Path, int | None, str] | None:
    try:
        load_image(record.path, (record.width, record.height))
    except UserError as error:
        try:
            load_image(record.path)
        except UserError:
            return record.path, None, str(error)
        # The picture is whole, so its annotations are wrong.
        file, line = record.origin or (record.path, None)
        return file, line, str(error)
    return None


def list_splits(config: DataConfig, root: Path) -> list[str]:
    """Return the names of the splits that a data set has."""
    if config.format == "hf":
        return list(stream_splits(config, root))
    return [split for split in SPLITS if has_split(config, root, split)]


def as_json(config: DataConfig, checked: Sequence[CheckedSplit]) -> dict[str, Any]:
    """Return the report on all splits for JSON."""
    return {
        "format": config.format,
        "splits": {
            one.name: {
                "summary": one.annotations.summary() if one.annotations is not None else None,
                "problems": [
                    {**dataclasses.asdict(problem), "file": str(problem.file)}
                    for problem in one.report.problems
                ],
            }
            for one in checked
        },
    }
