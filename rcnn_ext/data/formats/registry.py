"""The formats of detection data by name, and the splits of a data folder.

:func:`open_split` is the one way from the data section of a recipe to annotated images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rcnn_ext.config.data import DataConfig, FormatName
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.archives import unpacked
from rcnn_ext.data.builder import ReadOptions
from rcnn_ext.data.formats.folder_tree import unreadable_folders
from rcnn_ext.data.formats.format import Format, named_annotations, named_images
from rcnn_ext.data.formats.outside import leave_out_outside
from rcnn_ext.data.formats.split_names import SPLITS
from rcnn_ext.data.formats.table import FORMATS
from rcnn_ext.data.formats.unknown import first_file, unknown_format
from rcnn_ext.data.images import ImageReader
from rcnn_ext.data.partition import one_object_each, partition
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError

__all__ = [
    "FORMATS",
    "SPLITS",
    "Format",
    "detect_format",
    "has_split",
    "named_annotations",
    "open_split",
    "resolve_format",
    "resolve_source",
]


def open_split(
    config: DataConfig,
    root: Path | str,
    split: str,
    classes: Sequence[str] | None = None,
    report: Report | None = None,
) -> AnnotationSet:
    """Read the annotations of a split.

    A split that the data do not have themselves is cut from the training images where
    ``config.val_fraction`` or ``config.test_fraction`` says so, which are then less by as many.

    Args:
        config: The data section of a recipe. With ``format: synthetic`` a data folder that is empty
            or missing is filled first.
        root: The data folder.
        split: ``train``, ``val`` or ``test``.
        classes: Names of the classes of a detector, some of which the split need not have; None
            takes what ``config`` says.
        report: Where problems go; broken images are then left out, whatever ``config.on_error``
            says.

    Returns:
        The images. ``annotated`` is false where the data only list them, as test sets may, and
        only these.

    Raises:
        UserError: The split does not exist, or files are missing or wrong.
    """
    with _named_errors(root):
        return _open_split(config, root, split, classes, report)


def _open_split(
    config: DataConfig,
    root: Path | str,
    split: str,
    classes: Sequence[str] | None,
    report: Report | None,
) -> AnnotationSet:
    config, root = resolve_source(config, root, split)
    if not root.exists() and config.format != "synthetic":
        raise UserError(f"the data folder {root} does not exist")
    kind = _format(config.format)
    fractions = _cut_fractions(config, root)
    own = named_annotations(config, split) is not None or kind.has_split(config, root, split)
    if not own and split not in fractions and split != "train":
        raise UserError(
            f"{root} has no {split} split; name one with data.{split}_annotations, or set part of "
            f"the training images aside with data.{split}_fraction"
        )
    found = Report() if report is None else report
    options = ReadOptions(
        classes=config.classes if classes is None else classes,
        missing_classes_ok=classes is not None,
        other_classes=config.other_classes,
        report=found,
        lines=report is not None,
        require_annotations=split != "test" or not own,
        encoding=config.encoding,
        masks=config.masks or (split == "train" and config.augment.copy_paste > 0),
        reader=ImageReader.of(config),
    )
    if not own and not kind.looks_like(root) and config.format != "synthetic":
        _hint_at_other_format(config.format, root)
    _report_unreadable(root, found)
    annotations = kind.read(config, root, split if own else "train", options)
    annotations = leave_out_outside(
        annotations, _folders_of(config, root, split), found, allowed=config.allow_outside
    )
    if config.objects != "many" and annotations.annotated:
        largest = config.objects == "largest"
        annotations = one_object_each(annotations, found, largest=largest)
    if report is None and config.on_error == "stop":
        advice = "; data.on_error=skip leaves out what is broken"
        found.raise_if_errors(annotations.source, advice)
    if not annotations.images:
        raise UserError(f"{annotations.source} has no images that can be used")
    if fractions and (split == "train" or not own):
        seed, stratify = config.split_seed, config.stratify
        annotations = partition(annotations, fractions, seed=seed, stratify=stratify)[split]
        if not annotations.images:
            raise UserError(f"{annotations.source} has too few images for a {split} split")
    max_images = config.max_train_images if split == "train" else None
    return dataclasses.replace(
        annotations, images=annotations.images[:max_images], problems=tuple(found.problems)
    )


def _report_unreadable(root: Path, report: Report) -> None:
    """Add an error for each folder that cannot be listed, as what it holds would be missed."""
    for folder, reason in unreadable_folders(root):
        report.error(folder, None, f"the folder cannot be read: {reason}; what is in it is missing")


def _folders_of(config: DataConfig, root: Path, split: str) -> list[Path]:
    """Return the folders that pictures of a split may be in, by what the recipe says."""
    images, named = named_images(config, root, split), named_annotations(config, split)
    folders = [root, *([images] if images is not None else [])]
    if named is not None:
        path = root / named
        folders.append(path.parent if path.is_file() else path)
    return folders


def has_split(config: DataConfig, root: Path | str, split: str) -> bool:
    """Return whether :func:`open_split` can give a split: named, found, or cut from training."""
    with _named_errors(root):
        config, root = resolve_source(config, root, split)
        named = named_annotations(config, split) is not None
        found = named or _format(config.format).has_split(config, root, split)
        return found or split in _cut_fractions(config, root)


@contextlib.contextmanager
def _named_errors(root: Path | str) -> Iterator[None]:
    """Name what the operating system refuses to read, wherever a format looks for files."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {error.filename or root}: {error.strerror}") from error


