"""TIFF files that Pillow cannot read: multispectral ones, and rare types of values."""

from __future__ import annotations

from typing import Any

import numpy as np

from rcnn_ext.data.images.decoding import Source, check_pixels, naming_errors
from rcnn_ext.errors import UserError


def read_tiff(
    source: Source, called: str, channels: int, max_pixels: int
) -> tuple[np.ndarray, int]:
    """Read the first picture of a TIFF file with ``tifffile``.

    Args:
        source: The file, or its content as a binary stream.
        called: What messages call it.
        channels: Number of channels expected: so many pages or planes are the channels of one
            picture. Otherwise the first page is the picture.
        max_pixels: Maximum number of pixels.

    Returns:
        The values [H, W, C] of any type, as stored, and the orientation, 1 to 8.

    Raises:
        UserError: The file is damaged or too large, or ``tifffile`` is missing.
    """
    try:
        import tifffile
    except ModuleNotFoundError:
        raise UserError(
            f"{called} is a TIFF file of a kind that needs tifffile: pip install 'rcnn-ext[tiff]'"
        ) from None
    with naming_errors(called):
        if not isinstance(source, str) and hasattr(source, "seek"):
            source.seek(0)
        with tifffile.TiffFile(source) as file:
            page: Any = file.pages[0]
            series: Any = file.series[0]
            check_pixels((page.imagewidth, page.imagelength), called, max_pixels)
            tag = page.tags.get(274)
            value = getattr(tag, "value", 1)
            orientation = int(value) if isinstance(value, int) and 1 <= value <= 8 else 1
            if _is_one_picture(series, page, channels):
                values, axes = series.asarray(), series.axes
            else:
                values, axes = page.asarray(), page.axes
    if np.iscomplexobj(values):
        raise UserError(f"{called} has complex values, which are no intensities")
    return _as_hwc(values, axes), orientation


def _is_one_picture(series: Any, page: Any, channels: int) -> bool:
    """Return whether the pages of a file are the channels of one picture."""
    extra = [
        length
        for axis, length in zip(series.axes, series.shape, strict=True)
        if axis not in "YXS" and length > 1
    ]
    return extra == [channels] and page.samplesperpixel == 1


def _as_hwc(values: np.ndarray, axes: str) -> np.ndarray:
    """Return an array of any order of axes as [H, W, C]."""
    kept = [index for index, axis in enumerate(axes) if axis in "YX"]
    others = [
        index for index, axis in enumerate(axes) if axis not in "YX" and values.shape[index] > 1
    ]
    single = [index for index in range(values.ndim) if index not in (*kept, *others)]
    ordered = values.transpose(*kept, *others, *single)
    height, width = ordered.shape[:2]
    return ordered.reshape(height, width, -1)
