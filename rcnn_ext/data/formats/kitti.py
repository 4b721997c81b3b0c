"""KITTI's text files, one per picture: the class, the box in pixels, and the object in space.

https://www.cvlibs.net/datasets/kitti/eval_object.php
"""

from __future__ import annotations

from pathlib import Path

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.formats.format import Format, named_annotations, named_images
from rcnn_ext.data.formats.label_folders import (
    add_labeled,
    first_line,
    first_texts,
    has_pictures,
    pictures_in,
    report_unmatched,
)
from rcnn_ext.data.formats.split_names import SPLIT_NAMES, SPLITS
from rcnn_ext.data.text_files import read_lines
from rcnn_ext.errors import UserError

# Such a region may hold objects that nobody marked.
_IGNORED = "DontCare"

_LABELS = ("label_2", "labels", "labels_2", "label", "annotations")
_IMAGES = ("image_2", "images", "data", "image", "")


def is_kitti(path: Path) -> bool:
    """Return whether the first line of a file is one of KITTI's: a class and 14 or 15 numbers."""
    words = first_line(path).split()
    if len(words) not in (15, 16) or _number(words[0]) is not None:
        return False
    return all(_number(word) is not None for word in words[1:])


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _labels_in(folder: Path) -> Path | None:
    """Return the folder of the text files of a split."""
    for name in _LABELS:
        if any(map(is_kitti, first_texts(folder / name))):
            return folder / name
    return None


def _images_in(folder: Path) -> Path | None:
    return next((folder / name for name in _IMAGES if has_pictures(folder / name)), None)


def find_kitti(root: Path, split: str) -> tuple[Path, Path | None] | None:
    """Return the folders of the pictures and of the text files of a split, None if there is none.

    They are in ``training`` and ``testing``, or other folders named after splits; else those in the
    data folder are for training. A test split need not have text files.
    """
    for word in SPLIT_NAMES[split]:
        images, labels = _images_in(root / word), _labels_in(root / word)
        if images is not None and (labels is not None or (split == "test" and _is_divided(root))):
            return images, labels
    if split != "train" or _is_divided(root):
        return None
    images, labels = _images_in(root), _labels_in(root)
    return (images, labels) if images is not None and labels is not None else None


def _is_divided(root: Path) -> bool:
    words = (word for split in SPLITS for word in SPLIT_NAMES[split])
    return any(_labels_in(root / word) is not None for word in words)


def _read_split(config: DataConfig, root: Path, split: str, options: ReadOptions) -> AnnotationSet:
    named, images = named_annotations(config, split), named_images(config, root, split)
    found = find_kitti(root, split)
    labels = root / named if named else (found[1] if found is not None else None)
    if images is None:
        images = found[0] if found is not None else None
    if images is None or not images.is_dir():
        raise UserError(
            f"no KITTI pictures for {split} in {root}: looked for training/image_2 and "
            f"training/label_2; name folders with data.{split}_images=PATH and "
            f"data.{split}_annotations=PATH"
        )
    builder = SetBuilder(labels or images, options)
    pictures = pictures_in(images)
    files = [(labels or images) / f"{path.stem}.txt" for path in pictures]
    annotated = labels is not None and any(map(builder.exists, files))
    classes = options.classes or _classes(files, builder) if annotated else ()
    ignored: list[str] = []

    def parse(text: str, size: tuple[int, int], line: int) -> list[RawObject]:
        words = text.split()
        if len(words) not in (15, 16):
            raise ValueError(f"{len(words)} values; a line has a class and 14 or 15 numbers")
        values = [_number(word) for word in words[1:]]
        wrong = next((w for w, v in zip(words[1:], values, strict=True) if v is None), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} is not a number")
        truncated, x1, y1, x2, y2 = (values[index] or 0.0 for index in (0, 3, 4, 5, 6))
        box = (x1, y1, x2, y2)
        if words[0] == _IGNORED:
            ignored.append(text)
            # Detections there are neither right nor wrong, whatever their class.
            return [RawObject(box, name, line, crowd=True) for name in classes]
        return [RawObject(box, words[0], line, truncated=truncated > 0)]

    add_labeled(builder, pictures, files, parse, needs_size=False)
    if annotated:
        report_unmatched(builder, pictures, files, is_kitti)
    if ignored:
        builder.report.note(
            builder.source, None, f"{len(ignored)} regions {_IGNORED} are crowds of every class"
        )
    return builder.finish(annotated=annotated, looked_for=str(files[0]))


def _classes(files: list[Path], builder: SetBuilder) -> list[str]:
    """Return the classes that occur, sorted."""
    names: set[str] = set()
    for path in filter(builder.exists, files):
        try:
            lines = read_lines(path, builder.options.encoding)
        except UserError:
            # It is named when it is read for its objects.
            continue
        names.update(line.split()[0] for line in lines if line.strip())
    return sorted(names - {_IGNORED})


FORMAT = Format(
    "training/label_2 with KITTI's text files, and training/image_2",
    lambda root: any((find_kitti(root, split) or (None, None))[1] for split in SPLITS),
    lambda config, root, split: find_kitti(root, split) is not None,
    _read_split,
)
