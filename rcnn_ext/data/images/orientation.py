"""The orientation of a picture: what its metadata say, and what follows for its pixels.

Cameras store a turned or mirrored picture and say so in its metadata; most annotation tools show
it upright. The rule of the whole package: a picture is upright, and boxes are in upright pixels,
unless the size that its annotations give fits only the picture as it is stored.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import numpy as np
from PIL import Image

_TAG = 0x0112
_INTEGER_TYPES = {1: "B", 3: "H", 4: "I"}  # TIFF's BYTE, SHORT and LONG
_MAX_ENTRIES = 4096

# What brings a stored picture upright, by the value of the tag Orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def stored_orientation(opened: Image.Image) -> int:
    """Return the orientation that the metadata of an opened picture state.

    Args:
        opened: The picture, opened but not loaded.

    Returns:
        1 to 8, as in EXIF; 1 (upright) where nothing valid is stated. Broken metadata never raise.
    """
    if hasattr(opened, "tag_v2"):
        # Pillow turns TIFF files while it loads them, after which the tag is gone.
        with contextlib.suppress(Exception):
            return _valid(opened.tag_v2.get(_TAG))
        return 1
    for _ in range(2):  # The second time Pillow returns what it had read before an error.
        with contextlib.suppress(Exception):
            # That of a PNG file would decode all of it to find metadata behind the pixels.
            found = _valid(Image.Image.getexif(opened).get(_TAG))
            if found != 1:
                return found
    payload = opened.info.get("exif")
    if payload is None and opened.format == "PNG":
        with contextlib.suppress(Exception):
            payload = _exif_of_png(getattr(opened, "fp", None))
    return orientation_in_exif(payload) if isinstance(payload, bytes) else 1


def orientation_in_exif(payload: bytes) -> int:
    """Return the orientation that a block of EXIF states, whatever is wrong with its other tags.

    Args:
        payload: The block, with or without the prefix ``Exif``.

    Returns:
        1 to 8; 1 where it states none.
    """
    data = payload.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    with contextlib.suppress(struct.error):
        if order is None:
            return 1
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for index in range(min(count, _MAX_ENTRIES)):
            place = start + 2 + 12 * index
            tag, kind, values = struct.unpack_from(f"{order}HHI", data, place)
            if tag == _TAG and kind in _INTEGER_TYPES and values == 1:
                return _valid(struct.unpack_from(order + _INTEGER_TYPES[kind], data, place + 8)[0])
    return 1


def exif_with(orientation: int) -> bytes:
    """Return a block of EXIF that states an orientation and nothing else."""
    entry = struct.pack(">HHIHH", _TAG, 3, 1, orientation, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return width and height of a picture of the stored ``size`` when it is upright."""
    return (size[1], size[0]) if orientation >= 5 else size


def orientation_to_apply(
    stored: tuple[int, int], orientation: int, annotated: tuple[int, int] | None
) -> int:
    """Return the orientation by which a stored picture becomes what its annotations mean.

    Args:
        stored: Width and height as stored.
        orientation: What the metadata state.
        annotated: Width and height that the annotations give; None if they give none.

    Returns:
        ``orientation``; 1 where the annotated size fits the stored picture only.
    """
    if annotated == stored and annotated != turned_size(stored, orientation):
        return 1
    return orientation


def turn_picture(picture: Image.Image, orientation: int) -> Image.Image:
    """Return a stored picture upright."""
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def turn_array(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return a stored array [H, W, ...] upright."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def boxes_as_stored(boxes: np.ndarray, orientation: int, stored: tuple[int, int]) -> np.ndarray:
    """Move boxes from the upright picture to the stored one.

    Args:
        boxes: [N, 4] (x1, y1, x2, y2), pixels of the upright picture.
        orientation: What the metadata state.
        stored: Width and height as stored.

    Returns:
        [N, 4] (x1, y1, x2, y2), pixels of the stored picture.
    """
    width, height = turned_size(stored, orientation)
    x1, y1, x2, y2 = boxes.T
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    if orientation >= 5:
        x1, y1, x2, y2 = y1, x1, y2, x2
    return np.stack([x1, y1, x2, y2], axis=1)


def points_as_upright(points: np.ndarray, orientation: int, stored: tuple[int, int]) -> np.ndarray:
    """Move points from the stored picture to the upright one.

    Args:
        points: [N, 2] (x, y), pixels of the stored picture.
        orientation: What the metadata state.
        stored: Width and height as stored.

    Returns:
        [N, 2] (x, y), pixels of the upright picture.
    """
    width, height = turned_size(stored, orientation)
    x, y = points.T[::-1] if orientation >= 5 else points.T
    if orientation in (2, 3, 6, 7):
        x = width - x
    if orientation in (3, 4, 7, 8):
        y = height - y
    return np.stack([x, y], axis=1)


def boxes_as_upright(boxes: np.ndarray, orientation: int, stored: tuple[int, int]) -> np.ndarray:
    """Move boxes from the stored picture to the upright one; undoes :func:`boxes_as_stored`.

    Args:
        boxes: [N, 4] (x1, y1, x2, y2), pixels of the stored picture.
        orientation: What the metadata state.
        stored: Width and height as stored.

    Returns:
        [N, 4] (x1, y1, x2, y2), pixels of the upright picture.
    """
    first = points_as_upright(boxes[:, :2], orientation, stored)
    second = points_as_upright(boxes[:, 2:], orientation, stored)
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)


def _valid(value: Any) -> int:
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _exif_of_png(file: Any) -> bytes | None:
    """Return the EXIF block of a PNG file, which may be behind its pixels."""
    place = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return bytes(file.read(length))
            file.seek(length + 4, 1)
    finally:
        file.seek(place)
    return None
