"""Where the annotation files of COCO-format data are."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

from rcnn_ext.data.formats.split_names import SPLIT_NAMES, SPLITS, splits_in_name
from rcnn_ext.errors import UserError

_SPLIT = re.compile(rb'"split"[ \t\r\n]*:[ \t\r\n]*"([A-Za-z]+)"')


def list_annotations(root: Path | str, split: str) -> list[Path]:
    """List the annotation files of a split, which should be one.

    ``instances_<split>*.json`` in ``root/annotations`` or ``root`` (COCO's own layout has a year
    after the split), ``<split>.json`` in the same places, or ``_annotations.coco.json`` in
    ``root/<split>`` (the layout of some annotation tools), or COCO files in ``root/annotations``
    or ``root`` that have the split in their names, such as ``lvis_v1_train.json``; the first of
    these that there is. For training, where there are none for any split, all COCO files in
    ``root/annotations``, or else in ``root``, whose names have no split in them; of these, for
    the other splits, those whose images name the split.

    Args:
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``.

    Raises:
        UserError: There is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist")
    found = _named_annotations(root, split)
    if found or any(_named_annotations(root, name) for name in SPLITS):
        return found
    unnamed = _unnamed_annotations(root)
    if split == "train":
        return unnamed
    return [path for path in unnamed if split in splits_within(path)]


def _unnamed_annotations(root: Path) -> list[Path]:
    for folder in (root / "annotations", root):
        unnamed = (path for path in folder.glob("*.json") if not splits_in_name(path.stem))
        found = sorted(path for path in unnamed if _has_coco_sections(path))
        if found:
            return found
    return []


def split_of(name: object) -> str:
    """Return the split that the ``split`` of an image's entry means; all but ours are training."""
    return next((ours for ours, names in SPLIT_NAMES.items() if name in names), "train")


def splits_within(path: Path) -> set[str]:
    """Return the splits of the images of one file, where it has several; else none.

    Some tools write one file, with ``"split": "val"`` and the like in the entries of images.
    """
    if not path.is_file():  # Opening a pipe would wait for its writer.
        return set()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            found = {match[1].decode() for match in _SPLIT.finditer(text)}
    except (OSError, ValueError):  # An empty file cannot be mapped.
        return set()
    splits = {split_of(name) for name in found}
    return splits if len(splits) > 1 else set()


def _named_annotations(root: Path, split: str) -> list[Path]:
    for spelling in SPLIT_NAMES[split]:
        patterns = (
            f"annotations/instances_{spelling}*.json",
            f"instances_{spelling}*.json",
            f"annotations/{spelling}.json",
            f"{spelling}.json",
            f"{spelling}/_annotations.coco.json",
            # Images of which nothing is known.
            f"annotations/image_info_{spelling}.json",
        )
        for pattern in patterns:
            found = sorted(root.glob(pattern))
            if found:
                return found
    # Others are called lvis_v1_train.json or bees-val.json.
    for folder in (root / "annotations", root):
        named = (path for path in folder.glob("*.json") if splits_in_name(path.stem) == {split})
        found = sorted(path for path in named if _has_coco_sections(path))
        if found:
            return found
    return []


def _has_coco_sections(path: Path) -> bool:
    """Return whether the words of a detection file are in it, without reading it as JSON."""
    if not path.is_file():  # Opening a pipe would wait for its writer.
        return False
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            sections = (b'"images"', b'"annotations"', b'"categories"')
            return all(text.find(section) >= 0 for section in sections)
    except (OSError, ValueError):  # An empty file cannot be mapped.
        return False


def find_annotations(root: Path | str, split: str) -> Path:
    """Find the annotation file of a split where :func:`list_annotations` looks.

    Raises:
        UserError: There is none, or there are several.
    """
    root = Path(root)
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
