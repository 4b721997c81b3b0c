"""TIFF files beyond the limit of pixels, whose pixels stay on the disk until a tile needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcnn_ext.data.images.decoding import is_tiff, naming_errors
from rcnn_ext.errors import UserError
from rcnn_ext.predict.pictures import Picture, PictureFile

_EXPECTED = "only upright 8-bit ones with 1, 3 or 4 channels per pixel are searched tile by tile"
_INTERLEAVED = 1
_UPRIGHT = 1


@dataclass(frozen=True)
class MappedFile:
    """A picture file that is mapped into memory where it is too large to be read.

    Attributes:
        file: The file; its reader has the limit.
    """

    file: PictureFile

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def name(self) -> Path:
        """Name of the picture in results."""
        return self.file.name

    def decode(self, channels: int) -> tuple[Tensor, Image.Image | None]:
        """Read the file, upright; map its pixels if it is a TIFF file beyond the limit.

        A file that is compressed is decoded, part by part, into a temporary file, which is mapped.
        """
        path, called = self.path, str(self.path)
        with naming_errors(called):
            tiff = is_tiff(path)
        if not tiff:
            return self.file.decode(channels)
        try:
            import tifffile
        except ModuleNotFoundError:
            return self.file.decode(channels)  # Names the limit where that is passed.
        with naming_errors(called), tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            if page.imagewidth * page.imagelength > self.file.reader.max_pixels:
                return _mapped_pixels(page, path, channels), None
        return self.file.decode(channels)

    def picture(self) -> Image.Image:
        """Read the file, upright, as RGB; refused beyond the limit."""
        return self.file.picture()


def mapped(picture: Picture | UserError) -> Picture | UserError:
    """Return a picture, mapped into memory if it is a file that is too large to be read."""
    return MappedFile(picture) if isinstance(picture, PictureFile) else picture


def _mapped_pixels(page: Any, path: Path, channels: int) -> Tensor:
    """Return the pixels of a page as a view [``channels``, H, W] of a mapped file.

    Raises:
        UserError: Its pixels would have to be converted.
    """
    size = f"{page.imagewidth}x{page.imagelength}"
    orientation = getattr(page.tags.get(274), "value", _UPRIGHT)
    given = page.samplesperpixel
    fits = given == channels or (channels == 3 and given in (1, 4))
    if (
        page.dtype != np.uint8
        or orientation != _UPRIGHT
        or not fits
        or (given > 1 and page.planarconfig != _INTERLEAVED)
        or page.photometric.name not in ("MINISBLACK", "RGB", "YCBCR")
    ):
        raise UserError(
            f"{path} is {size} pixels of {given} x {page.dtype}, too many to be read at once; "
            f"{_EXPECTED}: convert it, or set data.max_pixels"
        )
    if page.is_memmappable:
        # Copied on write, which does not happen: PyTorch has no tensors that cannot be written.
        values = np.memmap(path, np.uint8, "c", page.dataoffsets[0], page.shape)
    else:
        values = page.asarray(out="memmap")
    pixels = torch.from_numpy(values.reshape(*values.shape[:2], -1)).permute(2, 0, 1)
    return pixels[:channels].expand(channels, -1, -1)
