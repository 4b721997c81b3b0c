"""The header of a picture: size, orientation and form, without decoding any pixels."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rcnn_ext.data.images.decoding import UnknownFormatError, decode, is_tiff
from rcnn_ext.data.images.orientation import orientation_to_apply, turned_size
from rcnn_ext.data.images.reading import suffix_of
from rcnn_ext.data.images.tiff import read_tiff
from rcnn_ext.errors import UserError


@dataclass(frozen=True)
class Header:
    """What the first bytes of a picture tell.

    Attributes:
        stored_size: Width and height in pixels, as stored.
        orientation: What its metadata state, 1 to 8 as in EXIF.
        channels: Number of its channels.
        suffix: The suffix for such files.
    """

    stored_size: tuple[int, int]
    orientation: int
    channels: int
    suffix: str

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        return turned_size(self.stored_size, self.orientation)

    def is_as_stored(self, size: tuple[int, int], name: str) -> bool:
        """Return whether annotations with a size mean the stored picture, not the upright one.

        Args:
            size: Width and height that the annotations give.
            name: What messages call the picture.

        Raises:
            UserError: The size is that of neither.
        """
        chosen = orientation_to_apply(self.stored_size, self.orientation, size)
        width, height = turned_size(self.stored_size, chosen)
        if (width, height) != size:
            raise UserError(
                f"{name} is {width}x{height} pixels, but its annotations say {size[0]}x{size[1]}"
            )
        return chosen != self.orientation


def read_header(path: Path, *, max_pixels: int = sys.maxsize) -> Header:
    """Read the header of a picture.

    Args:
        path: The file.
        max_pixels: Maximum number of pixels.

    Raises:
        UserError: The file is missing, damaged, no picture or too large.
    """
    called = str(path)
    try:
        stored = decode(path, called, max_pixels, load=False)
    except UnknownFormatError as error:
        if not is_tiff(path):
            raise UserError(str(error)) from None
        values, orientation = read_tiff(path, called, 0, max_pixels)
        height, width, channels = values.shape
        return Header((width, height), orientation, channels, ".tif")
    channels = len(stored.picture.getbands())
    return Header(stored.size, stored.orientation, channels, suffix_of(stored))
