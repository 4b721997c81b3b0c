"""COCO-format detection data: finding the files of a folder, and reading them.

Format: https://cocodataset.org/#format-data. Segmentations are not read.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import read_json
from .annotations import AnnotationSet, ClassList, ImageRecord, clean_boxes
from .images import image_size

_MOST_PROBLEMS_SHOWN = 3


def list_annotations(root: Path, split: str) -> list[Path]:
    """Lists the annotation files of a split, which should be one.

    ``instances_<split>*.json`` in ``root/annotations`` or ``root`` (COCO's own layout has a year
    after the split), ``<split>.json`` in the same places, or ``_annotations.coco.json`` in
    ``root/<split>`` (the layout of some annotation tools); the first of these that there is.

    Args:
        root: Folder of the data set.
        split: ``train`` or ``val``.

    Raises:
        UserError: There is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist")
    spellings = (split, "valid") if split == "val" else (split,)
    for spelling in spellings:
        patterns = (
            f"annotations/instances_{spelling}*.json",
            f"instances_{spelling}*.json",
            f"annotations/{spelling}.json",
            f"{spelling}.json",
            f"{spelling}/_annotations.coco.json",
        )
        for pattern in patterns:
            found = sorted(root.glob(pattern))
            if found:
                return found
    return []


def find_annotations(root: Path, split: str) -> Path:
    """Finds the annotation file of a split where :func:`list_annotations` looks.

    Raises:
        UserError: There is none, or there are several.
    """
    found = list_annotations(root, split)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise UserError(
            f"{root} has several annotation files for {split}: {names}; "
            f"choose one with data.{split}_annotations=PATH"
        )
    raise UserError(
        f"no COCO annotation file for {split} in {root}: looked for "
        f"annotations/instances_{split}*.json, instances_{split}*.json, {split}.json and "
        f"{split}/_annotations.coco.json; name one with data.{split}_annotations=PATH"
    )


def find_images_folder(root: Path, annotations: Path, first_file: str) -> Path:
    """Finds the folder that the file names of an annotation file start from.

    Args:
        root: Folder of the data set.
        annotations: The annotation file.
        first_file: The file name of one of its images.

    Raises:
        UserError: No candidate holds that image.
    """
    stem = annotations.stem.removeprefix("instances_")
    split = stem.rstrip("0123456789")
    names = [stem, f"images/{stem}", split, f"images/{split}", "images", ""]
    candidates = [root / name for name in names] + [annotations.parent]
    for candidate in candidates:
        if (candidate / first_file).is_file():
            return candidate
    tried = ", ".join(dict.fromkeys(str(candidate) for candidate in candidates))
    raise UserError(
        f"the images of {annotations} are in none of {tried} (looked for {first_file}); name "
        "their folder with data.train_images=PATH or data.val_images=PATH"
    )


def read_coco(
    annotations: Path,
    images: Path | None = None,
    *,
    root: Path | None = None,
    classes: Sequence[str] | None = None,
    missing_classes_ok: bool = False,
) -> AnnotationSet:
    """Reads an annotation file and checks all of it.

    Args:
        annotations: The JSON file.
        images: Folder that its file names start from; None looks for it below ``root``.
        root: Folder of the data set; by default that of the annotation file.
        classes: Names of the classes, which get labels 1, 2, ... in this order; objects of other
            categories are left out. None takes all categories of the file, ordered by id.
        missing_classes_ok: Whether ``classes`` may name some that the file does not know: a
            validation file need not have all.

    Returns:
        The images in the order of the file.

    Raises:
        UserError: The file is missing or wrong, or images are missing; what and where is named.
    """
    document = read_json(annotations)
    if not isinstance(document, dict):
        raise UserError(f"{annotations} is not a COCO file: its top level is not an object")
    for section in ("images", "annotations", "categories"):
        if not isinstance(document.get(section), list):
            raise UserError(f"{annotations} is not a COCO detection file: no list {section!r}")
    if not document["images"]:
        raise UserError(f"{annotations} lists no images")

    problems: list[str] = []
    label_of = _labels_by_category(document["categories"], problems)
    entries = _images_by_id(document["images"], problems)
    _raise_if_any(problems, annotations)
    class_list, relabel = _choose_classes(
        document["categories"], classes, annotations, missing_classes_ok
    )
    objects = _objects_by_image(document["annotations"], entries, label_of, problems)
    _raise_if_any(problems, annotations)

    if images is None:
        first = document["images"][0]["file_name"]
        images = find_images_folder(root or annotations.parent, annotations, first)
    _require_files(images, [entry["file_name"] for entry in entries.values()], annotations)

    records = []
    clipped = dropped = other = 0
    for image_id, entry in entries.items():
        path = images / entry["file_name"]
        width, height = _size_of(entry, path)
        # Columns: x, y, width, height, area, label, crowd.
        rows = np.array(objects.get(image_id, []), dtype=np.float64).reshape(-1, 7)
        rows[:, 5] = relabel[rows[:, 5].astype(np.int64)]
        other += int((rows[:, 5] == 0).sum())
        rows = rows[rows[:, 5] > 0]
        corners = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)  # [N, 4]
        boxes, keep, cut = clean_boxes(corners, width, height)
        clipped += cut
        dropped += int((~keep).sum())
        records.append(
            ImageRecord(
                image_id=image_id,
                path=path,
                width=width,
                height=height,
                boxes=boxes[keep],
                labels=rows[keep, 5].astype(np.int64),
                areas=rows[keep, 4].astype(np.float32),
                crowd=rows[keep, 6] > 0,
            )
        )
    return AnnotationSet(annotations, class_list, tuple(records), clipped, dropped, other)


