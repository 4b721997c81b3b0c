"""Locks of files and folders, which end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rcnn_ext.errors import UserError
from rcnn_ext.files import make_folder

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"

# Open files whose locks this process holds. A lock belongs to the open file, which a fork shares: a
# worker that outlives its process for some seconds would keep it.
_held: set[int] = set()


def lock_file(handle: int, *, wait: bool = False) -> bool:
    """Take the lock of an open file.

    Args:
        handle: The descriptor of the file, to be closed by :func:`close_locked`.
        wait: Whether to wait for the lock of another process.

    Returns:
        Whether no other process has it. File systems without locks, and Windows, always say so.
    """
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # A file system without locks.
            return True
    _held.add(handle)
    return True


def close_locked(handle: int) -> None:
    """Close a file, and give up its lock."""
    _held.discard(handle)
    os.close(handle)


@contextmanager
def locked_folder(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes from writing to a folder at the same time.

    Args:
        folder: The folder, made if need be. It holds the file ``.lock`` meanwhile.
        what: What writes to it, for the message of another process, such as "a training run".

    Raises:
        UserError: Another process writes to it, or it cannot be written.
    """
    make_folder(folder)
    path = folder / LOCK
    try:
        handle = _open_locked(path, what)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        # While it is locked: nobody else can have opened it and think that it is the lock.
        if _is_file_at(handle, path):
            path.unlink(missing_ok=True)
        close_locked(handle)


def _open_locked(path: Path, what: str) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not lock_file(handle):
            holder = os.read(handle, 1000).decode(errors="replace").strip()
            os.close(handle)
            by = f" ({holder})" if holder else ""
            raise UserError(
                f"{path.parent}: {what} of another process writes here{by}: wait until it ends, or "
                "end it, or take another --out"
            )
        # Its holder may have removed it between the two calls.
        if _is_file_at(handle, path):
            break
        close_locked(handle)
    with contextlib.suppress(OSError):  # A full disk; the text is for people only.
        os.ftruncate(handle, 0)
        os.write(handle, f"{socket.gethostname()}, process {os.getpid()}\n".encode())
    return handle


def _is_file_at(handle: int, path: Path) -> bool:
    """Return whether an open file is still the one of a name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _close_in_child() -> None:
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
