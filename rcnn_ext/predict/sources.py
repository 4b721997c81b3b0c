"""From whatever ``predict`` is given to pictures, one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image
from torch import Tensor

from rcnn_ext.data.images import ImageReader, ReadList, find_images, naming_errors
from rcnn_ext.errors import UserError
from rcnn_ext.predict.pictures import (
    ArrayPicture,
    EncodedPicture,
    Picture,
    PictureFile,
    PillowPicture,
    TensorPicture,
)

Kind = Literal["one", "many", "stream"]

_EXPECTED = (
    "expected a path, a file:// URL, a folder, a pattern, a Pillow image, an array "
    "(height, width, channels), a tensor [channels, height, width], the bytes of a picture file, "
    "or several of these"
)


def open_pictures(
    images: Any,
    *,
    bgr: bool = False,
    read_list: ReadList | None = None,
    reader: ImageReader | None = None,
) -> tuple[Kind, Iterator[Picture | UserError]]:
    """Return the pictures that a value holds.

    Args:
        images: See :meth:`rcnn_ext.predict.predictor.Predictor.predict`.
        bgr: Whether arrays have their channels as blue, green, red.
        read_list: Gives the pictures and names of a list, which a file that ends in ``.csv`` is.
        reader: Reads files; None reads them with the usual options.

    Returns:
        Whether it is one picture, or many, or a stream of unknown length; and the pictures, or the
        errors in their places. What is given as an iterator is read only as the pictures are.

    Raises:
        UserError: Nothing can be read from such a value.
    """
    opener = _Opener(bgr, read_list, reader or ImageReader())
    if isinstance(images, list | tuple) or (
        isinstance(images, Iterable) and not opener.holds_pictures(images)
    ):
        stream = not hasattr(images, "__len__")
        return "stream" if stream else "many", opener.each(images, copy=stream)
    found = list(opener.of(images))
    return "one" if opener.is_one(images) else "many", iter(found)


class _Opener:
    """Make pictures of values, and number those that have no name."""

    def __init__(self, bgr: bool, read_list: ReadList | None, reader: ImageReader) -> None:
        self.reader = reader
        self.bgr = bgr
        self.read_list = read_list
        self.count = 0

    def each(self, images: Iterable[Any], *, copy: bool) -> Iterator[Picture | UserError]:
        """Yield the pictures of several values.

        Args:
            images: The values.
            copy: Whether to copy pixels, since who makes them one by one may use the memory again.
        """
        for value in images:
            if copy and isinstance(value, np.ndarray):
                value = value.copy()
            elif copy and isinstance(value, Tensor):
                value = value.clone()
            try:
                yield from self.of(value)
            except UserError as error:
                yield error

    @staticmethod
    def holds_pictures(value: Any) -> bool:
        """Return whether a value is a picture, or names some, rather than being a collection."""
        if isinstance(value, np.ndarray) and value.dtype.kind in "UO":
            return False  # an array of paths, such as a column of a table
        kinds = (str, Path, bytes, bytearray, memoryview, Image.Image, np.ndarray, Tensor, dict)
        return isinstance(value, kinds) or hasattr(value, "read") or hasattr(value, "__fspath__")

    @staticmethod
    def is_one(value: Any) -> bool:
        """Return whether a value that holds pictures is one by its kind, not by its content."""
        if isinstance(value, np.ndarray | Tensor):
            return value.ndim < 4
        if isinstance(value, str) or hasattr(value, "__fspath__"):
            path = path_of(value)
            return path.is_file() and path.suffix.lower() != ".csv"
        return True

    def of(self, value: Any) -> Iterator[Picture]:
        """Yield the pictures that one value holds.

        Raises:
            UserError: It is none, or does not exist.
        """
        if isinstance(value, str) or hasattr(value, "__fspath__"):
            for path, name in find_images([path_of(value)], self.read_list):
                self.count += 1
                yield PictureFile(path, name, self.reader)
        elif isinstance(value, np.ndarray | Tensor) and value.ndim == 4:
            for one in value:
                yield from self.of(one)
        else:
            self.count += 1
            yield self._in_memory(value, Path(f"image-{self.count}"))

    def _in_memory(self, value: Any, name: Path) -> Picture:
        if isinstance(value, Image.Image):
            file_name = getattr(value, "filename", "")
            path = Path(file_name) if isinstance(file_name, str) and file_name else None
            with naming_errors(str(path or name)):
                # Here and not in a thread: Pillow reads a file lazily, and an image may be given
                # twice.
                value.load()
            return PillowPicture(value, name if path is None else Path(path.name), path)
        if isinstance(value, np.ndarray):
            return ArrayPicture(value, self.bgr, name)
        if isinstance(value, Tensor):
            return TensorPicture(value, name)
        if isinstance(value, bytes | bytearray | memoryview):
            return EncodedPicture(bytes(value), name, reader=self.reader)
        if hasattr(value, "read"):
            content = value.read()
            if isinstance(content, bytes):
                return EncodedPicture(content, name, reader=self.reader)
            raise UserError(f"{name} is a file opened as text: open it with mode 'rb'")
        raise UserError(f"cannot take {_shown(value)} as a picture: {_EXPECTED}")


def path_of(value: Any) -> Path:
    """Return the path that text or a path-like value means.

    Raises:
        UserError: It is a URL of something else than a local file.
    """
    if not isinstance(value, str):
        return Path(value)
    if "://" not in value:
        return Path(value).expanduser()
    parts = urlsplit(value)
    if parts.scheme.lower() != "file" or parts.netloc not in ("", "localhost"):
        raise UserError(
            f"{value} is not on this machine: download it first; paths and file:// URLs are read"
        )
    return Path(url2pathname(parts.path))


def _shown(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
