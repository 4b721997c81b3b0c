"""Files of JSON lines that one process writes as it goes, and that survive its death."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rcnn_ext.errors import UserError
from rcnn_ext.files import make_folder
from rcnn_ext.locks import close_locked, lock_file

_TAIL = 1 << 16


class LineFile:
    """A file of JSON lines that this process alone appends to.

    Each line is handed to the system at once, whole: a process that is killed leaves all others.
    What it left of its last line is cut off when the file is opened again. The lock ends with the
    process.

    Args:
        path: The file; its folder is created if missing.
        empty: Whether to drop what is in it.
        wait: Whether to wait for the lock of another process.

    Raises:
        UserError: It cannot be written, or another process writes it.
    """

    def __init__(self, path: Path, *, empty: bool = False, wait: bool = False) -> None:
        self.path = path
        make_folder(path.parent)
        self._handle = -1
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            if not lock_file(self._handle, wait=wait):
                raise UserError(
                    f"another process writes {path}: wait until it ends, or end it, or let each "
                    "process do its own part with --shard I/N"
                )
            os.ftruncate(self._handle, 0 if empty else self._whole_lines())
            os.lseek(self._handle, 0, os.SEEK_END)
        except OSError as error:
            self.close()
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        except UserError:
            self.close()
            raise

    def write(self, record: dict[str, Any], *, allow_nan: bool = False) -> None:
        """Append a record.

        Args:
            record: The record.
            allow_nan: Whether it may have numbers that are not finite.

        Raises:
            UserError: It could not be written; the file is as before.
            ValueError: It has numbers that are not finite.
        """
        line = json.dumps(record, allow_nan=allow_nan).encode() + b"\n"
        start = os.lseek(self._handle, 0, os.SEEK_CUR)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, start)
                os.lseek(self._handle, start, os.SEEK_SET)
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file and give up the lock."""
        if self._handle >= 0:
            close_locked(self._handle)
            self._handle = -1

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _whole_lines(self) -> int:
        """Return the number of bytes up to the end of the last whole line."""
        end = os.lseek(self._handle, 0, os.SEEK_END)
        while end:
            start = max(0, end - _TAIL)
            os.lseek(self._handle, start, os.SEEK_SET)
            found = os.read(self._handle, end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the records of a file, and where each begins. Lines that are no records are left out.

    Args:
        path: The file, which another process may be writing.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            position = 0
            for line in file:
                record = _record(line)
                if record is not None:
                    yield position, record
                position += len(line)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def last_record(path: Path) -> dict[str, Any] | None:
    """Return the record at the end of a file, or None where there is none that is short."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TAIL))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return None
    return _record(lines[-1]) if lines else None


def is_locked(path: Path) -> bool:
    """Return whether a process on this machine, or one that shares its locks, writes a file."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not lock_file(handle)
    finally:
        close_locked(handle)


def _record(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
