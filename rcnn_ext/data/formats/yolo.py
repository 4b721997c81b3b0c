"""Boxes from text files as YOLO tools write them: one file per image, one object per line.

A line is ``class cx cy w h`` in parts of the image's sides, or ``class x1 y1 x2 y2 x3 y3 ...`` for
an outline, of which the box around it is taken. An image without a file has no objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rcnn_ext.config.data import DataConfig, YoloConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.formats.format import Format, named_annotations
from rcnn_ext.data.formats.yolo_layout import (
    describe_search,
    find_yolo_split,
    has_label_files,
    images_of,
    label_files,
    looks_like_yolo,
    yolo_names,
)
from rcnn_ext.data.images import numeric_ids
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
    description = config.description
    sources = list(images) if images is not None else find_yolo_split(root, split, description)
    if not sources:
        raise UserError(
            f"no images for {split} in {root}: {describe_search(root, split)}; name a folder or a "
            f"list with data.{split}_annotations=PATH"
        )
    if images is None and split == "train":
        _refuse_merged(root, sources, description)
    files = [path for source in sources for path in images_of(source)]
    if not files:
        raise UserError(f"{', '.join(map(str, sources))} has no images")
    source = sources[0] if len(sources) == 1 else root
    builder = SetBuilder(source, options)
    names = yolo_names(root, description)
    if names is not None:
        if len(set(names)) != len(names):
            raise UserError(f"{root}: a class is named twice among {', '.join(names)}")
        builder.declare([(name, index) for index, name in enumerate(names)])
    labels, beside = label_files(files)
    annotated = any(map(builder.exists, labels))
    if not annotated and any(map(builder.exists, beside)):
        labels, annotated = beside, True
    looked_for = " or ".join(dict.fromkeys((str(labels[0]), str(beside[0]))))
    # A test split may have none at all, but not some that fit no picture.
    folders = all(source.is_dir() for source in sources)
    misnamed = not annotated and folders and has_label_files(labels)
    ids = numeric_ids([path.stem for path in files])
    for image_id, path, label in zip(ids, files, labels, strict=True):
        _add(builder, image_id, path, label, names)
    return builder.finish(annotated=annotated, looked_for=looked_for, required=misnamed)


def _refuse_merged(root: Path, sources: Sequence[Path], description: str | None) -> None:
    """Stop where a folder of training images contains that of another split."""
    for split in ("val", "test"):
        for other in find_yolo_split(root, split, description):
            above = other.resolve().parents if other.is_dir() else ()
            around = next((source for source in sources if source.resolve() in above), None)
            if around is not None:
                raise UserError(
                    f"the training images {around} contain those for {split}, {other}: their "
                    "folders must be apart"
                )


def _add(
    builder: SetBuilder, image_id: int, path: Path, label: Path, names: list[str] | None
) -> None:
    size, problem = None, ""
    if builder.exists(path):
        try:
            size = builder.options.reader.image_size(path)
        except UserError as error:
            problem = str(error)
    if problem:
        builder.report.error(path, None, problem)
        builder.skip()
        return
    objects: list[RawObject] = []
    broken = False
    seen: dict[str, int] = {}
    present = size is not None and builder.exists(label)
    for number, text in enumerate(_lines(label) if present else [], start=1):
        text = " ".join(text.split())
        if not text:
            continue
        try:
            if text in seen:
                raise ValueError(f"repeats line {seen[text]}")
            assert size is not None
            objects.append(_object(text, number, size, names))
        except ValueError as error:
            builder.report.error(label, number, str(error))
            broken = True
        seen[text] = number
    builder.add(image_id, path, size, objects, (label if present else path, None), broken=broken)


def _lines(label: Path) -> list[str]:
    return label.read_text(encoding="utf-8-sig", errors="replace").splitlines()


def _object(text: str, number: int, size: tuple[int, int], names: list[str] | None) -> RawObject:
    words = text.split()
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise ValueError(f"{len(words)} values; a line is: class cx cy w h")
    try:
        index, values = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        raise ValueError(f"not numbers: {text!r}; a line is: class cx cy w h") from None
    if index < 0 or (names is not None and index >= len(names)):
        count = "" if names is None else f"; there are {len(names)}, from 0"
        raise ValueError(f"no class has the number {index}{count}")
    finite = [value for value in values if math.isfinite(value)]
    if max(finite, default=0) > 2:
        raise ValueError(
            f"{max(finite):g} is not a part of the image's side; coordinates are from 0 to 1"
        )
    if len(values) == 4:
        cx, cy, w, h = values
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    else:
        points = np.array(values).reshape(-1, 2)  # [P, 2] (x, y)
        corners = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
    width, height = size
    x1, y1, x2, y2 = corners
    return RawObject(
        (x1 * width, y1 * height, x2 * width, y2 * height),
        str(index) if names is None else names[index],
        number,
    )


def _read_split(config: DataConfig, root: Path, split: str, options: ReadOptions) -> AnnotationSet:
    named = named_annotations(config, split)
    images = [root / named] if named else None
    return read_yolo_with(root, split, images, config.yolo, options)


FORMAT = Format(
    "a YAML file with train: or val:, or pictures with text files in labels or beside them",
    looks_like_yolo,
    lambda config, root, split: bool(find_yolo_split(root, split, config.yolo.description)),
    _read_split,
)