def _labels_by_category(categories: list[Any], problems: list[str]) -> dict[int, int]:
    """Labels from 1 by category id, in the order of the ids."""
    names: dict[int, str] = {}
    for index, category in enumerate(categories):
        if not isinstance(category, dict) or not _is_int(category.get("id")):
            problems.append(f"categories[{index}] has no integer 'id'")
        elif not isinstance(category.get("name"), str):
            problems.append(f"categories[{index}] (id {category['id']}) has no 'name'")
        elif category["id"] in names:
            problems.append(f"categories[{index}]: the id {category['id']} is used twice")
        elif category["name"] in names.values():
            problems.append(f"categories[{index}]: the name {category['name']!r} is used twice")
        else:
            names[category["id"]] = category["name"]
    if not categories:
        problems.append("'categories' is empty")
    return {category_id: label for label, category_id in enumerate(sorted(names), start=1)}


def _images_by_id(images: list[Any], problems: list[str]) -> dict[int, dict[str, Any]]:
    entries: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(images):
        if not isinstance(entry, dict) or not _is_int(entry.get("id")):
            problems.append(f"images[{index}] has no integer 'id'")
        elif not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
            problems.append(f"images[{index}] (id {entry['id']}) has no 'file_name'")
        elif entry["id"] in entries:
            problems.append(f"images[{index}]: the id {entry['id']} is used twice")
        else:
            entries[entry["id"]] = entry
    return entries


def _choose_classes(
    categories: list[dict[str, Any]],
    wanted: Sequence[str] | None,
    annotations: Path,
    missing_ok: bool,
) -> tuple[ClassList, np.ndarray]:
    """The classes, and the new label by the file's own label (0: leave out)."""
    ordered = sorted(categories, key=lambda category: category["id"])
    ids = {category["name"]: category["id"] for category in ordered}
    own_labels = {name: label for label, name in enumerate(ids, start=1)}
    names = tuple(ids if wanted is None else wanted)
    unknown = [name for name in names if name not in ids]
    if unknown and (not missing_ok or len(unknown) == len(names)):
        close = difflib.get_close_matches(unknown[0], ids, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(f"{annotations} has no class {unknown[0]!r}{hint}; it has {', '.join(ids)}")
    relabel = np.zeros(len(ids) + 1, dtype=np.int64)
    for label, name in enumerate(names, start=1):
        if name in own_labels:
            relabel[own_labels[name]] = label
    # A class that the file does not have needs an id that it does not use either.
    spare = iter(range(max(ids.values()) + 1, max(ids.values()) + 1 + len(unknown)))
    return ClassList(names, tuple(ids[n] if n in ids else next(spare) for n in names)), relabel


def _objects_by_image(
    annotations: list[Any],
    entries: dict[int, dict[str, Any]],
    label_of: dict[int, int],
    problems: list[str],
) -> dict[int, list[tuple[float, ...]]]:
    """The rows (x, y, width, height, area, label, crowd) of each image that has any."""
    rows: dict[int, list[tuple[float, ...]]] = {}
    for index, item in enumerate(annotations):
        where = f"annotations[{index}]"
        if not isinstance(item, dict):
            problems.append(f"{where} is not an object")
            continue
        where += f" (id {item['id']})" if "id" in item else ""
        box = item.get("bbox")
        if item.get("image_id") not in entries:
            problems.append(f"{where}: no image has the id {item.get('image_id')!r}")
        elif item.get("category_id") not in label_of:
            problems.append(f"{where}: no category has the id {item.get('category_id')!r}")
        elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            problems.append(f"{where}: 'bbox' is {box!r}, not four numbers x, y, width, height")
        else:
            area: Any = item.get("area")
            area = float(area) if _is_number(area) else abs(box[2] * box[3])
            label = label_of[item["category_id"]]
            crowd = 1.0 if item.get("iscrowd") else 0.0
            rows.setdefault(item["image_id"], []).append((*map(float, box), area, label, crowd))
    return rows


def _require_files(folder: Path, names: list[str], annotations: Path) -> None:
    """Checks that all files are there with one listing a folder: there may be 100,000 files."""
    listings: dict[Path, set[str]] = {}
    missing = []
    for name in names:
        path = folder / name
        if path.parent not in listings:
            present = path.parent.is_dir()
            listings[path.parent] = set(os.listdir(path.parent)) if present else set()
        if path.name not in listings[path.parent]:
            missing.append(name)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} images that {annotations} lists are not in {folder}, "
            f"the first is {missing[0]}"
        )


def _size_of(entry: dict[str, Any], path: Path) -> tuple[int, int]:
    width, height = entry.get("width"), entry.get("height")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return image_size(path)


def _raise_if_any(problems: list[str], annotations: Path) -> None:
    if not problems:
        return
    shown = "; ".join(problems[:_MOST_PROBLEMS_SHOWN])
    more = len(problems) - _MOST_PROBLEMS_SHOWN
    rest = f"; and {more} more" if more > 0 else ""
    raise UserError(f"{annotations}: {shown}{rest}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
