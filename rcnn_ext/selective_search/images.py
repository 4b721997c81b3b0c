"""Images as the searches accept and see them."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

# What a value is multiplied by to bring it to [0, 1], where the segmentation works.
UNIT = 1.0 / 255.0


def as_rgb(image: Any) -> np.ndarray:
    """Return an image as the native search takes it.

    Args:
        image: [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] array, or what NumPy makes one of, such as
            a Pillow image of any mode: uint8, uint16, or floats in [0, 1]. Gray becomes three equal
            channels, a fourth channel (alpha) is left out.

    Returns:
        [H, W, 3] contiguous array with values from 0 to 255: uint8 as it is, or float64.

    Raises:
        TypeError: Another dtype.
        ValueError: Another shape, no pixels, or floats that are NaN or outside [0, 1].
    """
    if isinstance(image, Image.Image) and image.mode not in ("L", "RGB", "RGBA"):
        # As arrays, palettes would be indices and CMYK inks.
        from rcnn_ext.data.images import picture_to_rgb

        image = picture_to_rgb(image)
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(
            "image: expected the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), "
            f"got {np.shape(image)}"
        )
    check_not_empty(array)
    if array.shape[2] == 1:
        array = np.broadcast_to(array, (*array.shape[:2], 3))
    array = array[:, :, :3]
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        # Whole values stay whole: 65535 is 255 x 257.
        return array.astype(np.float64, order="C") / 257.0
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"image: expected uint8, uint16 or floats in [0, 1], got {array.dtype}")
    values = array.astype(np.float64, order="C")
    # Written so that NaN does not pass.
    if not (values.min() >= 0.0 and values.max() <= 1.0):
        raise ValueError(
            "image: expected floats in [0, 1], "
            f"got values from {values.min():g} to {values.max():g}"
        )
    return values * 255.0


def check_not_empty(array: np.ndarray) -> None:
    """Refuse an image without pixels.

    Raises:
        ValueError: Height or width is 0.
    """
    if 0 in array.shape:
        raise ValueError(f"image: expected at least one pixel, got the shape {array.shape}")


def gaussian_weights(sigma: float) -> list[float]:
    """Return one half of a Gaussian kernel, truncated at 4 sigma, the middle weight first.

    NumPy computes it as it does for ``scipy.ndimage.gaussian_filter``: segmentations depend on its
    last bits.

    Args:
        sigma: Standard deviation in pixels; 0 leaves an image as it is.

    Returns:
        The weights at distances 0, 1, ... pixels.
    """
    if sigma <= 1e-15:
        return [1.0]
    radius = int(4.0 * sigma + 0.5)
    positions = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 / (sigma * sigma) * positions**2)
    weights = weights / weights.sum()
    return weights[radius:].tolist()
