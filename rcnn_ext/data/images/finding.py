"""Finding the pictures among files."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from rcnn_ext.errors import UserError
from rcnn_ext.files import read_head

ReadList = Callable[[Path], list[tuple[Path, Path]]]

# Suffixes of pictures, the most frequent first, in lower case. Those at the end are of formats that
# need further packages or are not read: such a file is listed and then named, never passed over.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".jfif", ".jpe", ".jfi", ".jif", ".gif", ".avif", ".avifs", ".mpo", ".apng", ".dib"),
    *(".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
    *(".tga", ".qoi", ".dds", ".pcx", ".psd", ".sgi", ".rgb", ".rgba", ".bw", ".ras"),
    *(".heic", ".heif", ".hif", ".jxl", ".exr", ".hdr", ".svg", ".ico"),
    *(".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2", ".dcm"),
)

# Suffixes of files that are often beside pictures and are none.
_OTHER_SUFFIXES = frozenset(
    (
        *(".txt", ".xml", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".md", ".html"),
        *(".py", ".ipynb", ".sh", ".log", ".zip", ".tar", ".gz", ".npy", ".npz", ".mat", ".pkl"),
        *(".cache", ".db", ".ini", ".names", ".data", ".mp4", ".avi", ".mov", ".mkv", ".parquet"),
        *(".tfrecord", ".pdf", ".pt", ".pth", ".ckpt", ".safetensors", ".onnx"),
    )
)

# How pictures begin, whatever their names end in.
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP|BM....\0\0\0\0"
    rb"|....ftyp(avi[fs]|hei[cxms]|hev[cx]|mif1|msf1)|\0\0\0\x0cjP  |\xff\x0a"
    rb"|\0\0\0\x0cJXL |qoif|8BPS|P[1-6]\s",
    re.DOTALL,
)

# macOS puts such files, with metadata, beside those that it copies to other disks.
_APPLE_DOUBLE = "._"


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


class PictureList(Sequence[tuple[Path, Path]]):
    """Pictures by path and name, without an object for each: there may be millions.

    The items are pairs as of :func:`find_images`.
    """

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._named: dict[int, str] = {}
        # Most names are ends of paths. Where one begins, or -1.
        self._starts = array("i")

    def append(self, path: str, name: str) -> None:
        """Add a picture."""
        if path.endswith(name):
            self._starts.append(len(path) - len(name))
        else:
            self._starts.append(-1)
            self._named[len(self._paths)] = name
        self._paths.append(path)

    def path(self, index: int) -> str:
        """Return the path of a picture."""
        return self._paths[index]

    def name(self, index: int) -> str:
        """Return the name of a picture."""
        start = self._starts[index]
        return self._named[index] if start < 0 else self._paths[index][start:]

    def without(self, unwanted: Callable[[str], bool]) -> PictureList:
        """Return the list without the paths for which a function returns true."""
        rest = PictureList()
        for index, path in enumerate(self._paths):
            if not unwanted(path):
                rest.append(path, self.name(index))
        return rest

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> tuple[Path, Path]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[Path, Path]]: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return Path(self.path(index)), Path(self.name(index))


def find_images(
    sources: Iterable[Path | str], read_list: ReadList | None = None
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
    return list(list_images(sources, read_list))


def list_images(sources: Iterable[Path | str], read_list: ReadList | None = None) -> PictureList:
    """Return what :func:`find_images` does, in less memory.

    Raises:
        UserError: A source does not exist, or there is no picture at all.
    """
    sources = list(sources)
    found = PictureList()
    # Hashes, since real paths would take as much memory as the list.
    seen: set[bytes] = set()
    for source in map(Path, sources):
        for path, name in _pictures_of(source, read_list):
            real = os.fsencode(os.path.realpath(path))
            identity = hashlib.blake2b(real, digest_size=12).digest()
            if identity not in seen:
                seen.add(identity)
                found.append(path, name)
    if not found:
        names = ", ".join(str(source) for source in sources)
        raise UserError(f"no images in {names} (looked for {', '.join(IMAGE_SUFFIXES[:12])}, ...)")
    return found


def _pictures_of(source: Path, read_list: ReadList | None) -> Iterator[tuple[str, str]]:
    """Yield the paths and names of the pictures that a source holds.

    Raises:
        UserError: It does not exist.
    """
    if source.is_dir():
        for path in _sorted_pictures(files_below(source)):
            yield path, os.path.relpath(path, source)
    elif read_list is not None and source.suffix.lower() == ".csv":
        for listed, name in read_list(source):
            yield str(listed), str(name)
    elif source.is_file():
        yield str(source), source.name
    elif glob.has_magic(str(source)):
        for path in _sorted_pictures(glob.iglob(str(source), recursive=True)):
            yield path, os.path.basename(path)
    elif source.exists():
        raise UserError(f"{source} is no file but a device: name images or folders of images")
    else:
        raise UserError(f"{source} does not exist: name images or folders of images")


def is_picture(path: Path) -> bool:
    """Return whether a file is a picture, by its suffix or else by its first bytes.

    Suffixes count in any case. Files without a suffix, and with one that says nothing, are looked
    into, so that none is passed over for its name.
    """
    if path.name.startswith(_APPLE_DOUBLE):
        return False
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in _OTHER_SUFFIXES:
        return suffix in IMAGE_SUFFIXES and path.is_file()
    if path.name.startswith("."):
        return False
    return _MAGIC.match(read_head(path, 16)) is not None


def pictures_below(folder: Path) -> list[Path]:
    """List the pictures in a folder and all below it, sorted, with numbers by their value.

    Raises:
        UserError: A folder cannot be read.
    """
    return [Path(path) for path in _sorted_pictures(files_below(folder))]


def files_below(folder: Path) -> Iterator[str]:
    """Yield the files in a folder and all below it.

    Raises:
        UserError: A folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        if "__MACOSX" in folders:
            folders.remove("__MACOSX")
        yield from (os.path.join(parent, name) for name in names)


def _sorted_pictures(paths: Iterable[str]) -> list[str]:
    """Those that are pictures, sorted, with numbers by their value."""
    return sorted((path for path in paths if is_picture(Path(path))), key=natural_key)


def natural_key(path: str) -> str:
    """Return a text by whose order numbers are sorted by value, and before other text."""

    def by_value(match: re.Match[str]) -> str:
        digits = match[0].lstrip("0")
        # The number of digits comes first: 9 before 10. NUL is in no path. Of equal numbers the
        # one with more zeros in front comes first.
        return f"\0{len(digits):04d}{digits}{9999 - len(match[0]):04d}"

    return re.sub(r"[0-9]+", by_value, path)
