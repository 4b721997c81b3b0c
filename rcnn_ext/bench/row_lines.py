"""Rows of a comparison as lines of JSON, written as they are measured.

A GPU may fault in the middle, or its time may be over: what was measured until then is kept, and
another process goes on behind the case that the last one ended in.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rcnn_ext.shards.lines import LineFile, read_records

if TYPE_CHECKING:  # what only reads lines needs no torch
    from rcnn_ext.bench.cases import Case


class RowLines:
    """A file of lines: objects with ``planned``, ``started`` or ``row``.

    These are the names of all cases, the name of a case that begins, and the result of a row.

    Args:
        path: The file; it is made where it is missing and appended to where it exists.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def start(self, case: Case) -> None:
        """Note that a case begins, before anything of it runs."""
        self._append({"started": case.name})

    def add(self, row: dict[str, Any]) -> None:
        """Add the result of a row."""
        self._append({"row": row})

    def remaining(self, cases: Iterable[Case]) -> list[Case]:
        """Return the cases that were not begun yet, and note which ones there are."""
        lines, cases = read_lines(self.path), list(cases)
        planned, begun = planned_cases(lines), set(started_cases(lines))
        if new := [case.name for case in cases if case.name not in planned]:
            self._append({"planned": new})
        return [case for case in cases if case.name not in begun]

    def _append(self, line: dict[str, Any]) -> None:
        with LineFile(self.path) as file:
            file.write(line, allow_nan=True)


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the lines of a file without the last one where that was cut; none if it is missing."""
    return [line for _, line in read_records(path)] if path.is_file() else []


def started_cases(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the cases that were begun, in order."""
    return [line["started"] for line in lines if "started" in line]


def planned_cases(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of all cases that were to be run."""
    return [name for line in lines for name in line.get("planned", ())]


def rows_of(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that were measured."""
    return [line["row"] for line in lines if "row" in line]
