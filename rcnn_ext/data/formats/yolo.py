"""Boxes from text files as YOLO tools write them: one file per image, one object per line.

An image without a file has no objects. See :mod:`rcnn_ext.data.formats.yolo_lines` for the lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rcnn_ext.config.data import DataConfig, YoloConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.formats.format import Format, named_annotations
from rcnn_ext.data.formats.label_folders import add_labeled, report_unmatched
from rcnn_ext.data.formats.yolo_layout import (
    describe,
    describe_search,
    find_yolo_split,
    has_label_files,
    images_of,
    is_label_file,
    label_files,
    looks_like_yolo,
    yolo_names,
)
from rcnn_ext.data.formats.yolo_lines import keypoint_values, read_line
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError


def read_yolo(
    root: Path | str,
    split: str = "train",
    *,
    images: Sequence[Path | str] | None = None,
    config: YoloConfig | None = None,
    classes: Sequence[str] | None = None,
    report: Report | None = None,
) -> AnnotationSet:
    """Read a split.

    Args:
        root: The folder of the data set.
        split: ``train``, ``val`` or ``test``.
        images: Folders or lists of its images; None looks for them.
        config: How to read it.
        classes: Names of the classes to learn; objects of others are left out. None takes all, in
            the order of their numbers. Where nothing names them they are called by their numbers.
        report: Where problems go; broken images are then left out. None raises for errors.

    Raises:
        UserError: Files are missing or wrong; what and where is named.
    """
    given = None if images is None else [Path(source) for source in images]
    options = ReadOptions(classes, report=report)
    return read_yolo_with(Path(root), split, given, config or YoloConfig(), options)


def read_yolo_with(
    root: Path,
    split: str,
    images: Sequence[Path] | None,
    config: YoloConfig,
    options: ReadOptions,
) -> AnnotationSet:
    """:func:`read_yolo` with the options that all formats share."""
    description, encoding = config.description, options.encoding
    sources = (
        list(images) if images is not None else find_yolo_split(root, split, description, encoding)
    )
    if not sources:
        raise UserError(
            f"no images for {split} in {root}: {describe_search(root, split)}; name a folder or a "
            f"list with data.{split}_annotations=PATH"
        )
    if any("\0" in str(source) for source in sources):
        raise UserError(
            f"{root / description if description else root}: the path of the split {split} holds a "
            "zero character, as no path does; correct it"
        )
    if images is None and split == "train":
        _refuse_merged(root, sources, description, encoding)
    files = [path for source in sources for path in images_of(source, encoding)]
    if not files:
        raise UserError(f"{', '.join(map(str, sources))} has no images")
    source = sources[0] if len(sources) == 1 else root
    builder = SetBuilder(source, options)
    names = yolo_names(root, description, encoding)
    if names is not None:
        if len(set(names)) != len(names):
            raise UserError(f"{root}: a class is named twice among {', '.join(names)}")
        builder.declare([(name, index) for index, name in enumerate(names)])
    labels, beside = (
        [_with_suffix_as_there(builder, label) for label in each] for each in label_files(files)
    )
    annotated = any(map(builder.exists, labels))
    if not annotated and any(map(builder.exists, beside)):
        labels, annotated = beside, True
    looked_for = " or ".join(dict.fromkeys((str(labels[0]), str(beside[0]))))
    # A test split may have none at all, but not some that fit no picture.
    folders = all(source.is_dir() for source in sources)
    misnamed = not annotated and folders and has_label_files(labels)
    num_keypoint_values = keypoint_values(describe(root, description, encoding))

    def parse(text: str, size: tuple[int, int], line: int) -> list[RawObject]:
        return [read_line(text, line, size, names, num_keypoint_values)]

    add_labeled(builder, files, labels, parse, needs_size=True, repeats_break=True)
    if annotated:
        # The labels of pictures in a list may lie among those of others.
        is_label = is_label_file if folders else (lambda path: False)
        report_unmatched(builder, files, labels, is_label)
    return builder.finish(annotated=annotated, looked_for=looked_for, required=misnamed)


def _with_suffix_as_there(builder: SetBuilder, label: Path) -> Path:
    upper = label.with_suffix(".TXT")
    return upper if not builder.exists(label) and builder.exists(upper) else label


def _refuse_merged(
    root: Path, sources: Sequence[Path], description: str | None, encoding: str | None
) -> None:
    """Stop where a folder of training images contains that of another split."""
    for split in ("val", "test"):
        for other in find_yolo_split(root, split, description, encoding):
            above = other.resolve().parents if other.is_dir() else ()
            around = next((source for source in sources if source.resolve() in above), None)
            if around is not None:
                raise UserError(
                    f"the training images {around} contain those for {split}, {other}: their "
                    "folders must be apart"
                )


def _read_split(config: DataConfig, root: Path, split: str, options: ReadOptions) -> AnnotationSet:
    named = named_annotations(config, split)
    images = [root / named] if named else None
    return read_yolo_with(root, split, images, config.yolo, options)


FORMAT = Format(
    "a YAML file with train: or val:, or pictures with text files in labels or beside them",
    looks_like_yolo,
    lambda config, root, split: bool(
        find_yolo_split(root, split, config.yolo.description, config.encoding)
    ),
    _read_split,
)
