"""Finding the pictures among files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rcnn_ext.errors import UserError

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
            pairs = [(path, path.relative_to(source)) for path in pictures_below(source)]
        elif read_list is not None and source.suffix.lower() == ".csv":
            pairs = read_list(source)
        elif source.is_file():
            pairs = [(source, Path(source.name))]
        elif glob.has_magic(str(source)):
            matches = glob.iglob(str(source), recursive=True)
            pairs = [(path, Path(path.name)) for path in _pictures(map(Path, matches))]
        elif source.exists():
            raise UserError(f"{source} is no file but a device: name images or folders of images")
        else:
            raise UserError(f"{source} does not exist: name images or folders of images")
        for path, relative in pairs:
            found.setdefault(path.resolve(), (path, relative))
    if not found:
        names = ", ".join(str(source) for source in sources)
        raise UserError(f"no images in {names} (looked for {', '.join(IMAGE_SUFFIXES[:12])}, ...)")
    return list(found.values())


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
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return _MAGIC.match(file.read(16)) is not None
    except OSError:
        return False


def pictures_below(folder: Path) -> list[Path]:
    """List the pictures in a folder and all below it, sorted, with numbers by their value.

    Raises:
        UserError: A folder cannot be read.
    """
    return _pictures(_files_below(folder))


def _files_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        if "__MACOSX" in folders:
            folders.remove("__MACOSX")
        yield from (Path(parent, name) for name in names)


def _pictures(paths: Iterable[Path]) -> list[Path]:
    """Those that are pictures, sorted, with numbers by their value."""

    def key(path: Path) -> list[tuple[int, int, str]]:
        # Numbers sort before text, as digits do before letters.
        parts = re.split(r"([0-9]+)", str(path))
        return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts if part]

    return sorted(filter(is_picture, paths), key=key)
