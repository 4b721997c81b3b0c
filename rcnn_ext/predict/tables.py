"""Detections as tables and in the formats of other libraries, which are imported when needed."""

from __future__ import annotations

import csv
import importlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rcnn_ext.errors import UserError
from rcnn_ext.files import write_text

if TYPE_CHECKING:
    from rcnn_ext.predict.detections import Detections

COLUMNS = ("file_name", "x1", "y1", "x2", "y2", "score", "label", "name")


def optional_library(name: str, purpose: str) -> Any:
    """Import a library that the extra ``results`` brings.

    Args:
        name: Name of the module and of the distribution.
        purpose: What needs it, for the message.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name:
            raise
        raise UserError(
            f"{purpose} needs {name}, which is not installed: pip install 'rcnn-ext[results]'"
        ) from None


def write_table(path: Path, found: Detections) -> None:
    """Write detections as CSV, one row each, with the columns ``COLUMNS``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in found:
        corners = [round(value, 2) for value in one.box]
        writer.writerow([found.name.as_posix(), *corners, round(one.score, 5), one.label, one.name])
    write_text(path, text.getvalue())


def encoded_rle(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask as COCO's compressed run lengths.

    Args:
        mask: bool [H, W].

    Returns:
        ``size`` (height, width) and ``counts``, plain values for JSON.

    Raises:
        UserError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval.core import mask as library
    except ModuleNotFoundError:
        raise UserError(
            "masks in COCO's format need faster-coco-eval, which is not installed: "
            "pip install 'rcnn-ext[train]'"
        ) from None
    encoded = library.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = encoded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in encoded["size"]], "counts": text}
