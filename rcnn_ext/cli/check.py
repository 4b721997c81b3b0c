"""The command ``rcnn-ext check``."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcnn_ext.cli.arguments import add_data_source, data_config, positive_int
from rcnn_ext.errors import UserError, one_line

if TYPE_CHECKING:
    from rcnn_ext.config.data import DataConfig
    from rcnn_ext.data.annotations import AnnotationSet
    from rcnn_ext.data.check import CheckedSplit

SUMMARY = "list all errors of a data set, by file and line"
EPILOG = """\
examples:
  rcnn-ext check VOCdevkit
  rcnn-ext check DATA --format csv data.csv.normalized=true
  rcnn-ext check DATA --recipe mine.yaml --pictures pictures/
  rcnn-ext check DATA --report data.html
  rcnn-ext check OWNER/NAME --format hf --split val

Each line of the report is FILE:LINE: error|warning|note: MESSAGE. Errors stop training, or are
skipped with data.on_error=skip; warnings are corrected, such as boxes cut to their image; notes say
how data were understood.
The exit code is 2 if there are errors (with --strict: or warnings), else 0.
"""

# Images in the picture of a split.
_MAX_DRAWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext check``."""
    from rcnn_ext.data.formats.registry import FORMATS, SPLITS

    add_data_source(parser)
    parser.add_argument(
        "--format",
        choices=sorted((*FORMATS, "hf")),
        help="its format (default: detected)",
    )
    parser.add_argument("--split", choices=SPLITS, help="check this split only (default: all)")
    parser.add_argument("--strict", action="store_true", help="let warnings fail, too")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the report as JSON")
    parser.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        help="also write a page for people (HTML): numbers, charts, duplicates, suspicious boxes, "
        "pictures and suggested settings",
    )
    parser.add_argument(
        "--pictures", metavar="FOLDER", type=Path, help="draw the first images with their boxes"
    )
    parser.add_argument(
        "--mean-std",
        action="store_true",
        help="compute mean and standard deviation of the channels",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=positive_int,
        default=2,
        help="threads that read (default: 2)",
    )


def run(options: argparse.Namespace) -> int:
    """Check a data set and print its problems.

    Args:
        options: The options that :func:`add_arguments` declares.

    Returns:
        0, or 2 where there are errors (with ``--strict``: or warnings).

    Raises:
        UserError: An option is wrong, or there is no such data set.
    """
    from rcnn_ext.cli.data_report import SplitWatcher, print_measures, print_suggestions, write
    from rcnn_ext.data import check
    from rcnn_ext.files import write_json

    config, root = _source(options)
    # Otherwise a split cut from training would be read, and its problems listed, twice.
    config = dataclasses.replace(config, val_fraction=0.0, test_fraction=0.0)
    streams = config.format == "hf"
    if streams and options.mean_std:
        raise UserError("--mean-std reads files, and data.format=hf has none")
    splits = [options.split] if options.split else check.list_splits(config, root)
    if not splits:
        raise UserError(f"{root} has no split in the format {config.format}")
    if root != options.dataset:
        print(f"{options.dataset}: unpacked to {root}")
    print(f"{root}: format {config.format}")
    checked: list[check.CheckedSplit] = []
    seen: dict[Path, str] = {}
    classes = None
    watchers: list[SplitWatcher] = []
    for split in splits:
        watcher = SplitWatcher(streams=streams)
        watchers.append(watcher)
        see = watcher.see if options.report is not None else None
        if streams:
            one = check.check_stream_split(config, root, split, classes, see)
        else:
            one = check.check_split(
                config, root, split, classes, workers=options.workers, seen=seen, see=see
            )
        checked.append(one)
        if one.report.problems:
            print(one.report.text())
        if one.annotations is not None:
            print(one_line(f"{split}: {one.annotations.summary()}"))
            print_measures(split, one.annotations)
            if split == "train":
                classes = one.annotations.classes.names
            if options.pictures is not None:
                picture = options.pictures / f"{split}.jpg"
                if streams:
                    _draw_stream_split(config, root, split, classes, picture)
                else:
                    _draw_split(one.annotations, picture)
                print(f"wrote {picture}")
    if options.mean_std:
        _print_statistics(checked, options.workers)
    suggestions = print_suggestions(checked, options, stream=streams)
    if options.report is not None:
        write(options, root, config.format, checked, watchers, suggestions)
    errors = sum(len(one.report.errors()) for one in checked)
    warnings = sum(len(one.report.warnings()) for one in checked)
    print(f"{errors} errors, {warnings} warnings")
    if options.json is not None:
        write_json(options.json, check.as_json(config, checked))
    return 2 if errors or (options.strict and warnings) else 0


def _source(options: argparse.Namespace) -> tuple[DataConfig, Path]:
    """Return how the data are read, and their folder."""
    from rcnn_ext.data.formats.registry import resolve_source

    config = data_config(options.recipe, options.overrides, options.format)
    return resolve_source(config, options.dataset, options.split or "train")


def _draw_split(annotations: AnnotationSet, path: Path) -> None:
    """Write one picture with the first readable images of a split and their boxes.

    Raises:
        UserError: No image can be read.
    """
    from rcnn_ext.viz import contact_sheet, draw_boxes, save_picture

    pictures: list[Any] = []
    captions: list[str] = []
    for record in annotations.images:
        if len(pictures) == _MAX_DRAWN:
            break
        try:
            picture = annotations.reader.load_image(record.path, (record.width, record.height))
        except UserError:
            continue
        labels = record.labels.tolist()
        pictures.append(draw_boxes(picture, record.boxes, labels, annotations.classes))
        captions.append(record.path.name)
    if not pictures:
        raise UserError(f"{annotations.source} has no image that can be read")
    save_picture(contact_sheet(pictures, captions), path)


def _draw_stream_split(
    config: DataConfig, root: Path, split: str, classes: Sequence[str] | None, path: Path
) -> None:
    """Write one picture with the first images of a streamed split and their boxes."""
    from rcnn_ext.data.hub import copy_split, open_stream

    lenient = dataclasses.replace(config, on_error="skip")
    with tempfile.TemporaryDirectory() as folder:
        stream = open_stream(lenient, root, split, classes)
        _draw_split(copy_split(stream, Path(folder) / split, _MAX_DRAWN), path)


def _print_statistics(checked: Sequence[CheckedSplit], workers: int) -> None:
    from rcnn_ext.data.statistics import channel_statistics

    annotations = next((one.annotations for one in checked if one.annotations is not None), None)
    if annotations is None:
        return
    mean, std = channel_statistics(annotations, workers=workers, skip_broken=True)
    shown = [", ".join(f"{value:.4f}" for value in values) for values in (mean, std)]
    print(f"model.image_mean=[{shown[0]}] model.image_std=[{shown[1]}]")
