"""From the values of a picture, of whatever type, to intensities: the rule that keeps contrast.

Values of 8 bits are taken as they are, and of 16-bit RGB the upper 8 where that leaves out less
than two bits. For other deep ones full intensity (white) is, in this order,

1. ``max_value``, where the caller gives it;
2. the maximum that the format states (PGM and PPM);
3. for floats within 0 and 1: 1;
4. for whole numbers from 0: the smallest of 1, 8, 10, 12, 14 and 16 bits that holds the largest
   value of the file, since cameras and microscopes store 12 bits in 16; signed types of 8 and 16
   bits have one bit less;
5. for others (negative, larger, fractional): the file's maximum, and black is its minimum.

NaN is black and infinities are the ends of the range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

_BIT_DEPTHS = (1, 8, 10, 12, 14, 16)
_DEEP = ("I", "F")

# Types of integers by TIFF's tags BitsPerSample and SampleFormat.
_TIFF_TYPES: dict[object, type[np.integer[Any]]] = {
    ((16,), (2,)): np.int16,
    ((32,), (1,)): np.uint32,
}


def unit_values(values: np.ndarray, max_value: float | None = None) -> np.ndarray:
    """Bring values to [0, 1] by the rule above.

    Args:
        values: Numbers of any type and shape.
        max_value: Value of full intensity; None finds it.

    Returns:
        float32, of the same shape.
    """
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    low, high = 0.0, max_value
    if high is None and values.dtype == np.uint8:
        high = 255.0
    if high is None:
        low, high = _range_of(values)
    scaled = values.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled -= low
        scaled /= max(high - low, np.finfo(np.float64).tiny)
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=1.0, neginf=0.0)
    return scaled.clip(0.0, 1.0).astype(np.float32)


def _range_of(values: np.ndarray) -> tuple[float, float]:
    """Return the values of black and white."""
    floating = np.issubdtype(values.dtype, np.floating)
    finite = values[np.isfinite(values)] if floating else values
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if floating and low >= 0 and high <= 1:
        return 0.0, 1.0
    if low >= 0 and (not floating or bool((finite == np.floor(finite)).all())):
        most = float("inf") if floating else float(np.iinfo(values.dtype).max)
        for bits in _BIT_DEPTHS:
            if high <= 2**bits - 1:
                return 0.0, min(float(2**bits - 1), most)
    return low, high


def bytes_of(unit: np.ndarray) -> np.ndarray:
    """Return float values in [0, 1] as uint8, rounded."""
    return np.rint(unit * 255.0).astype(np.uint8)


def deep_values(picture: Image.Image) -> np.ndarray | None:
    """Return the values [H, W] of a picture with more than 8 bits; None for others."""
    if picture.mode not in _DEEP and not picture.mode.startswith("I;"):
        return None
    values = np.asarray(picture)
    tags = getattr(picture, "tag_v2", None)
    if tags is None or picture.mode != "I":
        return values
    # Pillow reads all integers of a TIFF file as signed ones of 32 bits.
    stored = _TIFF_TYPES.get((tags.get(258, (0,)), tags.get(339, (1,))))
    return values if stored is None else values.astype(stored)


def declared_max(picture: Image.Image) -> float | None:
    """Return the value of white that the file states, as Pillow scales it; None if none."""
    return 65535.0 if picture.format == "PPM" and picture.mode == "I" else None


def picture_to_rgb(picture: Image.Image, max_value: float | None = None) -> Image.Image:
    """Convert a picture of any mode to RGB, with its contrast.

    Args:
        picture: The picture, loaded.
        max_value: Value of full intensity of deep pictures; None finds it.

    Returns:
        The picture in RGB. Transparency is dropped, and colors below it show; where the contrast is
        in the transparency alone, it is drawn on white.
    """
    values = deep_values(picture)
    if values is not None:
        gray = bytes_of(unit_values(values, max_value or declared_max(picture)))
        return Image.fromarray(gray).convert("RGB")
    if picture.mode == "PA" or (picture.mode == "P" and "transparency" in picture.info):
        picture = picture.convert("RGBA")
    elif "transparency" in picture.info:
        # A color that counts as transparent; it stays what it is.
        picture = picture.copy()
        del picture.info["transparency"]
    colors = picture.convert("RGB")
    if picture.mode in ("LA", "RGBA") and _constant(colors):
        alpha = picture.getchannel("A")
        if not _constant(alpha):
            white = Image.new("RGB", picture.size, (255, 255, 255))
            white.paste(colors, mask=alpha)
            return white
    return colors


def _constant(picture: Image.Image) -> bool:
    extrema = picture.getextrema()
    pairs = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(low == high for low, high in pairs)
