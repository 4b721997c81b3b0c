"""VisDrone's text files, one per picture: the box in pixels, a flag, the class and two degrees.

https://github.com/VisDrone/VisDrone2018-DET-toolkit
"""

from __future__ import annotations

import re
from pathlib import Path

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.formats.format import Format, named_annotations, named_images
from rcnn_ext.data.formats.label_folders import (
    add_labeled,
    first_line,
    first_texts,
    pictures_in,
    report_unmatched,
)
from rcnn_ext.data.formats.split_names import SPLITS, splits_in_name
from rcnn_ext.errors import UserError

# By category, from 1. Category 0 is an ignored region, and 11 is "others": neither is evaluated.
CLASSES = (
    *("pedestrian", "people", "bicycle", "car", "van"),
    *("truck", "tricycle", "awning-tricycle", "bus", "motor"),
)
_OTHERS = 11
_LINE = re.compile(r"(-?\d+,){7}-?\d+,?")


def _is_label(path: Path) -> bool:
    return _LINE.fullmatch(first_line(path).replace(" ", "")) is not None


def _is_annotated(folder: Path) -> bool:
    texts = first_texts(folder / "annotations")
    return (folder / "images").is_dir() and any(map(_is_label, texts))


def find_visdrone(root: Path, split: str) -> Path | None:
    """Return the folder with ``images`` and ``annotations`` of a split; None if there is none.

    It is called after the split, as ``VisDrone2019-DET-train``; else the data folder is for
    training. A test split need not have annotations.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    named = [path for path in folders if splits_in_name(path.name) == {split}]
    found = [path for path in named if _is_annotated(path)]
    if found:
        return found[0]
    divided = any(splits_in_name(path.name) and _is_annotated(path) for path in folders)
    if split == "test" and divided:
        return next((path for path in named if (path / "images").is_dir()), None)
    return root if split == "train" and not divided and _is_annotated(root) else None


def _read_split(config: DataConfig, root: Path, split: str, options: ReadOptions) -> AnnotationSet:
    named, folder = named_annotations(config, split), find_visdrone(root, split)
    images = named_images(config, root, split)
    if images is None and folder is not None:
        images = folder / "images"
    if images is None or not images.is_dir():
        raise UserError(
            f"no VisDrone pictures for {split} in {root}: looked for a folder such as "
            f"VisDrone2019-DET-{split} with images and annotations; name folders with "
            f"data.{split}_images=PATH and data.{split}_annotations=PATH"
        )
    labels = root / named if named else images.parent / "annotations"
    builder = SetBuilder(labels if labels.is_dir() else images, options)
    builder.declare([(name, number) for number, name in enumerate(CLASSES, start=1)])
    wanted = [name for name in CLASSES if options.classes is None or name in options.classes]
    pictures = pictures_in(images)
    files = [labels / f"{path.stem}.txt" for path in pictures]
    annotated = any(map(builder.exists, files))
    ignored: list[str] = []

    def parse(text: str, size: tuple[int, int], line: int) -> list[RawObject]:
        words = text.replace(" ", "").rstrip(",").split(",")
        if len(words) != 8:
            raise ValueError(
                f"{len(words)} values; a line has eight: left, top, width, height, score, "
                "category, truncation, occlusion"
            )
        wrong = next((word for word in words if not re.fullmatch(r"-?\d+", word)), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} is not a whole number")
        x, y, width, height = map(float, words[:4])
        box = (x, y, x + width, y + height)
        score, category, truncation = int(words[4]), int(words[5]), int(words[6])
        if not 0 <= category <= _OTHERS:
            raise ValueError(f"there is no category {category}; they are 0 to {_OTHERS}")
        if category in (0, _OTHERS):
            ignored.append(text)
            # Detections there are neither right nor wrong, whatever their class.
            return [RawObject(box, name, line, crowd=True) for name in wanted]
        name = CLASSES[category - 1]
        return [RawObject(box, name, line, crowd=score == 0, truncated=truncation > 0)]

    add_labeled(builder, pictures, files, parse, needs_size=False)
    if annotated:
        report_unmatched(builder, pictures, files, _is_label)
    if ignored:
        builder.report.note(
            builder.source,
            None,
            f"{len(ignored)} ignored regions and others (categories 0 and {_OTHERS}) are crowds of "
            "every class",
        )
    return builder.finish(annotated=annotated, looked_for=str(files[0] if files else labels))


FORMAT = Format(
    "folders such as VisDrone2019-DET-train with images and VisDrone's text files in annotations",
    lambda root: any(find_visdrone(root, split) is not None for split in SPLITS),
    lambda config, root, split: find_visdrone(root, split) is not None,
    _read_split,
)
