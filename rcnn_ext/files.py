"""Files that are written atomically: whole or not at all.

A run that is killed in the middle of a write must not leave half a checkpoint, half a JSON or half
a data set behind: each writer here fills a temporary file or folder next to the target and renames
it, which POSIX and Windows both do in one step.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rcnn_ext.errors import UserError

_MAX_TEMPORARY_NAME = 200
_RANDOM_BYTES = 4


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends without an exception.

    The temporary name keeps the suffix of ``path``, since Pillow and matplotlib choose the format
    by it.

    Args:
        path: The file to write; its folder is created if missing.
        sync: Whether to wait until contents and name are on disk, so that a power loss leaves the
            old file or the new one too.

    Yields:
        The temporary path.

    Raises:
        UserError: The folder or the file cannot be written; the message names ``path``.
    """
    make_folder(path.parent)
    prefix, suffix = _temporary_affixes(path)
    temporary = _unused_name(path.parent, prefix, suffix)
    name = str(temporary)
    try:
        # With the mode of an ordinary file, of which the system takes the umask: to ask for that
        # means to change it for a moment, in all threads.
        os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield temporary
        if sync:
            # Without it, the rename may reach the disk before the contents.
            _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
        if sync and os.name == "posix":
            _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        # Errors of writing, such as of a full disk, name no file; those of other files do.
        if error.filename not in (None, name):
            raise
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def temporaries_of(path: Path) -> list[Path]:
    """Return what :func:`replacing` left beside a file when its process was killed."""
    prefix, suffix = (glob.escape(part) for part in _temporary_affixes(path))
    return sorted(path.parent.glob(f"{prefix}{'?' * 2 * _RANDOM_BYTES}{suffix}"))


def _temporary_affixes(path: Path) -> tuple[str, str]:
    """Return how temporary names for a file begin and end; they are not much longer than it."""
    stem, suffix = path.stem, path.suffix
    # File systems take names of up to 255 bytes, and this adds 10.
    while len(os.fsencode(stem + suffix)) > _MAX_TEMPORARY_NAME and len(stem) > 1:
        stem = stem[:-1]
    return f".{stem}-", suffix


@contextmanager
def replacing_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends without an exception.

    Args:
        path: The folder to write.
        overwrite: Whether ``path`` may hold something, which is removed when all is written; else
            it must not exist or be empty.

    Yields:
        The temporary folder.

    Raises:
        UserError: The parent folder cannot be created.
    """
    make_folder(path.parent)
    temporary = _make_temporary_folder(path)
    try:
        yield temporary
        if overwrite and path.is_dir() and any(path.iterdir()):
            _exchange(temporary, path)
        else:
            if path.is_dir():
                path.rmdir()
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_temporary_folder(path: Path) -> Path:
    temporary = _unused_name(path.parent, *_temporary_affixes(path))
    try:
        temporary.mkdir()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return temporary


def _unused_name(folder: Path, prefix: str, suffix: str) -> Path:
    """Return the path of a temporary file or folder, as no other process takes it."""
    return folder / f"{prefix}{secrets.token_hex(_RANDOM_BYTES)}{suffix}"


def _exchange(new: Path, path: Path) -> None:
    """Put a folder in the place of another, which is removed."""
    aside = _make_temporary_folder(path)
    old = aside / "old"
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def make_folder(path: Path) -> Path:
    """Create a folder and its parents.

    Returns:
        The folder.

    Raises:
        UserError: The folder cannot be created; the message gives the reason in one line.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from error
    return path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; what is no text of Unicode in names of files is escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically.

    Raises:
        ValueError: ``value`` contains NaN or infinity, which are not JSON.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_head(path: Path, count: int = -1) -> bytes:
    """Return the beginning of a file, for telling what it is.

    Args:
        path: The file.
        count: Number of bytes; all where it is negative.

    Returns:
        The bytes; none where it is no regular file or cannot be read. Pipes and devices are not
        opened: that would wait for a writer, or never end.
    """
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file is missing, unreadable or not JSON; the message has the line and column.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file")
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#04x} at offset {error.start}"
        raise UserError(f"{path} is not valid JSON: {byte} is not {error.encoding} text") from None
    except RecursionError:
        raise UserError(f"{path} is not JSON to read: lists are nested too deeply") from None
    except ValueError:
        # Python converts whole numbers of at most 4300 digits.
        raise UserError(f"{path} is not JSON to read: a number has too many digits") from None


def file_key(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the size of a file in bytes and its time of change in nanoseconds; -1 if missing."""
    try:
        stat = os.stat(path)
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def file_hash(path: Path) -> str:
    """Return the first 16 digits of the SHA-256 of a file.

    Raises:
        UserError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()[:16]


def _sync(path: Path, flags: int) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
