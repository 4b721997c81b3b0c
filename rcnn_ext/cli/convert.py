"""``rcnn-ext convert``: write a data set in another format."""

from __future__ import annotations

import argparse

from rcnn_ext.cli.arguments import add_data_source, data_config

SUMMARY = "write a data set in another format: COCO, VOC, YOLO or CSV"
EPILOG = """\
examples:
  rcnn-ext convert VOCdevkit voc_as_yolo --format yolo
  rcnn-ext convert export.zip data --format coco --images link
  rcnn-ext convert DATA OUT --format voc --split val data.on_error=skip

All splits are read as rcnn-ext check reads them, and OUT appears whole or not at all. At the end it
says what the new format has no place for, with counts. Boxes read back as the same values; they and
the sizes are in pixels of the upright pictures, which are copied byte for byte.
"""

# Warnings that are printed; the others are counted.
_MAX_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext convert``."""
    from rcnn_ext.data.conversion import TARGETS
    from rcnn_ext.data.formats.registry import FORMATS, SPLITS

    add_data_source(parser, "OUT")
    parser.add_argument(
        "--format", required=True, choices=sorted(TARGETS), help="the format to write"
    )
    parser.add_argument(
        "--from",
        dest="read_format",
        choices=sorted((*FORMATS, "hf")),
        help="the format to read (default: detected)",
    )
    parser.add_argument("--split", choices=SPLITS, help="convert this split only (default: all)")
    parser.add_argument(
        "--images",
        choices=("copy", "link", "none"),
        default="copy",
        help="what pictures become: copies (default); hard links; or none: they are named where "
        "they are by absolute paths (coco, csv) or symbolic links (voc, yolo)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace all that OUT holds, if anything"
    )


def run(options: argparse.Namespace) -> int:
    """Convert a data set, and print what was written and what could not be kept.

    Args:
        options: The options that :func:`add_arguments` declares.

    Returns:
        0.

    Raises:
        UserError: An option is wrong, the data are, or OUT cannot be written.
    """
    from rcnn_ext.data import convert

    config = data_config(options.recipe, options.overrides, options.read_format)
    result = convert(
        options.dataset,
        options.out,
        options.format,
        config=config,
        splits=[options.split] if options.split else None,
        images=options.images,
        overwrite=options.overwrite,
    )
    print(f"{options.dataset}: format {result.read_format}")
    warnings = [problem for problem in result.problems if problem.severity != "note"]
    for problem in warnings[:_MAX_SHOWN]:
        print(problem)
    if len(warnings) > _MAX_SHOWN:
        print(f"and {len(warnings) - _MAX_SHOWN} more (rcnn-ext check lists all)")
    for sentence in result.not_kept:
        print(f"not kept: {sentence}")
    print(f"wrote {result.summary()}")
    if options.images == "none" and options.format in ("coco", "csv"):
        print("its pictures are outside of it: read it with data.allow_outside=true")
    return 0
