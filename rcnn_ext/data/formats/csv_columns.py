"""The meaning of the columns of CSV files, by their names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rcnn_ext.config.data import CSV_COLUMN_NAMES, CsvConfig
from rcnn_ext.data.formats.csv_rows import DELIMITERS, Row, Table
from rcnn_ext.data.formats.split_names import split_of
from rcnn_ext.errors import UserError

BOX_COLUMNS = (("x1", "y1", "x2", "y2"), ("x", "y", "w", "h"), ("cx", "cy", "w", "h"), ("box",))

# The columns of files without a header, as those that RetinaNet trains on.
_WITHOUT_HEADER = ["image", "x1", "y1", "x2", "y2", "class"]

# Those of Google's AutoML and Vertex AI, which give two or four corners.
_AUTOML = ["split", "image", "class", "x1", "y1", "", "", "x2", "y2", "", ""]

# Columns that hold annotations in a form that is not read, so that a file with one is no mere list
# of images.
_ANNOTATION_NAME = re.compile(
    r"box|region|shape|polygon|segment|mask|annot|label|class|categor|object|predict|point|coord"
    r"|^[xy][12]?$|[xy]_?(min|max)|(min|max)_?[xy]$"
)

# Columns that say something of an image or of an annotation, but not the class.
_NO_CLASS = re.compile(
    r"|unnamed: ?\d+|id|index|(img|image)?_?(width|height|w|h|size|depth)|source|domain|score"
    r"|confidence|area|fold|kfold|date|license|url|is_?crowd|iscrowd|usage|country|annotator"
)


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    Attributes:
        index: The index of each column that is there, by its meaning.
        box: Those of the box; None for a list of images.
        one_class: The class of all boxes, where the file has no column of classes.
    """

    index: dict[str, int]
    box: tuple[str, ...] | None
    one_class: str | None = None


def with_header(table: Table) -> Table:
    """Return a table whose first row, if that is no header, is a row like the others."""
    first = table.header
    if _is_row_of_boxes(first):
        return Table(
            table.path, _WITHOUT_HEADER, [Row(1, first), *table.rows], table.delimiter, table.stated
        )
    if len(first) == len(_AUTOML) and (split_of(first[0]) or first[0].lower() == "unassigned"):
        return Table(
            table.path, _AUTOML, [Row(1, first), *table.rows], table.delimiter, table.stated
        )
    return table


def _is_row_of_boxes(values: list[str]) -> bool:
    """Return whether a first line is no header: six values, of which four are numbers."""
    if len(values) != len(_WITHOUT_HEADER) or not values[0]:
        return False
    box = values[1:5]
    return all(re.fullmatch(r"-?[0-9.]+", value) for value in box) or not any(values[1:])


def find_columns(table: Table, given: dict[str, str]) -> dict[str, int]:
    """Return the index of each column that is there.

    Args:
        table: The file.
        given: The names of some of them, which must be there.

    Raises:
        UserError: One is not there, or none has the names of the images.
    """
    header = table.header
    lower = [name.lower() for name in header]
    columns: dict[str, int] = {}
    for role, names in CSV_COLUMN_NAMES.items():
        if role in given:
            if given[role] not in header:
                raise UserError(
                    f"{table.path}:1: no column {given[role]!r} (data.csv.columns names it as the "
                    f"{role}); it has {', '.join(header)}{_other_delimiter(table)}"
                )
            columns[role] = header.index(given[role])
        else:
            found = next((lower.index(name) for name in names if name in lower), None)
            if found is not None and found not in columns.values():
                columns[role] = found
    if "image" not in columns:
        raise UserError(
            f"{table.path}:1: no column with the images' names among {', '.join(header)}; name it "
            f"with data.csv.columns={{image: NAME}}{_other_delimiter(table)}"
        )
    return columns


def _other_delimiter(table: Table) -> str:
    """Return what to say where the header seems to be divided by something else."""
    first = table.delimiter.join(table.header)
    count = first.count(table.delimiter)
    other = next((d for d in DELIMITERS if first.count(d) > count), None)
    if other is None:
        return ""
    shown = "'\\t'" if other == "\t" else f"'{other}'"
    return f"; are its values divided by {shown}? Then data.csv.delimiter={shown}"


def choose_columns(table: Table, config: CsvConfig) -> Columns:
    """Return the columns, and which of them are the box.

    Raises:
        UserError: A column is missing, or annotations are in a form that is not read.
    """
    path, header, given = table.path, table.header, config.columns
    columns = find_columns(table, given)
    choices = [names for names in BOX_COLUMNS if all(name in columns for name in names)]
    # What the recipe names counts more than what is found: `width` may be that of the image.
    choices.sort(key=lambda names: -sum(name in given for name in names))
    if choices:
        return Columns(columns, choices[0], _one_class(table, columns, choices[0], config))
    partial = [name for names in BOX_COLUMNS[:1] for name in names if name not in columns]
    unread = _unread_annotations(table, columns)
    if len(partial) == 4 and "class" not in columns and not unread:
        return Columns(columns, None)
    several = f"; {', '.join(unread)} cannot be read as one" if unread else ""
    raise UserError(
        f"{path}:1: no columns for a box among {', '.join(header)}: missing "
        f"{', '.join(partial)}; looked for {box_names()}{several}; name them with "
        f"data.csv.columns={{{partial[0]}: NAME, ...}}{_other_delimiter(table)}"
    )


def _one_class(
    table: Table, columns: dict[str, int], box: tuple[str, ...], config: CsvConfig
) -> str | None:
    """Return the class of all boxes; None where a column has them."""
    if config.one_class is not None:
        return config.one_class
    if "class" in columns:
        return None
    taken = {columns[role] for role in ("image", "split", *box) if role in columns}
    others = [
        name
        for index, name in enumerate(table.header)
        if index not in taken and not _NO_CLASS.fullmatch(name.lower())
    ]
    if others or box != ("box",):
        raise UserError(
            f"{table.path}:1: no column with the class among {', '.join(table.header)}; name it "
            "with data.csv.columns={class: NAME}, or the class of all boxes with "
            "data.csv.one_class=NAME"
        )
    return "object"


def box_names() -> str:
    """Return the usual names of the columns of a box, in each notation, for messages."""
    *several, one = (" ".join(CSV_COLUMN_NAMES[r][0] for r in roles) for roles in BOX_COLUMNS)
    return f"{', or '.join(several)}, one number in each, or all in {one}"


def _unread_annotations(table: Table, columns: dict[str, int]) -> list[str]:
    """Return the columns that seem to hold annotations, by their names or as lists of values."""
    # Width and height are those of the image in a file without boxes.
    taken = {columns[role] for role in ("image", "split", "w", "h") if role in columns}
    return [
        name
        for index, name in enumerate(table.header)
        if index not in taken
        and (
            _ANNOTATION_NAME.search(name.lower())
            or any(
                index < len(row.values) and row.values[index][:1] in ("[", "{")
                for row in table.rows
            )
        )
    ]
