"""The rows of CSV files, whatever separates their values, and whatever quotes are left open."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rcnn_ext.data.problems import Report
from rcnn_ext.data.text_files import decode_text, read_lines
from rcnn_ext.errors import UserError
from rcnn_ext.files import read_head

# What spreadsheets and tools write, the commonest first.
DELIMITERS = (",", ";", "\t", "|")

# Lines over which a value in quotes may go on; annotations have none longer.
_MAX_LINES = 50

# Beginning of the line with the names of the columns in tables of the VGG Image Annotator 3.
_VIA_3 = "# CSV_HEADER = metadata_id"


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        line: Its first line in the file, from 1.
        values: Its values, without spaces around them.
        broken: Whether its quotes are wrong, which is reported, so that only some values are right.
    """

    line: int
    values: list[str]
    broken: bool = False


@dataclass
class Table:
    """A CSV file.

    Attributes:
        path: The file.
        header: Its first row.
        rows: The other rows that are not empty.
        delimiter: What separates values.
        stated: Whether the recipe says so.
    """

    path: Path
    header: list[str]
    rows: list[Row]
    delimiter: str
    stated: bool = False
    _lower: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, name in enumerate(self.header):
            self._lower.setdefault(name.lower(), index)

    def column(self, *names: str) -> int | None:
        """Return the index of the first column of these lower-case names; None if there is none."""
        return next((self._lower[name] for name in names if name in self._lower), None)

    def need(self, name: str) -> int:
        """Return the index of a column.

        Raises:
            UserError: There is none.
        """
        found = self.column(name.lower())
        if found is None:
            raise UserError(f"{self.path}:1: no column {name} among {', '.join(self.header)}")
        return found


def read_table(
    path: Path,
    report: Report,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> Table:
    """Read a CSV file.

    Args:
        path: The file.
        report: Where rows with wrong quotes, or another number of values than the header, go.
        delimiter: What separates values; None takes that of ``, ; tab |`` which divides the first
            line into the most.
        encoding: See :func:`rcnn_ext.data.text_files.read_text`.

    Raises:
        UserError: It does not exist, cannot be read, has no header, or is of a kind that is not
            read.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    lines = read_lines(path, encoding)
    if any(line.startswith(_VIA_3) for line in lines[:_MAX_LINES]):
        raise UserError(
            f"{path} is the CSV file of a project of VIA 3, which is not read: save the project "
            "itself (Save, a .json file), which is"
        )
    chosen = delimiter or guess_delimiter(lines)
    rows = _rows(lines, chosen, path, report)
    if not rows:
        raise UserError(f"{path} is empty: it needs a header")
    header = rows[0].values
    if rows[0].broken:
        raise UserError(f"{path}:{rows[0].line}: the quotes of the header are wrong")
    return Table(path, header, rows[1:], chosen, delimiter is not None)


def first_values(path: Path, count: int = 3, encoding: str | None = None) -> list[list[str]]:
    """Return the values of the first rows of a file that may be CSV; none where it is not text.

    This is for telling formats apart, so it reads the beginning of a file and reports nothing.
    """
    content = read_head(path, 1 << 16)
    try:
        text = decode_text(content, path, encoding)
    except UserError:
        text = content.decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()][:count]
    delimiter = guess_delimiter(lines)
    return [_parse(line, delimiter, strict=False) or [] for line in lines]


def guess_delimiter(lines: Sequence[str]) -> str:
    """Return what seems to separate values: what divides the first line into the most."""
    first = next((line for line in lines if line.strip()), "")
    return max(DELIMITERS, key=lambda each: len(_parse(first, each, strict=False) or []))


def _rows(lines: list[str], delimiter: str, path: Path, report: Report) -> list[Row]:
    rows: list[Row] = []
    index = 0
    while index < len(lines):
        text, line = lines[index], index + 1
        index += 1
        if '"' not in text:
            values = [value.strip() for value in text.split(delimiter)]
            broken = False
        else:
            parsed = _parse(text, delimiter)
            if parsed is None:
                parsed, more = _over_lines(lines, index - 1, delimiter)
                index += more
            broken = parsed is None
            if parsed is None:
                report.error(
                    path,
                    line,
                    "a quote is not closed, or stands within a value: quotes belong around whole "
                    'values, and are doubled ("") within them',
                )
                parsed = _parse(text, delimiter, strict=False) or [text]
            values = [value.strip() for value in parsed]
        if any(values):
            rows.append(Row(line, values, broken))
    return rows


def _over_lines(lines: list[str], start: int, delimiter: str) -> tuple[list[str] | None, int]:
    """Return a row that goes on over several lines, and how many more it takes.

    A stray quote would take the rows up to the next quote for one value, so lines that have as many
    values as a row are not taken.
    """
    num_values = len(_parse(lines[0], delimiter, strict=False) or [])
    text = lines[start]
    for more in range(1, min(_MAX_LINES, len(lines) - start)):
        following = lines[start + more]
        if following.count(delimiter) >= max(num_values - 1, 1):
            break
        text += "\n" + following
        if '"' in following:
            values = _parse(text, delimiter)
            if values is not None:
                return (values, more) if len(values) == num_values else (None, 0)
    return None, 0


def _parse(text: str, delimiter: str, *, strict: bool = True) -> list[str] | None:
    """Return the values of one row; None if its quotes are wrong."""
    try:
        # A list of one item, as the reader would otherwise take its lines for rows.
        rows = list(csv.reader([text], delimiter=delimiter, strict=strict))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None
