"""Check a data set: collect all its problems in one report."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet, ImageRecord
from rcnn_ext.data.formats.registry import FORMATS, SPLITS, has_split, open_split
from rcnn_ext.data.hub import check_stream, open_stream, stream_splits
from rcnn_ext.data.images import ImageReader
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from rcnn_ext.progress import Progress

# What a check may show each picture that it has read to: its path in the annotations, its file's
# content (None: that of the path) and its pixels, RGB or a tensor [C, H, W].
See: TypeAlias = Callable[[Path, bytes | None, Image.Image | torch.Tensor], None]

# Pictures that wait for each thread that reads.
_AHEAD = 8


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
    seen: dict[Path, str] | None = None,
    see: See | None = None,
) -> CheckedSplit:
    """Read all annotations and all pictures of a split.

    Args:
        config: The data section of a recipe.
        root: The data folder.
        split: ``train``, ``val`` or ``test``.
        classes: The classes of training, if others would be a mistake.
        workers: Threads that read pictures.
        seen: The pictures of splits that were checked before, with the names of these; pictures
            that they share with this one are a warning, and those of this one are added.
        see: Called with each picture that is read, by several threads.
    """
    report = Report()
    try:
        annotations = open_split(config, root, split, classes, report)
    except UserError as error:
        _add_unless_named(report, root, error)
        return CheckedSplit(split, None, report)
    if split == "train" and len(annotations.images.boxes) == 0:
        report.error(
            annotations.source, None, f"no objects in any of {len(annotations)} images to train on"
        )
    if seen is not None:
        _warn_of_shared(annotations, split, report, seen)
    check_images(annotations.images, report, workers, annotations.reader, see)
    return CheckedSplit(split, annotations, report)


def _add_unless_named(report: Report, root: Path, error: UserError) -> None:
    """Add what stopped a reader, unless it only repeats problems that are in the report."""
    if not any(problem.message in str(error) for problem in report.errors()):
        report.error(root, None, str(error))


def _warn_of_shared(
    annotations: AnnotationSet, split: str, report: Report, seen: dict[Path, str]
) -> None:
    paths = list(annotations.images.paths())
    shared = [path for path in paths if path in seen]
    if shared:
        report.warning(
            annotations.source,
            None,
            f"{len(shared)} of the {len(annotations)} images for {split} are also for "
            f"{seen[shared[0]]}, the first is {shared[0]}",
        )
    seen.update((path, split) for path in paths if path not in seen)


def check_stream_split(
    config: DataConfig,
    root: Path,
    split: str,
    classes: Sequence[str] | None = None,
    see: See | None = None,
) -> CheckedSplit:
    """Read and decode every row of a streamed split (``format: hf``), keeping none.

    Args:
        config: The data section of a recipe.
        root: The name or the folder of the data set.
        split: ``train``, ``val`` or ``test``.
        classes: The classes of training, if others would be a mistake.
        see: Called with each picture that is decoded.
    """
    report = Report()
    try:
        annotations = check_stream(open_stream(config, root, split, classes), report, see)
    except UserError as error:
        _add_unless_named(report, root, error)
        return CheckedSplit(split, None, report)
    return CheckedSplit(split, annotations, report)


def check_images(
    records: Sequence[ImageRecord],
    report: Report,
    workers: int = 2,
    reader: ImageReader | None = None,
    see: See | None = None,
) -> None:
    """Read pictures from their first to their last byte, and report those that cannot be used.

    Args:
        records: The images.
        report: Where the problems go, in the order of the images.
        workers: Threads that read.
        reader: Reads the pictures; None reads them as RGB.
        see: Called with each picture that is read, by several threads.
    """
    reader = ImageReader() if reader is None else reader
    threads = max(1, workers)
    waiting: deque[Future[tuple[Path, int | None, str] | None]] = deque()
    problems = 0
    with (
        ThreadPoolExecutor(threads) as pool,
        Progress("Reading", len(records), "image") as progress,
    ):

        def finish_one() -> None:
            nonlocal problems
            problem = waiting.popleft().result()
            if problem is not None:
                problems += 1
                report.error(*problem)
            progress.advance(note=f"{problems} cannot be used" if problems else "")

        for record in records:
            # Few at a time, so that memory does not grow with the number of images.
            if len(waiting) == _AHEAD * threads:
                finish_one()
            waiting.append(pool.submit(_problem_of, record, reader, see))
        while waiting:
            finish_one()


def _problem_of(
    record: ImageRecord, reader: ImageReader, see: See | None
) -> tuple[Path, int | None, str] | None:
    # Without the detour over torch where the pixels are bytes.
    load: Callable[..., Image.Image | torch.Tensor] = reader.load_tensor
    if reader.channels == 3:
        load = reader.load_image
    try:
        picture = load(record.path, (record.width, record.height))
    except UserError as error:
        try:
            load(record.path)
        except UserError:
            return record.path, None, str(error)
        # The picture is whole, so its annotations are wrong.
        file, line = record.origin or (record.path, None)
        return file, line, str(error)
    if see is not None:
        see(record.path, None, picture)
    return None


def list_splits(config: DataConfig, root: Path) -> list[str]:
    """Return the names of the splits that a data set has.

    Raises:
        UserError: It has none.
    """
    if config.format == "hf":
        return list(stream_splits(config, root))
    found = [split for split in SPLITS if has_split(config, root, split)]
    if not found:
        looked_for = (
            "" if config.format == "auto" else f": looked for {FORMATS[config.format].looked_for}"
        )
        raise UserError(f"{root} has no split in the format {config.format}{looked_for}")
    return found


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
