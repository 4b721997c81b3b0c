"""``rcnn-ext check``: everything that is wrong with a data set, in one report."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet, ImageRecord
from rcnn_ext.data.formats.registry import FORMATS, SPLITS, detect_format, has_split, open_split
from rcnn_ext.data.hub import check_stream, copy_split, open_stream, stream_splits
from rcnn_ext.data.images import load_image
from rcnn_ext.data.problems import Report
from rcnn_ext.data.statistics import channel_statistics
from rcnn_ext.errors import UserError
from rcnn_ext.files import write_json
from rcnn_ext.progress import tracked

# Images in the picture of a split.
_DRAWN = 12

EPILOG = """\
examples:
  rcnn-ext check VOCdevkit
  rcnn-ext check DATA --format csv data.csv.normalized=true
  rcnn-ext check DATA --recipe mine.yaml --pictures pictures/
  rcnn-ext check OWNER/NAME --format hf --split val

Each line of the report is FILE:LINE: error|warning: what is wrong. Errors stop training, or are
left out of it with data.on_error=skip; warnings are corrected, such as boxes cut to their image.
The exit code is 2 if there are errors (with --strict: or warnings), else 0.
"""


@dataclasses.dataclass(frozen=True)
class CheckedSplit:
    """The result of checking a split.

    Attributes:
        name: Its name.
        annotations: What is left of it; None if it cannot be read at all.
        report: What is wrong with it.
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
    """:func:`check_split` for ``format: hf``: reads and decodes every row, keeping none."""
    report = Report()
    try:
        annotations = check_stream(open_stream(config, root, split, classes), report)
    except UserError as error:
        if not report.errors():
            report.error(root, None, str(error))
        return CheckedSplit(split, None, report)
    return CheckedSplit(split, annotations, report)


def check_images(records: Sequence[ImageRecord], report: Report, workers: int = 2) -> None:
    """Read pictures from their first to their last byte, and reports those that cannot be used.

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
        # The picture is whole, so that it is its annotations that are wrong.
        file, line = record.origin or (record.path, None)
        return file, line, str(error)
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = EPILOG
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="folder of the data set")
    parser.add_argument("overrides", metavar="data.key=value", nargs="*", help="how to read it")
    parser.add_argument(
        "--format",
        choices=sorted((*FORMATS, "hf")),
        help="its format (default: what it looks like)",
    )
    parser.add_argument("--recipe", metavar="RECIPE", help="take the data section of this recipe")
    parser.add_argument("--split", choices=SPLITS, help="check this split only (default: all)")
    parser.add_argument("--strict", action="store_true", help="let warnings fail too")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report as JSON too")
    parser.add_argument(
        "--pictures", metavar="FOLDER", type=Path, help="draw the first images with their boxes"
    )
    parser.add_argument(
        "--mean-std", action="store_true", help="compute mean and deviation of the channels"
    )
    parser.add_argument(
        "--workers", metavar="N", type=int, default=2, help="threads that read (default: 2)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    config = _config(options)
    root: Path = options.dataset
    # A split cut from training would be read, and its problems named, twice.
    config = dataclasses.replace(config, val_fraction=0.0, test_fraction=0.0)
    streams = config.format == "hf"
    if streams and options.mean_std:
        raise UserError("--mean-std reads files, and data.format=hf has none")
    splits = [options.split] if options.split else _splits(config, root)
    if not splits:
        raise UserError(f"{root} has no split in the format {config.format}")
    print(f"{root}: format {config.format}")
    checked: list[CheckedSplit] = []
    classes = None
    for split in splits:
        if streams:
            one = check_stream_split(config, root, split, classes)
        else:
            one = check_split(config, root, split, classes, workers=options.workers)
        checked.append(one)
        if one.report.problems:
            print(one.report.text())
        if one.annotations is not None:
            print(f"{split}: {one.annotations.summary()}")
            if split == "train":
                classes = one.annotations.classes.names
            if options.pictures is not None:
                drawn = one.annotations
                picture = options.pictures / f"{split}.jpg"
                with tempfile.TemporaryDirectory() as folder:
                    if streams:
                        lenient = dataclasses.replace(config, on_error="skip")
                        stream = open_stream(lenient, root, split, classes)
                        drawn = copy_split(stream, Path(folder) / split, _DRAWN)
                    print(f"wrote {draw_split(drawn, picture)}")
    if options.mean_std:
        _print_statistics(checked, options.workers)
    errors = sum(len(one.report.errors()) for one in checked)
    warnings = sum(len(one.report.warnings()) for one in checked)
    print(f"{errors} errors, {warnings} warnings")
    if options.json is not None:
        write_json(options.json, _as_json(config, checked))
    return 2 if errors or (options.strict and warnings) else 0


def draw_split(annotations: AnnotationSet, path: Path, max_images: int = _DRAWN) -> Path:
    """Write one picture with the first images of a split and their boxes.

    Args:
        annotations: The split.
        path: The picture to write.
        max_images: How many images it shows; those that cannot be read are passed over.
    """
    from rcnn_ext.viz import contact_sheet, draw_boxes, save_picture

    pictures: list[Any] = []
    captions: list[str] = []
    for record in annotations.images:
        if len(pictures) == max_images:
            break
        try:
            picture = load_image(record.path, (record.width, record.height))
        except UserError:
            continue
        labels = record.labels.tolist()
        pictures.append(draw_boxes(picture, record.boxes, labels, annotations.classes))
        captions.append(record.path.name)
    if not pictures:
        raise UserError(f"{annotations.source} has no image that can be read")
    save_picture(contact_sheet(pictures, captions), path)
    return path


def _splits(config: DataConfig, root: Path) -> list[str]:
    """Return the splits that there are."""
    if config.format == "hf":
        return list(stream_splits(config, root))
    return [split for split in SPLITS if has_split(config, root, split)]


def _config(options: argparse.Namespace) -> DataConfig:
    from rcnn_ext.config import apply_override, load_recipe, recipe_from_dict

    if options.recipe is not None:
        config = load_recipe(options.recipe, options.overrides).data
        return dataclasses.replace(config, format=options.format) if options.format else config
    values: dict[str, Any] = {"data": {}}
    for override in options.overrides:
        apply_override(values, override)
    named = options.format or values["data"].get("format")
    values["data"]["format"] = named or detect_format(options.dataset)
    return recipe_from_dict(values).data


def _print_statistics(checked: Sequence[CheckedSplit], workers: int) -> None:
    annotations = next((one.annotations for one in checked if one.annotations is not None), None)
    if annotations is None:
        return
    mean, std = channel_statistics(annotations, workers=workers, skip_broken=True)
    shown = [", ".join(f"{value:.4f}" for value in values) for values in (mean, std)]
    print(f"model.image_mean=[{shown[0]}] model.image_std=[{shown[1]}]")


def _as_json(config: DataConfig, checked: Sequence[CheckedSplit]) -> dict[str, Any]:
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
