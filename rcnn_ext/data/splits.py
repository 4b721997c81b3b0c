"""The images of a split, as the data section of a recipe says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rcnn_ext.config.data import DataConfig, HubConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.formats.registry import has_split, open_split, resolve_source
from rcnn_ext.data.hub import copy_split, open_stream, stream_splits
from rcnn_ext.errors import UserError

__all__ = [
    "first_images",
    "has_validation",
    "open_evaluation",
    "open_split",
]

# Where a run keeps the images of a stream that it is evaluated on.
STREAMED = "streamed"


def open_evaluation(
    config: DataConfig,
    root: Path,
    split: str,
    classes: Sequence[str],
    keep: Path,
    max_images: int | None = None,
) -> AnnotationSet:
    """Return the images of a split that a detector is evaluated on.

    Args:
        config: The data section of its recipe.
        root: The data folder, or an archive.
        split: ``train``, ``val`` or ``test``.
        classes: The classes of the detector.
        keep: Folder where the images of a stream are kept, in a folder named after the split; they
            are looked at again in every validation and for pictures.
        max_images: Maximum number of images, the first ones; None means all.

    Raises:
        UserError: The split does not exist, or something in it is wrong.
    """
    config, root = resolve_source(config, root, split)
    if config.format == "hf":
        return copy_split(open_stream(config, root, split, classes), keep / split, max_images)
    annotations = open_split(config, root, split, classes)
    if not annotations.annotated:
        raise UserError(
            f"{annotations.source} only lists images; an evaluation needs what is in them "
            f"(rcnn-ext detect finds objects in images of which nothing is known)"
        )
    return first_images(annotations, max_images)


def has_validation(config: DataConfig, root: Path) -> bool:
    """Return whether there are images for validation.

    They may be those of the data, set aside, or named by the recipe.
    """
    config, root = resolve_source(config, root, "val")
    if config.format == "hf":
        # A split that the recipe names and the data have not is to be an error.
        named = config.hf.val_split != HubConfig().val_split
        return named or "val" in stream_splits(config, root)
    return has_split(config, root, "val")


def first_images(annotations: AnnotationSet, max_images: int | None) -> AnnotationSet:
    """Return the first ``max_images`` images; None means all."""
    return dataclasses.replace(annotations, images=annotations.images[:max_images])
