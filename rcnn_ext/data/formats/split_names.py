"""The names by which files and folders tell which split they hold."""

from __future__ import annotations

import re
from pathlib import Path

SPLITS = ("train", "val", "test")

# The first is ours; tools write the others.
SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def splits_in_name(name: str) -> set[str]:
    """Return the splits that a name speaks of: ``val`` for ``instances_val2017``."""
    words = set(re.findall(r"[a-z]+", name.lower()))
    return {split for split, names in SPLIT_NAMES.items() if words & set(names)}


def split_of(name: str) -> str | None:
    """Return the split that a word names, in any case; None if it names none."""
    word = name.strip().lower()
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)


def split_folders(parent: Path, split: str) -> list[Path]:
    """Return the folders named after a split, such as ``train`` or ``train2017``.

    Args:
        parent: Where they are; need not exist.
        split: ``train``, ``val`` or ``test``.

    Returns:
        The folder with the split's plain name alone, by the first of its spellings that there is;
        else all with that name and a number, sorted.
    """
    for name in SPLIT_NAMES[split]:
        if (parent / name).is_dir():
            return [parent / name]
    if not parent.is_dir():
        return []
    names = "|".join(SPLIT_NAMES[split])
    numbered = re.compile(rf"({names})[-_]?[0-9]+")
    return sorted(p for p in parent.iterdir() if numbered.fullmatch(p.name.lower()) and p.is_dir())


def mixed_splits(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder`` that speak of splits, sorted."""
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if splits_in_name(p.name) and p.is_dir())
