"""Pictures on their way into a converted data set: copied byte for byte, linked, or left."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Literal

import numpy as np

from rcnn_ext.data.conversion.losses import Losses
from rcnn_ext.data.images.orientation import boxes_as_upright, points_as_upright, turn_array
from rcnn_ext.data.records import ImageRecord
from rcnn_ext.data.segmentation import Segmentation
from rcnn_ext.errors import UserError

ImagesMode = Literal["copy", "link", "none"]


def place_picture(
    source: Path, target: Path, mode: ImagesMode, shown: Path, losses: Losses
) -> None:
    """Bring a picture to its new place.

    Args:
        source: Where it is.
        target: Where it goes; its folder exists.
        mode: ``copy``; ``link``: a hard link, or a copy where the file system has none; ``none``: a
            symbolic link.
        shown: What messages call ``target``.
        losses: Where copies in place of links are counted.

    Raises:
        UserError: The picture cannot be read, or the place cannot be written.
    """
    try:
        if mode == "none":
            target.symlink_to(source.resolve())
            return
        if mode == "link":
            try:
                os.link(source.resolve(), target)
                return
            except OSError:
                # Another file system, or one without hard links, or too many of them.
                why = "copied, since the file system of OUT can have no hard links to them"
                losses.add("hard links of pictures", why)
        shutil.copyfile(source, target)
    except OSError as error:
        done = {"copy": "copy", "link": "link", "none": "make a symbolic link of"}[mode]
        hint = "; use --images copy" if mode == "none" else ""
        raise UserError(f"cannot {done} {source} as {shown}: {error.strerror}{hint}") from error


def turned(record: ImageRecord, orientation: int, upright_size: tuple[int, int]) -> ImageRecord:
    """Return a record of a picture as it is stored in pixels of the upright picture.

    Args:
        record: The record, whose size is that of the stored picture.
        orientation: What the picture's metadata state.
        upright_size: Width and height of the upright picture in pixels.
    """
    stored = record.width, record.height
    width, height = upright_size
    outlines = record.segmentations
    if outlines is not None:
        outlines = tuple(
            None if one is None else _turned_outline(one, orientation, stored) for one in outlines
        )
    boxes = boxes_as_upright(record.boxes, orientation, stored).astype(np.float32)
    return dataclasses.replace(
        record, width=width, height=height, boxes=boxes, segmentations=outlines
    )


def _turned_outline(
    outline: Segmentation, orientation: int, stored: tuple[int, int]
) -> Segmentation:
    if outline.runs is None:
        polygons = [points_as_upright(points, orientation, stored) for points in outline.polygons]
        return Segmentation(tuple(points.astype(np.float32) for points in polygons))
    height, width = outline.size
    return Segmentation.from_mask(turn_array(outline.mask(width, height), orientation))
