"""The numbers, suggestions and page that ``rcnn-ext check`` adds to its list of problems."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from rcnn_ext.config import load_recipe
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.check import CheckedSplit
from rcnn_ext.data_report import (
    Fingerprints,
    ReportedSplit,
    Suggestions,
    find_suspicious,
    measure,
    render_report,
    suggest_for,
)
from rcnn_ext.data_report.build import kinds_in, shared_between
from rcnn_ext.data_report.duplicates import Duplicate, find_duplicates
from rcnn_ext.data_report.samples import StreamThumbnails
from rcnn_ext.errors import UserError


class SplitWatcher:
    """Keeps of each picture that a check reads what the page needs.

    Args:
        streams: Whether the pictures are no files, so that thumbnails have to be kept, too.
    """

    def __init__(self, *, streams: bool) -> None:
        self.fingerprints = Fingerprints()
        self.thumbnails = StreamThumbnails() if streams else None

    def see(self, path: Path, content: bytes | None, picture: Image.Image | torch.Tensor) -> None:
        """Look at a picture; see :data:`rcnn_ext.data.check.See`."""
        self.fingerprints.see(path, content, picture)
        if self.thumbnails is not None and isinstance(picture, torch.Tensor):
            self.thumbnails.see(path, picture)


def print_measures(split: str, annotations: AnnotationSet) -> None:
    """Print sizes and suspicious boxes of a split, a line each."""
    print(f"{split}: {measure(split, annotations).short()}")
    found = find_suspicious(annotations.images)
    if found:
        kinds = ", ".join(f"{len(one.objects)} {one.kind}" for one in found)
        print(f"{split}: suspicious boxes: {kinds} (--report FILE lists them)")


def print_suggestions(
    checked: Sequence[CheckedSplit], options: argparse.Namespace, *, stream: bool
) -> Suggestions | None:
    """Print settings for training as overrides, and return them; None where there are none."""
    try:
        recipe = None if options.recipe is None else load_recipe(options.recipe, options.overrides)
        splits = [(one.name, one.annotations) for one in checked]
        found = suggest_for(splits, options.recipe, recipe, stream=stream)
    except UserError as error:
        print(f"no settings suggested: {error}")
        return None
    if found is not None:
        print(f"suggested for {found.recipe}: {found.pasted}")
        for line in found.advice:
            print(line)
    return found


def write(
    options: argparse.Namespace,
    root: Path,
    format_name: str,
    checked: Sequence[CheckedSplit],
    watchers: Sequence[SplitWatcher],
    suggestions: Suggestions | None,
) -> None:
    """Write the page, and warn of pictures that two splits share.

    Args:
        options: The options of the command.
        root: The data folder.
        format_name: Its format.
        checked: The splits; warnings are added to their reports.
        watchers: What was kept of each.
        suggestions: Settings for training, or None.
    """
    usable = [
        (one.name, one.annotations, watcher.fingerprints)
        for one, watcher in zip(checked, watchers, strict=True)
        if one.annotations is not None
    ]
    duplicates = find_duplicates([(found.images, prints) for _, found, prints in usable])
    names = [name for name, _, _ in usable]
    for name, other, found in shared_between(names, duplicates):
        if name != other:
            one = next(one for one in checked if one.name == name)
            _warn_of_leak(one, other, found, usable[found[0].other_split][1])
        else:
            print(f"{name}: {len(found)} pictures show the same as others: {kinds_in(found)}")
    overrides = [] if options.format is None else [f"data.format={options.format}"]
    reported = [
        ReportedSplit(
            one.name,
            one.annotations,
            one.report.problems,
            watcher.fingerprints,
            None if watcher.thumbnails is None else watcher.thumbnails.paths(),
        )
        for one, watcher in zip(checked, watchers, strict=True)
    ]
    overrides += options.overrides
    path: Path = options.report
    render_report(path, root, format_name, reported, duplicates, suggestions, overrides)
    print(f"wrote {path}")


def _warn_of_leak(
    split: CheckedSplit, other: str, found: Sequence[Duplicate], others: AnnotationSet
) -> None:
    assert split.annotations is not None
    images = split.annotations.images
    pairs = [(images[one.row].path, others.images[one.other_row].path) for one in found]
    # The check itself warns of files that both splits list.
    new = [index for index, (first, second) in enumerate(pairs) if first != second]
    if not new:
        return
    first, second = pairs[new[0]]
    source = split.annotations.source
    split.report.warning(
        source,
        None,
        f"{len(new)} of the {len(images)} pictures for {split.name} show the same as pictures for "
        f"{other} ({kinds_in([found[index] for index in new])}), the first is {first}, like "
        f"{second}: leave them out of one of the two, or {split.name} tells too good a result",
    )
    print(split.report.problems[-1])
