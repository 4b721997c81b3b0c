"""Finding the CSV files of a data folder, and the names of classes beside them."""

from __future__ import annotations

from pathlib import Path

from rcnn_ext.config.data import CSV_COLUMN_NAMES
from rcnn_ext.data.formats.csv_rows import first_values, read_table
from rcnn_ext.data.formats.split_names import SPLIT_NAMES, SPLITS, split_of, splits_in_name
from rcnn_ext.data.images import IMAGE_SUFFIXES
from rcnn_ext.data.problems import Report
from rcnn_ext.data.text_files import whole_number
from rcnn_ext.errors import UserError

_SUFFIXES = (".csv", ".tsv")
_FOLDERS = ("", "annotations", "labels")


def find_csv(root: Path, split: str) -> Path | None:
    """Return the file of a split: :func:`list_csv` where it finds one; None if it finds none.

    Raises:
        UserError: There are several.
    """
    found = list_csv(root, split)
    if len(found) > 1:
        raise UserError(
            f"{root} has several CSV files: {', '.join(path.name for path in found)}; name that "
            f"of the {split} split with data.{split}_annotations=PATH"
        )
    return found[0] if found else None


def list_csv(root: Path, split: str) -> list[Path]:
    """List the files of a split, which should be one.

    ``<split>.csv``, ``<split>_labels.csv`` or the like in ``root``, or ``_annotations.csv`` in
    ``root/<split>``, the first of these that there is. Where there are none for any split, all CSV
    files whose names have no split in them: for training, or for the splits that a column of theirs
    names.
    """
    named = _named_csv(root, split)
    if named is not None:
        return [named]
    if any(_named_csv(root, other) is not None for other in SPLITS):
        return []
    for folder in _FOLDERS:
        lone = [path for path in csv_files(root / folder) if not splits_in_name(path.stem)]
        lone = [path for path in lone if not is_class_list(path)]
        if lone:
            return [path for path in lone if split in (splits_in_column(path) or ("train",))]
    return []


def csv_files(folder: Path) -> list[Path]:
    """Return the CSV files in a folder, whose suffixes may be in any case, sorted."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())


def _named_csv(root: Path, split: str) -> Path | None:
    for folder in _FOLDERS:
        names = {path.name.lower(): path for path in csv_files(root / folder)}
        for word in SPLIT_NAMES[split]:
            for stem in (word, f"{word}_labels", f"{word}_annotations", f"annotations_{word}"):
                if f"{stem}.csv" in names:
                    return names[f"{stem}.csv"]
    for word in SPLIT_NAMES[split]:
        names = {path.name.lower(): path for path in csv_files(root / word)}
        for name in ("_annotations.csv", "annotations.csv", f"{word}.csv", "labels.csv"):
            if name in names:
                return names[name]
    return None


def splits_in_column(path: Path) -> set[str]:
    """Return the splits that a column of a file names; none where it has no such column."""
    first = first_values(path, 1)
    header = [name.lower() for name in first[0]] if first else []
    named = any(name in header for name in CSV_COLUMN_NAMES["split"])
    if not named and not (header and split_of(header[0])):
        return set()
    try:
        table = read_table(path, Report())
    except UserError:
        # Its reader says what is wrong with it.
        return set()
    column = table.column(*CSV_COLUMN_NAMES["split"]) or 0
    found = {split_of(row.values[column]) for row in table.rows if column < len(row.values)}
    if not named:
        found.add(split_of(header[0]))
    return {split for split in found if split is not None}


def is_class_list(path: Path) -> bool:
    """Return whether a file has a class name and its number in each row, as RetinaNet's has."""
    rows = first_values(path)
    if rows and "class" in path.stem.lower() and not rows[0][-1].strip().isdigit():
        rows = rows[1:]
    return bool(rows) and all(
        len(row) == 2
        and row[1].strip().isdigit()
        and Path(row[0].strip()).suffix.lower() not in IMAGE_SUFFIXES
        for row in rows
    )


def read_class_list(path: Path, encoding: str | None = None) -> dict[str, int] | None:
    """Return the numbers of the classes by name, from a file beside that of the boxes, if any.

    Args:
        path: The file of the boxes.
        encoding: See :func:`rcnn_ext.data.text_files.read_text`.

    Raises:
        UserError: It is there, but wrong.
    """
    found = next((p for p in csv_files(path.parent) if p != path and is_class_list(p)), None)
    if found is None:
        return None
    table = read_table(found, Report(), encoding=encoding)
    numbers: dict[str, int] = {}
    for line, values, broken in ((1, table.header, False), *table.rows):
        number = whole_number(values[1]) if not broken and len(values) == 2 else None
        if number is None:
            if line == 1:
                continue
            raise UserError(f"{found}:{line}: not a class name and its number")
        name = values[0]
        if name in numbers or number in numbers.values():
            raise UserError(f"{found}:{line}: the class {name} or its number {number} repeats")
        numbers[name] = number
    return dict(sorted(numbers.items(), key=lambda item: item[1]))
