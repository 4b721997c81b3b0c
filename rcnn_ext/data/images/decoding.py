"""Open and decode picture files with Pillow, whatever is wrong with them."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from rcnn_ext.data.images.metadata import without_metadata
from rcnn_ext.data.images.orientation import stored_orientation, turned_size
from rcnn_ext.errors import UserError

Source = Path | str | BinaryIO

# Formats that are read. Of Pillow's others some run programs (EPS), and some hold pictures of other
# sizes than they state first. Those that are recognized by little come last.
_FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "AVIF", "HEIF"),
    *("JPEG2000", "PSD", "QOI", "SGI", "SUN", "DDS", "PCX", "TGA"),
)

# How files of iPhones begin; the last ones may be AVIF as well.
_SHARED_BRANDS = (b"mif1", b"msf1")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", *_SHARED_BRANDS)
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Stored:
    """A picture as it is stored.

    Attributes:
        picture: The picture; loaded if that was asked for.
        size: Width and height as stored.
        orientation: What brings it upright, 1 to 8.
        deep_colors: Whether the file has 16 bits per color, of which ``picture`` has the upper 8.
    """

    picture: Image.Image
    size: tuple[int, int]
    orientation: int
    deep_colors: bool = False

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height when it is upright."""
        return turned_size(self.size, self.orientation)


class UnknownFormatError(UserError):
    """The content of a file is in no format that Pillow reads."""


def decode(
    source: Source, called: str, max_pixels: int, *, load: bool, lower_bytes: bool = False
) -> Stored:
    """Open a picture, and load its pixels.

    Broken metadata are left out: they never decide whether a picture can be read.

    Args:
        source: The file, or its content as a binary stream.
        called: What messages call it.
        max_pixels: Maximum number of pixels.
        load: Whether to load the pixels, or only the header.
        lower_bytes: Whether to load the lower 8 bits of deep colors rather than the upper.

    Raises:
        UserError: The file is missing, damaged, no picture, or too large.
    """
    with naming_errors(called):
        if isinstance(source, (str, Path)) and not stat.S_ISREG(os.stat(source).st_mode):
            raise UserError(f"{called} is no file but a folder or a device")
        try:
            return _attempt(source, called, max_pixels, load, lower_bytes)
        except (UserError, MemoryError, FileNotFoundError, PermissionError):
            raise
        except Exception:
            # Broken metadata stop some of Pillow's readers.
            plain = without_metadata(content_of(source))
            with contextlib.suppress(Exception):
                if plain is not None:
                    return _attempt(io.BytesIO(plain), called, max_pixels, load, lower_bytes)
            raise


def _attempt(source: Source, called: str, max_pixels: int, load: bool, lower_bytes: bool) -> Stored:
    if not isinstance(source, (str, Path)):
        source.seek(0)
    formats = _formats(source, called)
    with _pillow_limit_lifted(), Image.open(source, formats=formats) as opened:
        orientation = stored_orientation(opened)
        size = opened.size
        if hasattr(opened, "tag_v2"):
            # Pillow gives a TIFF file its upright size, and turns its pixels at the end of loading.
            size = turned_size(size, orientation)
        check_pixels(size, called, max_pixels)
        if not load:
            return Stored(opened, size, orientation)
        if hasattr(opened, "tag_v2"):
            opened.load_end = lambda: None  # type: ignore[method-assign]
        deep_colors = opened.mode in ("RGB", "RGBA") and any(map(_raw_mode, opened.tile))
        if deep_colors and lower_bytes:
            opened.tile = [_with_other_byte(tile) for tile in opened.tile]
        try:
            opened.load()
        except ValueError:
            if hasattr(opened, "tag_v2"):
                # Pillow knows the header, but not this arrangement of values.
                raise UnidentifiedImageError from None
            raise
        picture: Image.Image = opened
        if hasattr(opened, "tag_v2") and orientation >= 5:
            # A copy has the size of the pixels.
            picture = opened.copy()
            picture.tag_v2 = opened.tag_v2  # type: ignore[attr-defined]
        return Stored(picture, size, orientation, deep_colors)


def _raw_mode(tile: Any) -> str | None:
    """Return the mode of 16 bits per color that a tile is stored in; None for others."""
    mode = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return mode if isinstance(mode, str) and mode[-4:-1] == ";16" else None


def _with_other_byte(tile: Any) -> Any:
    """Return a tile by which Pillow takes the other byte of each value than it would."""
    mode = _raw_mode(tile)
    assert mode is not None
    last = mode[-1] if mode[-1] != "N" else sys.byteorder[0].upper()
    other = mode[:-1] + {"B": "L", "L": "B"}[last]
    args = (other, *tile.args[1:]) if isinstance(tile.args, tuple) else other
    return tile._replace(args=args)


def check_pixels(size: tuple[int, int], called: str, max_pixels: int) -> None:
    """Refuse a picture with too many pixels.

    Raises:
        UserError: It has more than ``max_pixels``; the message names the option that allows it.
    """
    pixels = size[0] * size[1]
    if pixels > max_pixels:
        raise UserError(
            f"{called} is {size[0]}x{size[1]} pixels, {pixels:,} in all; pictures of more than "
            f"{max_pixels:,} are not read: cut it into parts, or set data.max_pixels={pixels} "
            f"(detect: --max-pixels {pixels})"
        )
    if pixels <= 0:
        raise UserError(f"{called} has no pixels: it is {size[0]}x{size[1]}")


@contextlib.contextmanager
def naming_errors(called: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a :class:`UserError` that names the picture."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{called} does not exist") from None
    except UnidentifiedImageError:
        raise UnknownFormatError(f"{called} is not an image that Pillow can read") from None
    except MemoryError:
        raise UserError(f"{called} needs more memory than there is") from None
    except OSError as error:
        if error.strerror is None:
            raise UserError(f"{called} is damaged: {error}") from error
        raise UserError(f"{called} cannot be read: {error.strerror}") from error
    except Exception as error:
        # Each decoder has exceptions of its own, such as SyntaxError for PNG chunks.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{called} is damaged: {reason}") from error


def content_of(source: Source, size: int = -1) -> bytes:
    """Return the first bytes of a file, or all of them."""
    if isinstance(source, (str, Path)):
        with open(source, "rb") as file:
            return file.read(size)
    source.seek(0)
    content = source.read(size)
    source.seek(0)
    return content


def is_tiff(source: Source) -> bool:
    """Return whether a file begins as a TIFF file."""
    return content_of(source, 4) in _TIFF_MAGIC


def _formats(source: Source, called: str) -> list[str]:
    """Return the formats to try; those of iPhones need a package that is loaded when needed."""
    Image.preinit()
    head = content_of(source, 12)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and "HEIF" not in Image.OPEN:
        try:
            import pillow_heif
        except ModuleNotFoundError:
            if head[8:12] not in _SHARED_BRANDS:
                raise UserError(
                    f"{called} is a HEIC picture, which needs pillow-heif: "
                    "pip install 'rcnn-ext[heif]', or save it as JPEG"
                ) from None
        else:
            pillow_heif.register_heif_opener()
    if any(name not in Image.OPEN for name in _FORMATS):
        Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


_lock = threading.Lock()
_readers = 0
_pillow_limit: int | None = None


@contextlib.contextmanager
def _pillow_limit_lifted() -> Iterator[None]:
    """Lift Pillow's limit of pixels, which is one for the whole process, while any thread reads."""
    global _readers, _pillow_limit
    with _lock:
        if _readers == 0:
            _pillow_limit = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = None
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                Image.MAX_IMAGE_PIXELS = _pillow_limit
