"""Detections of a localizer as a CSV table, in a format that ``read_csv_boxes`` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

SUBMISSION = "submission.csv"
_COLUMNS = ("filename", "xmin", "ymin", "xmax", "ymax", "class", "score")


def submission_header() -> str:
    """Return the first line of the table.

    Boxes are in pixels of the picture as it is on disk, upright.
    """
    return _line(_COLUMNS)


def submission_row(result: dict[str, Any]) -> str:
    """Return the line of the table for an entry of a COCO result file."""
    x, y, width, height = result["bbox"]
    corners = [round(value, 2) for value in (x, y, x + width, y + height)]
    return _line([result["file_name"], *corners, result["category_name"], result["score"]])


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
