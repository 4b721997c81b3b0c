"""The interface of a format: how its folders are told from others, and how a split is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import ReadOptions


@dataclass(frozen=True)
class Format:
    """The functions that find and read one format.

    Attributes:
        looked_for: What a folder of this format has, for messages.
        looks_like: Whether a folder is of this format.
        has_split: Whether the data have a split of their own, without what the recipe may name.
        read: Reads a split.
        reads_file: Whether a file that a recipe names for a split is of this format; None where
            that cannot be told.
    """

    looked_for: str
    looks_like: Callable[[Path], bool]
    has_split: Callable[[DataConfig, Path, str], bool]
    read: Callable[[DataConfig, Path, str, ReadOptions], AnnotationSet]
    reads_file: Callable[[Path], bool] | None = None


def named_annotations(config: DataConfig, split: str) -> str | None:
    """Return the file that the recipe names for the annotations of a split, if any."""
    return {
        "train": config.train_annotations,
        "val": config.val_annotations,
        "test": config.test_annotations,
    }[split]


def named_images(config: DataConfig, root: Path, split: str) -> Path | None:
    """Return the folder that the recipe names for the images of a split, if any."""
    folders = {"train": config.train_images, "val": config.val_images, "test": config.test_images}
    named = folders[split]
    # Joining an absolute path gives that path.
    return root / named if named else None
