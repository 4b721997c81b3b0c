"""The data that are converted: all splits, read as ``rcnn-ext check`` reads them."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.check import list_splits
from rcnn_ext.data.conversion.pictures import ImagesMode
from rcnn_ext.data.formats.registry import SPLITS, open_split, resolve_source
from rcnn_ext.data.hub import copy_split, open_stream
from rcnn_ext.errors import UserError


@dataclass(frozen=True)
class SourceData:
    """What is read.

    Attributes:
        config: How, with the format of the data.
        sets: The annotations by split.
    """

    config: DataConfig
    sets: dict[str, AnnotationSet]


@contextlib.contextmanager
def reading(
    config: DataConfig,
    root: Path,
    splits: Sequence[str] | None,
    out: Path,
    images: ImagesMode,
) -> Iterator[SourceData]:
    """Read a data set; the pictures of a stream exist as long as the block runs.

    Args:
        config: How to read it.
        root: The data folder, an archive, or a name of the Hub.
        splits: Names of the splits; None takes all.
        out: Where pictures go; those of a stream are kept beside it for a while.
        images: What pictures become.

    Yields:
        What is read.

    Raises:
        UserError: The data are missing or wrong, or have no such split.
    """
    for split in splits or ():
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    config, folder = resolve_source(config, root, splits[0] if splits else "train")
    # Outlines are read also where they cannot be kept, to be counted.
    config = dataclasses.replace(config, masks=True)
    names = list(dict.fromkeys(splits)) if splits else list_splits(config, folder)
    if config.format != "hf":
        yield SourceData(config, {split: open_split(config, folder, split) for split in names})
        return
    if images == "none":
        raise UserError(f"the pictures of {root} are in no files of their own: copy them")
    place = next(path for path in out.absolute().parents if path.is_dir())
    with tempfile.TemporaryDirectory(dir=place, prefix=".rcnn-ext-convert-") as kept:
        yield SourceData(
            config,
            {
                split: copy_split(open_stream(config, folder, split), Path(kept) / split)
                for split in names
            },
        )
