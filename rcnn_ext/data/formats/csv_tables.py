"""CSV files of a known kind, told by their header: finding those of a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.formats.csv_layout import csv_files
from rcnn_ext.data.formats.csv_rows import first_values
from rcnn_ext.data.formats.format import named_annotations
from rcnn_ext.data.formats.split_names import SPLITS, split_folders, splits_in_name
from rcnn_ext.errors import UserError

_FOLDERS = ("", "annotations", "labels", "csv_folder")


def has_header(*names: str) -> Callable[[Path], bool]:
    """Return a function that tells whether a file's header has all these lower-case names."""

    def accepts(path: Path) -> bool:
        first = first_values(path, 1)
        return bool(first) and set(names) <= {value.strip().lower() for value in first[0]}

    return accepts


def list_tables(root: Path, split: str, accepts: Callable[[Path], bool]) -> list[Path]:
    """Return the files of a split, which should be one.

    Those in the folder of the split, or below it in ``labels`` or ``annotations``; else those whose
    names speak of it; else, where nothing speaks of any split, all are for training.

    Args:
        root: The data folder.
        split: ``train``, ``val`` or ``test``.
        accepts: Whether a file is of the kind.
    """
    own = {each: _in_split_folder(root, each, accepts) for each in SPLITS}
    if own[split]:
        return own[split]
    for folder in _FOLDERS:
        files = [path for path in csv_files(root / folder) if accepts(path)]
        named = [path for path in files if split in splits_in_name(path.stem)]
        if named:
            return named
        divided = any(own.values()) or any(splits_in_name(path.stem) for path in files)
        if files:
            return files if split == "train" and not divided else []
    return []


def _in_split_folder(root: Path, split: str, accepts: Callable[[Path], bool]) -> list[Path]:
    return [
        path
        for folder in split_folders(root, split)
        for place in _FOLDERS
        for path in csv_files(folder / place)
        if accepts(path)
    ]


def table_of_split(
    config: DataConfig, root: Path, split: str, accepts: Callable[[Path], bool]
) -> tuple[Path, Sequence[Path]]:
    """Return the file of a split, named or found, and those of the other splits.

    Raises:
        UserError: There is none, or several.
    """
    files: dict[str, list[Path]] = {}
    for each in SPLITS:
        named = named_annotations(config, each)
        files[each] = [root / named] if named else list_tables(root, each, accepts)
    found = files.pop(split)
    if len(found) != 1:
        there = "several CSV files" if found else "no CSV file"
        names = f": {', '.join(path.name for path in found)}" if found else ""
        raise UserError(
            f"{root} has {there} for {split}{names}; name one with data.{split}_annotations=PATH"
        )
    return found[0], [path for paths in files.values() for path in paths]
