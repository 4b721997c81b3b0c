"""COCO-format detection data.

Format: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import ReadOptions
from rcnn_ext.data.column_builder import ColumnBuilder, ImageColumns, ObjectColumns
from rcnn_ext.data.formats.coco_ids import Key, number_images
from rcnn_ext.data.formats.coco_layout import (
    find_annotations,
    list_annotations,
    split_of,
    splits_within,
)
from rcnn_ext.data.formats.coco_pictures import CocoPictureFinder, find_images_folder
from rcnn_ext.data.formats.coco_scan import Category, CocoColumns, scan_coco, shown
from rcnn_ext.data.formats.format import Format, named_annotations, named_images
from rcnn_ext.data.formats.split_names import SPLITS
from rcnn_ext.data.json_lists import JsonListPlaces
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError

__all__ = [
    "FORMAT",
    "find_annotations",
    "find_images_folder",
    "list_annotations",
    "read_coco",
    "read_coco_with",
]


def read_coco(
    annotations: Path | str,
    images: Path | str | None = None,
    *,
    root: Path | str | None = None,
    classes: Sequence[str] | None = None,
    missing_classes_ok: bool = False,
    report: Report | None = None,
    masks: bool = False,
) -> AnnotationSet:
    """Read an annotation file and check all of it.

    Args:
        annotations: The JSON file. Without a list ``annotations`` it describes images of which
            nothing is known, as COCO's ``image_info_test`` files do.
        images: Folder that its file names start from; None looks for it below ``root``.
        root: Folder of the data set; by default that of the annotation file.
        classes: Names of the classes, which get labels 1, 2, ... in this order; objects of other
            categories are left out. None takes all categories of the file, ordered by id, but
            for those that only group others.
        missing_classes_ok: Whether ``classes`` may name some that the file does not know: a
            validation file need not have all.
        report: Where problems go; broken images are then left out. None raises for errors.
        masks: Whether to keep the outlines and masks of objects: ``record.segmentations``.

    Returns:
        The images in the order of the file.

    Raises:
        UserError: The file is missing or wrong, or images are missing; what and where is named.
    """
    options = ReadOptions(classes, missing_classes_ok, report=report, masks=masks)
    folder, top = (None if given is None else Path(given) for given in (images, root))
    return read_coco_with(Path(annotations), folder, top, options)


def read_coco_with(
    annotations: Path,
    images: Path | None,
    root: Path | None,
    options: ReadOptions,
    split: str | None = None,
) -> AnnotationSet:
    """:func:`read_coco` with the options that all formats share.

    Args:
        annotations: See :func:`read_coco`.
        images: See :func:`read_coco`.
        root: See :func:`read_coco`.
        options: What the caller wants.
        split: The split whose images are wanted, where the file's entries name theirs; None: all.
    """
    builder = ColumnBuilder(annotations, options)
    report = builder.report
    places = JsonListPlaces(annotations, options.encoding)
    found = scan_coco(annotations, options.encoding, places, report, options.masks)
    annotated = "annotations" in found.sections or not annotations.stem.startswith("image_info")
    for section in ("images", "annotations", "categories") if annotated else ("images",):
        if section not in found.sections:
            raise UserError(f"{annotations} is not a COCO detection file: no list {section!r}")
    if not found.num_images:
        raise UserError(f"{annotations} lists no images")
    if annotated and not found.num_categories:
        report.error(annotations, None, "'categories' is empty")
    for _ in range(found.skipped):
        builder.skip()
    objects, broken = _checked_objects(found, annotations, places, report)
    wrong = found.objects.wrong_outlines
    if wrong:
        index, problem = next(iter(wrong.items()))
        count = (
            "" if len(wrong) == 1 else f"{len(wrong)} objects keep their boxes only; the first: "
        )
        message = f"{count}annotations[{index}]: its 'segmentation' {problem}"
        report.warning(annotations, places.line("annotations", index), message)
    if annotated:
        builder.declare([(one.name, one.key) for one in _classes(found, objects, builder)])
    if not found.names or (annotated and not found.categories):
        report.raise_if_errors(annotations)
    top = root or annotations.parent
    paths, missing = CocoPictureFinder(annotations, images, top, report).paths(found.names)
    ids, own_ids = number_images(found.image_rows)
    columns = ImageColumns(
        ids,
        own_ids,
        paths,
        missing,
        np.array(found.sizes, dtype=np.int64).reshape(-1, 2),
        broken,
        np.array([split is not None and split_of(own) != split for own in found.splits], bool),
        lambda row: places.line("images", found.indices[row]),
    )
    builder.add_columns(columns, objects)
    return builder.finish(annotated=annotated, looked_for=f"a list 'annotations' in {annotations}")


def _classes(found: CocoColumns, objects: ObjectColumns, builder: ColumnBuilder) -> list[Category]:
    """Return the categories that are classes, ordered by id, numbers before texts.

    Some tools list the name of the project, or of a group, as a category of its own, which no
    object can have: it is the supercategory of others, and no object is of it.
    """
    ordered = sorted(found.categories.values(), key=lambda one: (isinstance(one.key, str), one.key))
    position = {name: index for index, name in enumerate(objects.names)}
    used = np.bincount(objects.classes, minlength=len(objects.names)) > 0
    groups = {one.group for one in ordered if isinstance(one.group, str) and one.group != one.name}
    wanted = set(builder.options.classes or ())
    left_out = [
        one
        for one in ordered
        if one.name in groups and not used[position[one.name]] and one.name not in wanted
    ]
    if len(left_out) == len(ordered):
        return ordered
    if left_out:
        names = ", ".join(repr(one.name) for one in left_out[:_MAX_NAMED])
        more = f" and {len(left_out) - _MAX_NAMED} more" if len(left_out) > _MAX_NAMED else ""
        builder.report.note(
            builder.source,
            None,
            f"no class: {names}{more}, the supercategory of others that no object is of",
        )
    names_left_out = {one.name for one in left_out}
    return [one for one in ordered if one.name not in names_left_out]


# How many of the categories that are no classes a message names.
_MAX_NAMED = 3


def _checked_objects(
    found: CocoColumns, path: Path, places: JsonListPlaces, report: Report
) -> tuple[ObjectColumns, np.ndarray]:
    """Report objects that cannot be used, and return the others.

    Returns:
        The objects, and which images have a broken one, bool [M].
    """
    objects = found.objects
    category_rows: dict[Key, int] = {key: row for row, key in enumerate(found.categories)}
    images = objects.image_ids.rows_in(found.image_rows)
    classes = objects.category_ids.rows_in(category_rows)
    problems = dict.fromkeys(objects.own_ids.repeated().tolist(), "")
    problems |= dict.fromkeys(np.flatnonzero((images < 0) | (classes < 0)).tolist(), "")
    problems |= objects.problems
    broken = np.zeros(len(found.names), dtype=bool)
    own = objects.own_ids.keys() if problems else []
    image_keys = objects.image_ids.keys() if problems else []
    category_keys = objects.category_ids.keys() if problems else []
    for index in sorted(problems):
        message = problems[index]
        if message == "is not an object":
            pass
        elif images[index] < 0:
            message = f"no image has the id {_shown_id(image_keys[index])}"
        elif classes[index] < 0:
            message = f"no category has the id {_shown_id(category_keys[index])}"
        elif not message:
            message = f"the id {_shown_id(own[index])} is used twice"
        line = places.line("annotations", index)
        report.error(path, line, f"{_called(index, own[index])}: {message}")
        if images[index] >= 0:
            broken[images[index]] = True
    good = np.ones(objects.count, dtype=bool)
    good[list(problems)] = False
    kept = np.flatnonzero(good)
    boxes = objects.take_boxes()
    boxes = boxes[kept] if problems else boxes
    boxes[:, 2:] += boxes[:, :2]
    outlines = objects.segmentations
    columns = ObjectColumns(
        images=images[kept],
        classes=classes[kept],
        names=[category.name for category in found.categories.values()],
        boxes=boxes,
        areas=objects.areas[kept],
        crowd=objects.crowd[kept],
        called=lambda place: _called(int(kept[place]), objects.own_ids.key(int(kept[place]))),
        line=lambda place: places.line("annotations", int(kept[place])),
        segmentations=[outlines[index] for index in kept.tolist()] if objects.masks else None,
    )
    return columns, broken


def _shown_id(key: Key | None) -> str:
    return "None" if key is None else shown(key)


def _called(index: int, own: Any) -> str:
    """Return how messages call an entry of ``annotations``."""
    return f"annotations[{index}]" + (f" (id {own})" if own is not None else "")


def _read_split(config: DataConfig, root: Path, split: str, options: ReadOptions) -> AnnotationSet:
    named = named_annotations(config, split)
    path = root / named if named else find_annotations(root, split)
    own = split if splits_within(path) else None
    return read_coco_with(path, named_images(config, root, split), root, options, own)


FORMAT = Format(
    "instances_train*.json, train.json, train/_annotations.coco.json or a single COCO file",
    lambda root: any(list_annotations(root, split) for split in SPLITS),
    lambda config, root, split: bool(list_annotations(root, split)),
    _read_split,
)
