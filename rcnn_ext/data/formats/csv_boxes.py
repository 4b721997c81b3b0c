"""Boxes from CSV files: one object per row, one or several rows per image."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rcnn_ext.config.data import CSV_COLUMN_NAMES, CsvConfig, DataConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.formats.format import Format, named_annotations, named_images
from rcnn_ext.data.formats.split_names import SPLIT_NAMES, SPLITS, splits_in_name
from rcnn_ext.data.images import image_size, numeric_ids
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError

_BOX_COLUMNS = (("x1", "y1", "x2", "y2"), ("x", "y", "w", "h"), ("cx", "cy", "w", "h"))

# The columns of files without a header, as those that RetinaNet trains on.
_WITHOUT_HEADER = ("image", "x1", "y1", "x2", "y2", "class")

# Columns that hold annotations in a form that is not read, so that a file with one is no mere list
# of images: Kaggle's bbox, VIA's region_shape_attributes, and the like.
_ANNOTATION_NAME = re.compile(
    r"box|region|shape|polygon|segment|mask|annot|label|class|categor|object|predict|point|coord"
    r"|^[xy][12]?$|[xy]_?(min|max)|(min|max)_?[xy]$"
)


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

    ``<split>.csv`` or ``<split>_labels.csv`` in ``root``, or ``_annotations.csv`` in
    ``root/<split>``, the first of these that there is. For training, where the folder has none of
    these for any split, all CSV files whose names have no split in them.
    """
    named = _named_csv(root, split)
    if named is not None or split != "train":
        return [] if named is None else [named]
    if any(_named_csv(root, other) is not None for other in ("val", "test")):
        return []
    return [path for path in sorted(root.glob("*.csv")) if not splits_in_name(path.stem)]


def _named_csv(root: Path, split: str) -> Path | None:
    for name in SPLIT_NAMES[split]:
        for path in (
            root / f"{name}.csv",
            root / f"{name}_labels.csv",
            root / name / "_annotations.csv",
        ):
            if path.is_file():
                return path
    return None


def read_csv_boxes(
    path: Path | str,
    images: Path | str | None = None,
    *,
    config: CsvConfig | None = None,
    classes: Sequence[str] | None = None,
    report: Report | None = None,
) -> AnnotationSet:
    """Read a CSV file.

    Args:
        path: The file; without a header, its columns are image, x1, y1, x2, y2 and class. A row
            without class and box is an image without objects. A file with neither such columns, nor
            others that may hold boxes in another form, lists images of which nothing is known.
        images: Folder that its image names start from; None looks for ``images`` beside the file,
            then the folder of the file.
        config: How to read it.
        classes: Names of the classes; objects of others are left out. None takes those that occur,
            sorted.
        report: Where problems go; broken images are then left out. None raises for errors.

    Returns:
        The images in the order of their first rows.

    Raises:
        UserError: The file is missing or wrong; what and where is named.
    """
    options = ReadOptions(classes, True, report=report)
    folder = None if images is None else Path(images)
    return read_csv_boxes_with(Path(path), folder, config or CsvConfig(), options)


def listed_images(
    path: Path, images: Path | None = None, *, config: CsvConfig | None = None
) -> list[tuple[Path, Path]]:
    """Return the pictures that a CSV file names, whatever else it says of them.

    Args:
        path: The file, with a header. Of its columns only that of the names counts.
        images: See :func:`read_csv_boxes`.
        config: How to read it.

    Returns:
        Each picture's path, which may not exist, and its name as the file has it, in the order of
        the file. Of a name that leads out of the folder of the images only the last part is given.

    Raises:
        UserError: The file is missing, or has no such column or no rows.
    """
    config = config or CsvConfig()
    header, rows = _read_rows(path, config.delimiter)
    # What the recipe calls classes and boxes is not to be expected here.
    given = {role: name for role, name in config.columns.items() if role == "image"}
    column = _find_columns(path, header, given)["image"]
    names = [row[column].strip() for _, row in rows if column < len(row)]
    names = [name for name in dict.fromkeys(names) if name]
    if not names:
        raise UserError(f"{path} lists no images")
    folder = images or _images_folder(path, names[0])
    return [(_file_of(folder, name, Path.is_file), _inside(Path(name))) for name in names]


def _inside(name: Path) -> Path:
    return Path(name.name) if name.is_absolute() or ".." in name.parts else name