def resolve_source(
    config: DataConfig, root: Path | str, split: str = "train"
) -> tuple[DataConfig, Path]:
    """Unpack an archive that stands for the data folder, and replace ``format: auto``.

    Args:
        config: The data section of a recipe.
        root: The data folder, or an archive.
        split: The split that is wanted; see :func:`resolve_format`.

    Returns:
        The data section with the format of the data, and the data folder.

    Raises:
        UserError: The archive cannot be unpacked, or the folder does not exist or looks like no
            format.
    """
    root = unpacked(root, config.unpack_to)
    return resolve_format(config, root, split), root


def resolve_format(config: DataConfig, root: Path | str, split: str = "train") -> DataConfig:
    """Replace ``format: auto`` by the format of the data; other formats stay as they are.

    Args:
        config: The data section of a recipe.
        root: The data folder.
        split: The split that is wanted. Where the recipe names an annotation file for it, that
            decides; else the folder does, as in :func:`detect_format`.

    Raises:
        UserError: The folder does not exist, or looks like no format.
    """
    if config.format != "auto":
        return config
    named = named_annotations(config, split)
    found = _format_of_file(Path(root) / named) if named is not None else None
    return dataclasses.replace(config, format=found or detect_format(root))


def _format_of_file(path: Path) -> FormatName | None:
    """Return the format of an annotation file; None for what may be of several, as folders."""
    for name, kind in FORMATS.items():
        if kind.reads_file is not None and path.is_file() and kind.reads_file(path):
            return name
    by_suffix: dict[str, FormatName] = {".json": "coco", ".csv": "csv"}
    return by_suffix.get(path.suffix.lower())


def detect_format(root: Path | str) -> FormatName:
    """Return the format that a data folder looks like.

    Raises:
        UserError: It does not exist, or looks like none.
    """
    with _named_errors(root):
        return _detect_format(Path(root))


def _detect_format(root: Path) -> FormatName:
    if not root.is_dir():
        hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(root)) and not root.exists()
        hint = "; a name of the Hugging Face Hub needs data.format=hf" if hub else ""
        raise UserError(f"the data folder {root} does not exist{hint}")
    for name, kind in FORMATS.items():
        if kind.looks_like(root):
            return name
    if first_file(root, (".parquet",)) is not None:
        return "hf"
    raise unknown_format(root, FORMATS)


def _hint_at_other_format(name: FormatName, root: Path) -> None:
    """Stop where a folder has no data of the format that the recipe names, but of another."""
    other = next((other for other, kind in FORMATS.items() if kind.looks_like(root)), None)
    if other is not None:
        raise UserError(
            f"{root} has no data in the format {name}: looked for {FORMATS[name].looked_for}; it "
            f"looks like {other}: data.format={other}, or data.format=auto"
        )


def _format(name: FormatName) -> Format:
    if name not in FORMATS:
        raise UserError(
            f"data.format={name} is a stream, which train, eval and check read; this needs files"
        )
    return FORMATS[name]


def _cut_fractions(config: DataConfig, root: Path) -> dict[str, float]:
    """Return the splits cut from the training images, and their fractions of these."""
    has = _format(config.format).has_split
    wanted = {"val": config.val_fraction, "test": config.test_fraction}
    return {
        split: fraction
        for split, fraction in wanted.items()
        if fraction and named_annotations(config, split) is None and not has(config, root, split)
    }
