"""Check a split of the Hub row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.hub.rows import RowsBuilder, decode_row, plain_rows
from rcnn_ext.data.hub.split import HubSplit
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError


def check_stream(
    split: HubSplit,
    report: Report,
    see: Callable[[Path, bytes | None, torch.Tensor], None] | None = None,
) -> AnnotationSet:
    """Read and decode every row once, keeping no picture.

    Args:
        split: What to read.
        report: Where problems go; their line is the row, from 1.
        see: Called with the path, the file and the pixels [C, H, W] of each decoded picture.

    Returns:
        What is in the images; their paths name rows and are no files.

    Raises:
        UserError: No row can be used.
    """
    builder = RowsBuilder(split.source, split, report)
    first_place: dict[int, int] = {}
    for place, row in enumerate(split.tracked("Reading")(plain_rows(split.rows)), start=1):
        try:
            decoded = decode_row(row, split, place)
        except UserError as error:
            report.error(split.source, place, str(error).replace(f" of {split.source}", ""))
            builder.skip()
            continue
        number = decoded.image_id
        if number is not None and first_place.setdefault(number, place) != place:
            report.error(
                split.source,
                place,
                f"the id {number} is used twice, first by row {first_place[number]}",
            )
        path = Path(f"row {place}")
        builder.add_row(decoded, number or place, path, place)
        if see is not None:
            see(path, decoded.content, decoded.image)
    return builder.finish()
