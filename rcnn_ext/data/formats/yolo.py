"""Boxes from text files as YOLO tools write them: one file per image, one object per line.

A line is ``class cx cy w h`` in parts of the image's sides, or ``class x1 y1 x2 y2 x3 y3 ...`` for
an outline, of which the box around it is taken. An image without a file has no objects.
Layouts and ``data.yaml``: https://docs.ultralytics.com/datasets/detect/
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.images import IMAGE_SUFFIXES, image_size, numeric_ids
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError

_DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml")
_NAME_FILES = ("classes.txt", "obj.names", "labels.txt")


def find_yolo_split(root: Path, split: str) -> list[Path]:
    """Return the image folders, or lists of images, of a split.

    They are those that ``data.yaml`` names, or the usual ones.


    Raises:
        UserError: ``data.yaml`` cannot be read.
    """
    spellings = (split, "valid") if split == "val" else (split,)
    description = _description(root)
    if description is not None:
        base = root / str(description.get("path") or "")
        if not base.is_dir():
            # Such files name absolute paths of the machine they were made on.
            base = root
        named = next((description[s] for s in spellings if description.get(s)), None)
        if named is not None:
            names = named if isinstance(named, list) else [named]
            # Some tools write the path as seen from a folder below.
            found = [(base / str(n), root / str(n).removeprefix("../")) for n in names]
            return [next((p for p in pair if p.exists()), pair[0]) for pair in found]
    for name in spellings:
        for candidate in (root / "images" / name, root / name / "images", root / f"{name}.txt"):
            if candidate.exists():
                return [candidate]
    if split == "train" and (root / "labels").is_dir() and (root / "images").is_dir():
        return [root / "images"]
    return []


def yolo_names(root: Path) -> list[str] | None:
    """Return the names of the classes in ``data.yaml``, ``classes.txt`` or ``obj.names``.

    Raises:
        UserError: A file is there but wrong.
    """
    description = _description(root)
    names = description.get("names") if description is not None else None
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{root}: the names in data.yaml must be numbered 0, 1, 2, ...")
        names = [names[index] for index in range(len(names))]
    if isinstance(names, list):
        return [str(name) for name in names]
    for folder in (root, root / "labels"):
        for name in _NAME_FILES:
            if (folder / name).is_file():
                text = (folder / name).read_text(encoding="utf-8")
                return [line.strip() for line in text.splitlines() if line.strip()]
    return None


def read_yolo(
    root: Path,
    split: str = "train",
    *,
    images: Sequence[Path] | None = None,
    classes: Sequence[str] | None = None,
    report: Report | None = None,
) -> AnnotationSet:
    """Read a split.

    Args:
        root: The folder of the data set.
        split: ``train``, ``val`` or ``test``.
        images: Folders or lists of its images; None looks for them.
        classes: Names of the classes to learn; objects of others are left out. None takes all, in
            the order of their numbers. Where nothing names them they are called by their numbers.
        report: Where problems go; broken images are then left out. None raises for errors.

    Raises:
        UserError: Files are missing or wrong; what and where is named.
    """
    return read_yolo_with(root, split, images, ReadOptions(classes, report=report))


def read_yolo_with(
    root: Path, split: str, images: Sequence[Path] | None, options: ReadOptions
) -> AnnotationSet:
    """:func:`read_yolo` with the options that all formats share."""
    sources = list(images) if images is not None else find_yolo_split(root, split)
    if not sources:
        raise UserError(
            f"no images for {split} in {root}: looked for data.yaml, images/{split}, "
            f"{split}/images and {split}.txt"
        )
    files = [path for source in sources for path in _images_of(source)]
    if not files:
        raise UserError(f"{', '.join(map(str, sources))} has no images")
    source = sources[0] if len(sources) == 1 else root
    builder = SetBuilder(source, options)
    names = yolo_names(root)
    if names is not None:
        if len(set(names)) != len(names):
            raise UserError(f"{root}: a class is named twice among {', '.join(names)}")
        builder.declare([(name, index) for index, name in enumerate(names)])
    labels = [_label_file(path) for path in files]
    annotated = any(builder.exists(label) for label in labels)
    ids = numeric_ids([path.stem for path in files])
    for image_id, path, label in zip(ids, files, labels, strict=True):
        _add(builder, image_id, path, label, names)
    return builder.finish(annotated=annotated)


def _description(root: Path) -> dict[str, Any] | None:
    path = next((root / name for name in _DESCRIPTIONS if (root / name).is_file()), None)
    if path is None:
        return None
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} has no keys")
    return content


def _images_of(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from error
    return [source.parent / line.strip() for line in lines if line.strip()]


def _label_file(image: Path) -> Path:
    """Return the text file of an image: ``labels`` for the last ``images`` in its path."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _add(
    builder: SetBuilder, image_id: int, path: Path, label: Path, names: list[str] | None
) -> None:
    size, problem = None, ""
    if builder.exists(path):
        try:
            size = image_size(path)
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
    return label.read_text(encoding="utf-8", errors="replace").splitlines()


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
