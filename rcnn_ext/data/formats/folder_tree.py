"""The files below a data folder, listed once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Data folders are not deeper; what is deeper is the source tree or the cache of something else.
_MAX_DEPTH = 8

# A folder changed within this time may change again without a new time of change.
_RACY_SECONDS = 2.0


@dataclass(frozen=True)
class _Listing:
    changed: int  # Nanoseconds.
    files: tuple[str, ...]
    folders: tuple[str, ...]


_LISTINGS: dict[str, _Listing] = {}


def walk(root: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield each folder below ``root``, itself included, and the sorted names of its files.

    Hidden files and folders are passed over, and so are the archives' remains of macOS. Links to
    folders are not followed. A folder is listed anew only when its time of change is another one:
    all formats look at the same folders.
    """
    yield from _walk(os.fspath(root), _MAX_DEPTH)


def unreadable_folders(root: Path) -> list[tuple[Path, str]]:
    """Return the folders below ``root``, itself included, that cannot be listed, and why."""
    found: list[tuple[Path, str]] = []

    def visit(folder: str, depth: int) -> None:
        try:
            listing = _list(folder)
        except FileNotFoundError:
            return  # Data that are made are not there yet.
        except OSError as error:
            # File systems have a folder of this name, which is for their owner only.
            if os.path.basename(folder) != "lost+found":
                found.append((Path(folder), error.strerror or str(error)))
            return
        for name in listing.folders if depth > 0 else ():
            visit(os.path.join(folder, name), depth - 1)

    visit(os.fspath(root), _MAX_DEPTH)
    return found


def _walk(folder: str, depth: int) -> Iterator[tuple[Path, tuple[str, ...]]]:
    try:
        listing = _list(folder)
    except OSError:
        return  # :func:`unreadable_folders` names it.
    yield Path(folder), listing.files
    if depth > 0:
        for name in listing.folders:
            yield from _walk(os.path.join(folder, name), depth - 1)


def _list(folder: str) -> _Listing:
    changed = os.stat(folder).st_mtime_ns
    known = _LISTINGS.get(folder)
    if known is not None and known.changed == changed:
        return known
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                if not entry.is_symlink():
                    folders.append(entry.name)
            else:
                files.append(entry.name)
    listing = _Listing(changed, tuple(sorted(files)), tuple(sorted(folders)))
    if time.time() - changed / 1e9 > _RACY_SECONDS:
        if len(_LISTINGS) > 10_000:
            _LISTINGS.clear()
        _LISTINGS[folder] = listing
    return listing