def read_csv_boxes_with(
    path: Path, images: Path | None, config: CsvConfig, options: ReadOptions
) -> AnnotationSet:
    """:func:`read_csv_boxes` with the options that all formats share."""
    header, rows = _read_rows(path, config.delimiter)
    columns, box = _choose_columns(path, header, rows, config.columns)
    builder = SetBuilder(path, options)
    by_image: dict[str, list[tuple[int, list[str]]]] = {}
    broken: set[str] = set()
    for line, row in rows:
        name = row[columns["image"]].strip() if columns["image"] < len(row) else ""
        if len(row) != len(header):
            builder.report.error(
                path, line, f"{len(row)} values, but the header has {len(header)} columns"
            )
            broken.add(name)
        if not name:
            builder.report.error(path, line, "no image name")
            continue
        by_image.setdefault(name, []).append((line, row))
    if not by_image:
        raise UserError(f"{path} lists no images")
    folder = images or _images_folder(path, next(iter(by_image)))
    files = {name: _file_of(folder, name, builder.exists) for name in by_image}
    reader = _RowReader(path, columns, box, config.normalized, builder)
    ids = numeric_ids([Path(name).stem for name in by_image])
    for image_id, (name, own) in zip(ids, by_image.items(), strict=True):
        reader.add(image_id, files[name], own, name in broken)
    reader.require_pixels()
    looked_for = f"columns of a box ({_box_names()}) among {', '.join(header)}"
    return builder.finish(annotated=box is not None, looked_for=looked_for)


def _box_names() -> str:
    """Return the first of the usual names of the columns of a box, in each notation."""
    return ", or ".join(
        " ".join(CSV_COLUMN_NAMES[role][0] for role in roles) for roles in _BOX_COLUMNS
    )


