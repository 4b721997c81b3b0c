"""The one reader of pictures: for checks, training, evaluation, detection and searches."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from rcnn_ext.config.data import DEFAULT_MAX_PIXELS
from rcnn_ext.data.images.decoding import (
    Source,
    Stored,
    UnknownFormatError,
    decode,
    is_tiff,
    naming_errors,
)
from rcnn_ext.data.images.orientation import (
    boxes_as_stored,
    orientation_to_apply,
    stored_orientation,
    turn_array,
    turn_picture,
    turned_size,
)
from rcnn_ext.data.images.tiff import read_tiff
from rcnn_ext.data.images.values import (
    bytes_of,
    declared_max,
    deep_values,
    picture_to_rgb,
    unit_values,
)
from rcnn_ext.errors import UserError

if TYPE_CHECKING:
    # Processes that only search do without it.
    import torch


def load_image(
    path: Source,
    size: tuple[int, int] | None = None,
    *,
    name: str | None = None,
    channels: int = 3,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_value: float | None = None,
) -> Image.Image:
    """Read a picture as RGB, upright; of several pages or frames, the first.

    Cameras store a turned picture and say so in its metadata; most annotation tools annotate it
    upright. Where ``size`` fits only the picture as stored, that is returned.

    Args:
        path: The file, or its content as a binary stream.
        size: Width and height the annotations say it has, in pixels.
        name: What messages call it; None: the path.
        channels: Channels of the tensors that :func:`load_tensor` makes of it. Where these are
            neither gray nor RGB, the first three are shown.
        max_pixels: Maximum number of pixels.
        max_value: Value of full intensity where there are more than 8 bits per channel; None finds
            it, see :mod:`rcnn_ext.data.images.values`.

    Raises:
        UserError: The file is missing, damaged, no picture, too large or of another size.
    """
    if channels not in (1, 3):
        array = load_array(
            path, size, channels=channels, name=name, max_pixels=max_pixels, max_value=max_value
        )
        shown = bytes_of(array[:, :, : 3 if channels > 2 else 1])
        return Image.fromarray(shown.squeeze(2) if shown.shape[2] == 1 else shown).convert("RGB")
    called = str(path) if name is None else name
    try:
        stored = decode(path, called, max_pixels, load=True)
    except UnknownFormatError as error:
        if not is_tiff(path):
            raise UserError(str(error)) from None
        values = _tiff_values(path, size, called, 3, max_pixels)
        gray = values.shape[2] == 1
        if not gray and values.shape[2] not in (3, 4):
            raise _wrong_channels(called, values.shape[2], 3) from None
        shown = bytes_of(unit_values(values[:, :, 0] if gray else values[:, :, :3], max_value))
        return Image.fromarray(shown).convert("RGB")
    picture, orientation = _oriented(stored, size, called)
    colors = picture_to_rgb(picture, max_value)
    if stored.deep_colors and (max_value is not None or _is_dark(colors)):
        low = np.asarray(decode(path, called, max_pixels, load=True, lower_bytes=True).picture)
        values = np.asarray(picture)[..., :3].astype(np.uint16) * 256 + low[..., :3]
        colors = Image.fromarray(bytes_of(unit_values(values, max_value)))
    return turn_picture(colors, orientation)


def load_array(
    path: Source,
    size: tuple[int, int] | None = None,
    *,
    channels: int = 3,
    name: str | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_value: float | None = None,
) -> np.ndarray:
    """Read a picture as an array, upright as :func:`load_image` does.

    Args:
        path: The file, or its content as a binary stream.
        size: Width and height the annotations say it has, in pixels.
        channels: 3 converts to RGB and 1 to gray; of another number the picture must have as many:
            the samples of a TIFF file, or its pages.
        name: What messages call it; None: the path.
        max_pixels: Maximum number of pixels.
        max_value: See :func:`load_image`.

    Returns:
        [H, W, channels]: uint8 for 3 channels, else float32 in [0, 1].

    Raises:
        UserError: The file is missing, damaged, no picture, too large, or of another size or number
            of channels.
    """
    if channels == 3:
        picture = load_image(path, size, name=name, max_pixels=max_pixels, max_value=max_value)
        return np.asarray(picture)
    called = str(path) if name is None else name
    stored: Stored | None = None
    try:
        stored = decode(path, called, max_pixels, load=True)
    except UnknownFormatError as error:
        if not is_tiff(path):
            raise UserError(str(error)) from None
    if stored is not None:
        picture, orientation = _oriented(stored, size, called)
        deep = deep_values(picture)
        declared = max_value or declared_max(picture)
        if channels == 1:
            gray = deep if deep is not None else np.asarray(_gray(picture))
            unit = unit_values(gray, declared if deep is not None else None)
            return turn_array(unit, orientation)[:, :, None]
        bands = len(picture.getbands()) if picture.mode != "P" else 3
        if bands == channels and not is_tiff(path):
            return turn_array(unit_values(np.asarray(picture)), orientation)
        if not is_tiff(path):
            raise _wrong_channels(called, bands, channels)
    values = _tiff_values(path, size, called, channels, max_pixels)
    if channels == 1 and values.shape[2] in (3, 4):
        values = values[:, :, :3].mean(axis=2, keepdims=True).astype(values.dtype)
    if values.shape[2] != channels:
        raise _wrong_channels(called, values.shape[2], channels)
    return unit_values(values, max_value)


def load_tensor(
    path: Source,
    size: tuple[int, int] | None = None,
    *,
    channels: int = 3,
    name: str | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_value: float | None = None,
) -> torch.Tensor:
    """Read a picture as a tensor, as :func:`load_array` does.

    Returns:
        [channels, H, W]: uint8 for 3 channels, else float32 in [0, 1].

    Raises:
        UserError: The file is missing, damaged, no picture, too large, or of another size or number
            of channels.
    """
    import torch

    array = load_array(
        path, size, channels=channels, name=name, max_pixels=max_pixels, max_value=max_value
    )
    return torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))


def load_mask(path: Source, *, name: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Read a picture whose values are numbers, such as those of instances, upright.

    Args:
        path: The file, or its content as a binary stream.
        name: What messages call it.
        max_pixels: Maximum number of pixels.

    Returns:
        [H, W] or [H, W, C], values as they are stored; of a palette the indices.

    Raises:
        UserError: The file is missing, damaged, no picture or too large.
    """
    stored = decode(path, name, max_pixels, load=True)
    return turn_array(np.asarray(stored.picture), stored.orientation)


