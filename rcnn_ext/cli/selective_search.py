"""The command ``rcnn-ext selective-search``."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rcnn_ext import files
from rcnn_ext.cli.arguments import add_shard
from rcnn_ext.errors import UserError

if TYPE_CHECKING:
    from rcnn_ext.config.selective_search import SearchSettings

SUMMARY = "search a data set for object proposals"
EPILOG = """\
examples:
  rcnn-ext selective-search VOCdevkit/VOC2007 --out regions
  rcnn-ext selective-search VOCdevkit/VOC2007 --out regions --mode fast
  torchrun --nproc-per-node 4 -m rcnn_ext selective-search images/ --out regions
  rcnn-ext selective-search images/ --out regions --shard 2/4

Stop it at any time: run the command again to continue. Training reads the folder with
selective_search.folder=regions and equal settings.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext selective-search``."""
    from rcnn_ext.config.selective_search import BackendName, ModeName, SearchSettings

    defaults = SearchSettings()
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        type=Path,
        nargs="+",
        help="folders, with all images below them, or image files",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder of the regions"
    )
    parser.add_argument(
        "--mode",
        choices=get_args(ModeName),
        default=argparse.SUPPRESS,
        help="single: the selectivesearch package's regions; fast, quality: the paper's diversified"
        f" sets (default: {defaults.mode})",
    )
    parser.add_argument(
        "--scale",
        type=float,
        nargs="+",
        metavar="S",
        default=argparse.SUPPRESS,
        help="scale of the segmentation "
        + _defaults(lambda settings: " ".join(f"{scale:g}" for scale in settings.scales)),
    )
    parser.add_argument(
        "--sigma",
        type=float,
        default=argparse.SUPPRESS,
        help="sigma of the Gaussian smoothing, in pixels "
        + _defaults(lambda settings: f"{settings.smoothing_sigma:g}"),
    )
    parser.add_argument(
        "--min-size",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="pixels of the smallest segment "
        + _defaults(lambda settings: str(settings.resolved()["min_size"] or "the scale")),
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=argparse.SUPPRESS,
        help=f"seed of the random part of the order in fast and quality (default: {defaults.seed})",
    )
    parser.add_argument(
        "--backend",
        choices=get_args(BackendName),
        default=argparse.SUPPRESS,
        help=f"implementation of the search (default: {defaults.backend})",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="searches at a time (default: one per core)"
    )
    add_shard(parser)


def _defaults(shown: Callable[[SearchSettings], str]) -> str:
    """Return the default of an option in each mode, in parentheses, for its help."""
    from rcnn_ext.config.selective_search import ModeName, SearchSettings

    first, *others = (f"{mode}: {shown(SearchSettings(mode=mode))}" for mode in get_args(ModeName))
    return f"(default: {'; '.join([first.removeprefix('single: '), *others])})"


def run(args: argparse.Namespace) -> int:
    """Compute the proposals that are missing.

    Args:
        args: The options that :func:`add_arguments` declares.

    Returns:
        0.

    Raises:
        UserError: An option or a path is wrong; or an image could not be read or its regions not
            be written, after all others are done.
    """
    from rcnn_ext.config.selective_search import SearchSettings
    from rcnn_ext.data.images import find_images
    from rcnn_ext.distributed import Processes
    from rcnn_ext.selective_search.cache import ProposalCache
    from rcnn_ext.selective_search.precompute import precompute
    from rcnn_ext.shards import Shard

    shard = Shard.of(args.shard)
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers: expected at least 1, got {args.workers}")
    given = vars(args)
    names = [field.name for field in dataclasses.fields(SearchSettings)]
    try:
        settings = SearchSettings(**{name: given[name] for name in names if name in given})
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    images = [path for path, _ in find_images(args.dataset)]
    files.make_folder(args.out)  # now, not after the first search
    started = time.monotonic()
    cache = ProposalCache(args.out, settings)
    summary = precompute(images, cache, args.workers, processes=shard.processes)
    seconds = time.monotonic() - started
    done = f"{summary.computed} images searched in {seconds:.1f} s"
    if summary.computed:
        done += f", {summary.regions / summary.computed:,.0f} regions each"
    print(f"{done}; {summary.present} were there; {len(summary.broken)} could not be done")
    for line in summary.broken:
        print(f"  {line}")
    print(f"everything is in {args.out}")
    # torchrun ends all processes when one fails: none does before all are done.
    broken = Processes.from_environment().count_in_main(len(summary.broken))
    if broken:
        first = summary.broken[0] if summary.broken else "other processes name them"
        more = f" (and {broken - 1} more)" if broken > 1 else ""
        raise UserError(f"{first}{more}; the others are done")
    return 0