def _read_rows(path: Path, delimiter: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and the other rows that are not empty, with their lines."""
    try:
        # Spreadsheets begin UTF-8 files with a mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}") from error
    if not any(header):
        raise UserError(f"{path} is empty: it needs a header")
    if _is_row_of_boxes(header):
        return list(_WITHOUT_HEADER), [(1, header), *rows]
    return header, rows


def _is_row_of_boxes(values: list[str]) -> bool:
    """Return whether a first line is no header: six values, of which four are numbers."""
    if len(values) != len(_WITHOUT_HEADER) or not values[0]:
        return False
    box = values[1:5]
    return all(re.fullmatch(r"-?[0-9.]+", value) for value in box) or not any(values[1:])


def _find_columns(path: Path, header: list[str], given: dict[str, str]) -> dict[str, int]:
    """Return the index of each column that is there."""
    lower = [name.lower() for name in header]
    columns: dict[str, int] = {}
    for role, names in CSV_COLUMN_NAMES.items():
        if role in given:
            if given[role] not in header:
                raise UserError(
                    f"{path}:1: no column {given[role]!r} (data.csv.columns names it as the "
                    f"{role}); it has {', '.join(header)}"
                )
            columns[role] = header.index(given[role])
        else:
            found = next((lower.index(name) for name in names if name in lower), None)
            if found is not None and found not in columns.values():
                columns[role] = found
    if "image" not in columns:
        raise UserError(
            f"{path}:1: no column with the images' names among {', '.join(header)}; name it with "
            "data.csv.columns={image: NAME}"
        )
    return columns


def _choose_columns(
    path: Path,
    header: list[str],
    rows: list[tuple[int, list[str]]],
    given: dict[str, str],
) -> tuple[dict[str, int], tuple[str, ...] | None]:
    """Return the index of each column, and those of the box; None for a list of images."""
    columns = _find_columns(path, header, given)
    choices = [names for names in _BOX_COLUMNS if all(name in columns for name in names)]
    # What the recipe names counts more than what is found: `width` may be that of the image.
    choices.sort(key=lambda names: -sum(name in given for name in names))
    if choices:
        if "class" not in columns:
            raise UserError(
                f"{path}:1: no column with the class among {', '.join(header)}; name it with "
                "data.csv.columns={class: NAME}"
            )
        return columns, choices[0]
    partial = [name for names in _BOX_COLUMNS[:1] for name in names if name not in columns]
    unread = _unread_annotations(header, rows, columns)
    if len(partial) == 4 and "class" not in columns and not unread:
        return columns, None
    several = f"; {', '.join(unread)} cannot be read as one" if unread else ""
    raise UserError(
        f"{path}:1: no columns for a box among {', '.join(header)}: missing "
        f"{', '.join(partial)}; looked for {_box_names()}, one number in each{several}; name them "
        f"with data.csv.columns={{{partial[0]}: NAME, ...}}"
    )


def _unread_annotations(
    header: list[str], rows: list[tuple[int, list[str]]], columns: dict[str, int]
) -> list[str]:
    """Return the columns that seem to hold annotations, by their names or as lists of values."""
    # Width and height are those of the image in a file without boxes.
    taken = {columns[role] for role in ("image", "w", "h") if role in columns}
    return [
        name
        for index, name in enumerate(header)
        if index not in taken
        and (
            _ANNOTATION_NAME.search(name.lower())
            or any(index < len(row) and row[index].lstrip()[:1] in ("[", "{") for _, row in rows)
        )
    ]


def _images_folder(path: Path, first: str) -> Path:
    folders = [path.parent / "images", path.parent / path.stem, path.parent]
    for folder in folders:
        if (folder / first).is_file() or any(folder.glob(f"{first}.*")):
            return folder
    return folders[0] if folders[0].is_dir() else path.parent


def _file_of(folder: Path, name: str, exists: Callable[[Path], bool]) -> Path:
    """Return the file of an image; some CSV files leave the suffix out."""
    path = folder / name
    if not exists(path) and not path.suffix:
        return next((p for p in sorted(folder.glob(f"{name}.*")) if p.is_file()), path)
    return path


class _RowReader:
    """Read the rows of one image after another."""

    def __init__(
        self,
        path: Path,
        columns: dict[str, int],
        box: tuple[str, ...] | None,
        normalized: bool,
        builder: SetBuilder,
    ) -> None:
        self.path = path
        self.columns = columns
        self.box = box
        self.normalized = normalized
        self.builder = builder
        self._largest = 0.0
        self._objects = 0

    def add(
        self, image_id: int, file: Path, rows: list[tuple[int, list[str]]], broken: bool
    ) -> None:
        """Add an image with all its rows."""
        report, first = self.builder.report, rows[0][0]
        size = None
        if self.normalized and not broken and self.builder.exists(file):
            try:
                size = image_size(file)
            except UserError as error:
                report.error(self.path, first, str(error))
                self.builder.skip()
                return
        objects: list[RawObject] = []
        seen: dict[tuple[object, ...], int] = {}
        for line, row in rows if self.box is not None and not broken else []:
            try:
                item = self._object(line, row, size or (1, 1))
            except ValueError as error:
                report.error(self.path, line, str(error))
                broken = True
                continue
            key = (item.box, item.name) if item else ("empty",)
            if key in seen:
                report.error(
                    self.path, line, f"repeats line {seen[key]}: the same image, class and box"
                )
                broken = True
            seen.setdefault(key, line)
            if item is not None:
                objects.append(item)
        self.builder.add(image_id, file, size, objects, (self.path, first), broken=broken)

    def _object(self, line: int, row: list[str], size: tuple[int, int]) -> RawObject | None:
        assert self.box is not None
        texts = {role: row[self.columns[role]].strip() for role in (*self.box, "class")}
        if not any(texts.values()):
            return None
        empty = [role for role, text in texts.items() if not text]
        if empty:
            raise ValueError(f"no value for {empty[0]}")
        values = []
        for role in self.box:
            try:
                values.append(float(texts[role]))
            except ValueError:
                raise ValueError(f"{role} is {texts[role]!r}, not a number") from None
        self._objects += 1
        self._largest = max(self._largest, *(v for v in values if math.isfinite(v)), 0.0)
        a, b, c, d = values
        if self.box[0] == "x":
            c, d = a + c, b + d
        elif self.box[0] == "cx":
            a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
        width, height = size
        return RawObject((a * width, b * height, c * width, d * height), texts["class"], line)

    def require_pixels(self) -> None:
        """Stop where parts of the image were taken for pixels, or the other way round."""
        if not self._objects:
            return
        if not self.normalized and self._largest <= 1:
            raise UserError(
                f"no coordinate in {self.path} is above 1: parts of the image rather than pixels? "
                "Then data.csv.normalized=true"
            )
        if self.normalized and self._largest > 2:
            raise UserError(
                f"a coordinate in {self.path} is {self._largest:g}, but data.csv.normalized says "
                "that they are parts of the image's sides"
            )


def _read_split(config: DataConfig, root: Path, split: str, options: ReadOptions) -> AnnotationSet:
    named = named_annotations(config, split)
    path = root / named if named else find_csv(root, split)
    if path is None:
        raise UserError(
            f"no CSV file for {split} in {root}: looked for {split}.csv, {split}_labels.csv and "
            f"{split}/_annotations.csv; name one with data.{split}_annotations=PATH"
        )
    return read_csv_boxes_with(path, named_images(config, root, split), config.csv, options)


FORMAT = Format(
    "train.csv, train_labels.csv or a single CSV file",
    lambda root: any(list_csv(root, split) for split in SPLITS),
    lambda config, root, split: bool(list_csv(root, split)),
    _read_split,
)
