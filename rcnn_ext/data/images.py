"""Reading pictures from disk."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from rcnn_ext.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def load_image(
    path: Path | str | BinaryIO, size: tuple[int, int] | None = None, *, name: str | None = None
) -> Image.Image:
    """Read a picture as RGB, upright.

    Cameras store a turned picture and say so in its EXIF data; most annotation tools annotate it
    upright. Where ``size`` fits only the picture as stored, that is returned.

    Args:
        path: The file, or its content as a binary stream.
        size: Width and height the annotations say it has, in pixels.
        name: What messages call it; None: the path.

    Raises:
        UserError: The file is missing, damaged, no picture, or of another size.
    """
    shown = path if name is None else name
    called = f"the image {path}" if name is None else name
    try:
        with Image.open(path) as opened:
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            picture = opened if size == opened.size else upright
            if size is not None and picture.size != size:
                raise UserError(
                    f"{shown} is {picture.width}x{picture.height} pixels, "
                    f"but its annotations say {size[0]}x{size[1]}"
                )
            if picture.mode.startswith("I;16"):
                # Pillow would cut 16-bit values at 255 instead of scaling them.
                picture = picture.convert("I").point(lambda value: value / 257).convert("L")
            return picture.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{called} does not exist") from None
    except UnidentifiedImageError:
        raise UserError(f"{shown} is not an image that Pillow can read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for broken PNG chunks.
        raise UserError(f"{called} is damaged: {error}") from error


def image_size(path: Path | str) -> tuple[int, int]:
    """Width and height of a picture, upright, from its header.

    Raises:
        UserError: The file is missing, damaged or no picture.
    """
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            # Values 5 to 8 of the EXIF tag Orientation (0x0112) swap the sides.
            turned = opened.getexif().get(0x0112, 1) >= 5
            return (height, width) if turned else (width, height)
    except FileNotFoundError:
        raise UserError(f"the image {path} does not exist") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not an image that Pillow can read: {error}") from error


def numeric_ids(stems: Sequence[str]) -> list[int]:
    """Ids for images that have none: the number in their names where that tells them apart.

    Args:
        stems: File names without suffix.

    Returns:
        The digits of each name as a number (``000009`` is 9 and ``2008_000002`` is 2008000002) if
        these differ, else 1, 2, ...
    """
    digits = ["".join(c for c in stem if c in "0123456789")[-18:] for stem in stems]
    numbers = [int(text) for text in digits if text]
    if len(set(numbers)) == len(stems):
        return numbers
    return list(range(1, len(stems) + 1))


def find_images(
    sources: Iterable[Path | str],
    read_list: Callable[[Path], list[tuple[Path, Path]]] | None = None,
) -> list[tuple[Path, Path]]:
    """List pictures: each file that is named, and all below each folder that is named.

    Args:
        sources: Files, folders, and patterns such as ``film/frame_*.png`` (``**`` for any folders).
        read_list: Gives the pictures and names of a list, which a source that ends in ``.csv`` is;
            None: there are no lists.

    Returns:
        Each picture's path, and its path relative to the folder that led to it (for a file: its
        name), under which results about it can be stored. Folders are listed in sorted order, with
        numbers by their value: frame 9 comes before frame 10. A picture that is reached twice is
        listed once.

    Raises:
        UserError: A source does not exist, or there is no picture at all.
    """
    sources = list(sources)
    found: dict[Path, tuple[Path, Path]] = {}
    for source in map(Path, sources):
        if source.is_dir():
            pairs = [(path, path.relative_to(source)) for path in _pictures(source.rglob("*"))]
        elif read_list is not None and source.suffix.lower() == ".csv":
            pairs = read_list(source)
        elif source.is_file():
            pairs = [(source, Path(source.name))]
        elif glob.has_magic(str(source)):
            matches = glob.iglob(str(source), recursive=True)
            pairs = [(path, Path(path.name)) for path in _pictures(map(Path, matches))]
        else:
            raise UserError(f"{source} does not exist: name images or folders of images")
        for path, relative in pairs:
            found.setdefault(path.resolve(), (path, relative))
    if not found:
        names = ", ".join(str(source) for source in sources)
        raise UserError(f"no images in {names} (looked for {', '.join(IMAGE_SUFFIXES)})")
    return list(found.values())


def _pictures(paths: Iterable[Path]) -> list[Path]:
    """Those that are pictures, sorted, with numbers by their value."""
    pictures = (p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())

    def key(path: Path) -> list[tuple[int, int, str]]:
        # Numbers sort before text, as digits do before letters.
        parts = re.split(r"([0-9]+)", str(path))
        return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts if part]

    return sorted(pictures, key=key)