def image_size(
    path: Source, *, name: str | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[int, int]:
    """Width and height of a picture, upright, from its header.

    Args:
        path: The file, or its content as a binary stream.
        name: What messages call it; None: the path.
        max_pixels: Maximum number of pixels.

    Raises:
        UserError: The file is missing, damaged, no picture or too large.
    """
    called = str(path) if name is None else name
    try:
        return decode(path, called, max_pixels, load=False).upright_size
    except UnknownFormatError as error:
        if not is_tiff(path):
            raise UserError(str(error)) from None
    values, orientation = read_tiff(path, called, 0, max_pixels)
    return turned_size((values.shape[1], values.shape[0]), orientation)


def upright_rgb(picture: Image.Image, name: str, max_value: float | None = None) -> Image.Image:
    """Return a Pillow image of any mode upright, as RGB, as :func:`load_image` reads its file.

    Args:
        picture: The image, which may be opened and not loaded yet.
        name: What messages call it.
        max_value: See :func:`load_image`.

    Raises:
        UserError: Its file is damaged.
    """
    with naming_errors(name):
        picture.load()
        return turn_picture(picture_to_rgb(picture, max_value), stored_orientation(picture))


def fitting_size(path: Source, size: tuple[int, int], name: str) -> tuple[int, int] | None:
    """Return ``size`` if it is that of a picture, upright or as stored; else None.

    Args:
        path: The file, or its content as a binary stream.
        size: Width and height in pixels.
        name: What messages call it.

    Raises:
        UserError: The picture is missing, damaged or no picture.
    """
    try:
        stored = decode(path, name, sys.maxsize, load=False)
    except UnknownFormatError:
        return None
    return size if size in (stored.size, stored.upright_size) else None


def boxes_as_annotated(boxes: np.ndarray, path: Source, size: tuple[int, int]) -> np.ndarray:
    """Move boxes of the upright picture to the pixels that its annotations mean.

    Args:
        boxes: [N, 4] (x1, y1, x2, y2), pixels of the upright picture.
        path: The picture, which can be read.
        size: Width and height that the annotations say it has.

    Returns:
        [N, 4] (x1, y1, x2, y2): ``boxes``, but where ``size`` fits only the picture as it is
        stored, pixels of that.
    """
    try:
        stored = decode(path, str(path), sys.maxsize, load=False)
    except UnknownFormatError:
        return boxes
    if orientation_to_apply(stored.size, stored.orientation, size) == stored.orientation:
        return boxes
    return boxes_as_stored(boxes, stored.orientation, stored.size)


def image_suffix(content: bytes, name: str) -> str:
    """Return the suffix for a file with the content of a picture that can be read."""
    try:
        return suffix_of(decode(io.BytesIO(content), name, sys.maxsize, load=False))
    except UnknownFormatError:
        return ".tif"


def suffix_of(stored: Stored) -> str:
    """Return the suffix for files in the format of a picture."""
    form = stored.picture.format or "PNG"
    return {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}.get(form, f".{form.lower()}")


def _is_dark(colors: Image.Image) -> bool:
    """Return whether the upper bytes of 16-bit values leave out two bits or more of 16."""
    return all(isinstance(pair, tuple) and pair[1] < 64 for pair in colors.getextrema())


def _oriented(stored: Stored, size: tuple[int, int] | None, called: str) -> tuple[Image.Image, int]:
    """Return the picture as stored and the orientation to apply to it."""
    orientation = _orientation(stored.size, stored.orientation, size, called)
    return stored.picture, orientation


def _orientation(
    stored: tuple[int, int], orientation: int, size: tuple[int, int] | None, called: str
) -> int:
    chosen = orientation_to_apply(stored, orientation, size)
    width, height = turned_size(stored, chosen)
    if size is not None and (width, height) != tuple(size):
        raise UserError(
            f"{called} is {width}x{height} pixels, but its annotations say {size[0]}x{size[1]}"
        )
    return chosen


def _tiff_values(
    path: Source, size: tuple[int, int] | None, called: str, channels: int, max_pixels: int
) -> np.ndarray:
    values, orientation = read_tiff(path, called, channels, max_pixels)
    stored = (values.shape[1], values.shape[0])
    return turn_array(values, _orientation(stored, orientation, size, called))


def _gray(picture: Image.Image) -> Image.Image:
    if picture.mode in ("1", "L"):
        return picture.convert("L")
    return picture_to_rgb(picture).convert("L")


def _wrong_channels(called: str, found: int, wanted: int) -> UserError:
    return UserError(
        f"{called} has {found} channels, but {wanted} are expected (data.channels={wanted}); a "
        f"model for such pictures is trained with data.channels={found}"
    )
