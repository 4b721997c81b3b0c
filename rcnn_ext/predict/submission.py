"""Detections of a localizer as a CSV table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rcnn_ext.files import write_text

SUBMISSION = "submission.csv"
_COLUMNS = ("filename", "xmin", "ymin", "xmax", "ymax", "class", "score")


def submission_row(result: dict[str, Any]) -> list[Any]:
    """Return a row of the table for an entry of a COCO result file."""
    x, y, width, height = result["bbox"]
    corners = [round(value, 2) for value in (x, y, x + width, y + height)]
    return [result["file_name"], *corners, result["category_name"], result["score"]]


def write_submission(path: Path, rows: Iterable[list[Any]]) -> None:
    """Write one row per picture, in a format that :func:`rcnn_ext.data.read_csv_boxes` reads.

    The columns are ``filename``, ``xmin``, ``ymin``, ``xmax``, ``ymax`` in pixels of the picture
    as it is on disk (upright), ``class`` and ``score``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_COLUMNS, *rows])
    write_text(path, text.getvalue())
