"""The images of a split, as the data section of a recipe says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ..data.annotations import AnnotationSet
from ..data.coco import find_annotations, list_annotations, read_coco
from ..data.synthetic import make_synthetic
from ..progress import tracked
from ..recipes.schema import DataConfig


def open_split(
    config: DataConfig,
    root: Path,
    split: str,
    classes: Sequence[str] | None = None,
) -> AnnotationSet:
    """Reads the annotations of a split.

    Args:
        config: The data section of a recipe. With ``format: synthetic`` a data folder that is empty
            or missing is filled first.
        root: The data folder.
        split: ``train`` or ``val``.
        classes: Names of the classes of a detector, some of which the split need not have; None
            takes what ``config`` says.

    Raises:
        UserError: Files are missing or wrong.
    """
    if config.format == "synthetic":
        images = config.synthetic.train + config.synthetic.val
        make_synthetic(root, config.synthetic, lambda items: tracked(items, "Drawing", images))
    named = {"train": config.train_annotations, "val": config.val_annotations}[split]
    folder = {"train": config.train_images, "val": config.val_images}[split]
    # Joining an absolute path gives that path.
    annotations = root / named if named else find_annotations(root, split)
    return read_coco(
        annotations,
        root / folder if folder else None,
        root=root,
        classes=config.classes if classes is None else classes,
        missing_classes_ok=classes is not None,
    )


def open_validation(config: DataConfig, root: Path, classes: Sequence[str]) -> AnnotationSet | None:
    """The validation split, or None where the data have none and the recipe names none.

    Raises:
        UserError: The recipe names one, or there is one, and it is wrong.
    """
    if config.val_annotations is None and not list_annotations(root, "val"):
        return None
    return open_split(config, root, "val", classes)


def first_images(annotations: AnnotationSet, most: int | None) -> AnnotationSet:
    """The first ``most`` images; None means all."""
    return dataclasses.replace(annotations, images=annotations.images[:most])
