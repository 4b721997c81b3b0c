"""Boxes from CSV files: one object per row, one or several rows per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rcnn_ext.config.data import CsvConfig, DataConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.formats.csv_columns import (
    Columns,
    box_names,
    choose_columns,
    find_columns,
    with_header,
)
from rcnn_ext.data.formats.csv_layout import find_csv, list_csv, read_class_list
from rcnn_ext.data.formats.csv_rows import Table, read_table
from rcnn_ext.data.formats.csv_values import corners, is_empty, number, parse_boxes
from rcnn_ext.data.formats.format import Format, named_annotations, named_images
from rcnn_ext.data.formats.listed_objects import ListedImage, add_listed, warn_of_unlisted
from rcnn_ext.data.formats.picture_names import AmbiguousNameError, PictureFinder, image_folders
from rcnn_ext.data.formats.split_names import SPLIT_NAMES, SPLITS, split_of, splits_in_name
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError

_NOTATIONS = {"x1": "xyxy", "x": "xywh", "cx": "cxcywh"}


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
            a folder of the file's name, the folder of the file, and other usual ones.
        config: How to read it.
        classes: Names of the classes; objects of others are left out. None takes those that occur,
            sorted, or those of a file of names and numbers beside it.
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
    report = Report()
    table = read_table(path, report, config.delimiter)
    report.raise_if_errors(path)
    # What the recipe calls classes and boxes is not to be expected here.
    given = {role: name for role, name in config.columns.items() if role == "image"}
    column = find_columns(table, given)["image"]
    names = [row.values[column] for row in table.rows if column < len(row.values)]
    names = [name for name in dict.fromkeys(names) if name]
    if not names:
        raise UserError(f"{path} lists no images")
    finder = PictureFinder([images] if images is not None else image_folders(path))
    found = []
    for name in names:
        try:
            found.append((finder.find(name) or finder.expected(name), _inside(Path(name))))
        except AmbiguousNameError as error:
            raise UserError(f"{path}: {error}") from error
    return found


def _inside(name: Path) -> Path:
    return Path(name.name) if name.is_absolute() or ".." in name.parts else name


def read_csv_boxes_with(
    path: Path,
    images: Path | None,
    config: CsvConfig,
    options: ReadOptions,
    split: str | None = None,
    others: Sequence[Path] = (),
) -> AnnotationSet:
    """:func:`read_csv_boxes` with the options that all formats share.

    Args:
        path: See :func:`read_csv_boxes`.
        images: See :func:`read_csv_boxes`.
        config: See :func:`read_csv_boxes`.
        options: The options that all formats share.
        split: The rows to read, where a column says of which split each is; None reads all.
        others: The files of other splits, whose pictures need not be in this one.
    """
    builder = SetBuilder(path, options)
    table = with_header(read_table(path, builder.report, config.delimiter, options.encoding))
    columns = choose_columns(table, config)
    by_name = _by_image(table, columns, split, builder.report)
    if not by_name:
        raise UserError(f"{path} lists no images{f' for {split}' if split else ''}")
    numbers = read_class_list(path, options.encoding) if columns.box is not None else None
    if numbers is not None and columns.one_class is None:
        builder.declare(list(numbers.items()))
    words = SPLIT_NAMES.get(split or "", ()) or [
        word for found in splits_in_name(path.stem) for word in SPLIT_NAMES[found]
    ]
    finder = PictureFinder([images] if images is not None else image_folders(path, words))
    reader = _RowReader(table, columns, config, numbers)
    unlisted = _unlisted(table, columns, by_name, others, finder)
    background = unlisted if config.unlisted == "background" and columns.box is not None else []
    add_listed(
        builder,
        path,
        finder,
        by_name,
        reader.parse,
        needs_size=reader.normalized,
        background=background,
    )
    if not background:
        advice = "data.csv.unlisted=background trains on them as images without objects"
        warn_of_unlisted(builder, path, unlisted, advice)
    # Broken rows are named before.
    reader.require_units()
    reader.say_what_was_taken(builder.report)
    looked_for = f"columns of a box ({box_names()}) among {', '.join(table.header)}"
    return builder.finish(annotated=columns.box is not None, looked_for=looked_for)


def _by_image(
    table: Table, columns: Columns, split: str | None, report: Report
) -> dict[str, ListedImage[list[str]]]:
    """Return the rows of each image of a split, in the order of the file."""
    path, index = table.path, columns.index
    by_name: dict[str, ListedImage[list[str]]] = {}
    chosen = index.get("split") if split is not None else None
    if chosen is not None and not any(
        split_of(row.values[chosen]) for row in table.rows if chosen < len(row.values)
    ):
        # Such a column has something else, numbers of folds for instance.
        chosen = None
    without: list[int] = []
    for line, values, broken in table.rows:
        name = values[index["image"]] if index["image"] < len(values) else ""
        wrong = len(values) != len(table.header)
        if wrong and not broken:
            report.error(
                path, line, f"{len(values)} values, but the header has {len(table.header)} columns"
            )
        if chosen is not None and chosen < len(values):
            own = split_of(values[chosen])
            if own is None:
                without.append(line)
            if own != split:
                continue
        if not name:
            report.error(path, line, "no image name")
            continue
        image = by_name.setdefault(name, ListedImage())
        image.rows.append((line, values))
        image.broken |= wrong or broken
    if without:
        count = "1 row is" if len(without) == 1 else f"{len(without)} rows are"
        report.warning(path, without[0], f"{count} of no split, the first here; left out")
    return by_name


def _unlisted(
    table: Table,
    columns: Columns,
    by_name: dict[str, ListedImage[list[str]]],
    others: Sequence[Path],
    finder: PictureFinder,
) -> list[Path]:
    """Return the pictures beside those of a file that no row of it, or of the others, names."""
    column = columns.index["image"]
    names = [*by_name, *(row.values[column] for row in table.rows if column < len(row.values))]
    for other in others:
        try:
            rest = with_header(read_table(other, Report()))
            column = find_columns(rest, {})["image"]
        except UserError:
            # It is named where its own split is read.
            continue
        names += [row.values[column] for row in rest.rows if column < len(row.values)]
    for name in dict.fromkeys(names):
        try:
            finder.find(name)
        except AmbiguousNameError:
            # It is named where its rows are read.
            continue
    return finder.unlisted()


class _RowReader:
    """Read rows, and remember how they were understood."""

    def __init__(
        self, table: Table, columns: Columns, config: CsvConfig, numbers: dict[str, int] | None
    ) -> None:
        self.table = table
        self.columns = columns
        self.config = config
        self.numbers = numbers
        self.names = {str(number): name for name, number in (numbers or {}).items()}
        # Where a comma divides no values it may be a decimal point.
        self.comma = table.delimiter != ","
        self.notation = _NOTATIONS.get((columns.box or ("",))[0], config.box_format)
        self.without_box: list[int] = []
        self.wrong_units = ""
        self.normalized = self._is_normalized()

    def parse(self, values: list[str], size: tuple[int, int], line: int) -> list[RawObject]:
        """Return the objects of a row; see :func:`add_listed`."""
        if self.columns.box is None:
            return []
        boxes, name = self._boxes(values), self._class(values)
        if not boxes:
            if name and self.columns.one_class is None:
                self.without_box.append(line)
            return []
        if not name:
            raise ValueError("no value for class")
        if self.numbers is not None and self.columns.one_class is None:
            name = name if name in self.numbers else self.names.get(name, name)
            if name not in self.numbers:
                raise ValueError(f"the class {name!r} is not in the list of classes")
        width, height = size
        return [
            RawObject((a * width, b * height, c * width, d * height), name, line)
            for a, b, c, d in boxes
        ]

    def _class(self, values: list[str]) -> str:
        if self.columns.one_class is not None:
            return self.columns.one_class
        return values[self.columns.index["class"]]

    def _boxes(self, values: list[str]) -> list[tuple[float, float, float, float]]:
        """Return the boxes of a row as corners."""
        roles = self.columns.box or ()
        texts = [values[self.columns.index[role]] for role in roles]
        if roles == ("box",):
            return parse_boxes(texts[0], self.notation)
        if all(map(is_empty, texts)):
            return []
        for role, text in zip(roles, texts, strict=True):
            if not text:
                raise ValueError(f"no value for {role}")
        found = [number(r, t, comma=self.comma) for r, t in zip(roles, texts, strict=True)]
        return [corners(found, self.notation)]

    def _is_normalized(self) -> bool:
        """Return whether coordinates are parts of the image's sides."""
        stated = self.config.normalized
        largest, whole, count = 0.0, True, 0
        for row in self.table.rows if self.columns.box is not None else []:
            try:
                boxes = self._boxes(row.values)
            except (ValueError, IndexError):
                continue
            for box in boxes:
                finite = [value for value in box if math.isfinite(value)]
                largest = max(largest, *finite, 0.0)
                whole = whole and all(value == int(value) for value in finite)
                count += 1
        if not count:
            return bool(stated)
        path = self.table.path
        if stated and largest > 2:
            self.wrong_units = (
                f"a coordinate in {path} is {largest:g}, but data.csv.normalized says that they "
                "are parts of the image's sides"
            )
        if stated is None and largest <= 1 and whole:
            self.wrong_units = (
                f"no coordinate in {path} is above 1: parts of the image's sides, or pixels? Say "
                "which with data.csv.normalized=true or data.csv.normalized=false"
            )
        return stated if stated is not None else largest <= 1

    def require_units(self) -> None:
        """Stop where the recipe says something else than the numbers, or these say nothing.

        Raises:
            UserError: They do.
        """
        if self.wrong_units:
            raise UserError(self.wrong_units)

    def say_what_was_taken(self, report: Report) -> None:
        """Add notes on what could have been understood in another way."""
        path = self.table.path
        if self.table.delimiter != "," and not self.table.stated:
            report.note(path, 1, f"values are divided by {self.table.delimiter!r}")
        if self.normalized and self.config.normalized is None:
            report.note(path, None, "coordinates are parts of the image's sides")
        if self.columns.one_class is not None and self.config.one_class is None:
            report.note(
                path,
                1,
                f"no column of classes: all boxes are of the class {self.columns.one_class!r} "
                "(data.csv.one_class)",
            )
        if self.without_box:
            count = len(self.without_box)
            rows = "1 row has" if count == 1 else f"{count} rows have, the first here,"
            report.warning(
                path, self.without_box[0], f"{rows} a class but no box, and is no object"
            )


def _read_split(config: DataConfig, root: Path, split: str, options: ReadOptions) -> AnnotationSet:
    named = named_annotations(config, split)
    path = root / named if named else find_csv(root, split)
    if path is None:
        raise UserError(
            f"no CSV file for {split} in {root}: looked for {split}.csv, {split}_labels.csv and "
            f"{split}/_annotations.csv; name one with data.{split}_annotations=PATH"
        )
    others = _other_files(config, root, split)
    images = named_images(config, root, split)
    return read_csv_boxes_with(path, images, config.csv, options, split, others)


def _other_files(config: DataConfig, root: Path, split: str) -> list[Path]:
    """Return the files of the other splits."""
    found: list[Path] = []
    for other in SPLITS:
        named = named_annotations(config, other)
        if other != split:
            found += [root / named] if named else list_csv(root, other)
    return found


FORMAT = Format(
    "train.csv, train_labels.csv or a single CSV file",
    lambda root: any(list_csv(root, split) for split in SPLITS),
    lambda config, root, split: bool(list_csv(root, split)),
    _read_split,
)
