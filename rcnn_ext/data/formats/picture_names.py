"""Finding the pictures that lists and tables name, as other systems and tools write the names.

A name may be a path of another machine, have backslashes and a drive letter, lack its suffix, or
differ in case or in the form of its accents, as file systems allow that ignore these.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rcnn_ext.data.formats.file_names import file_parts, name_key
from rcnn_ext.data.images import IMAGE_SUFFIXES


class AmbiguousNameError(ValueError):
    """Several pictures fit a name."""


class PictureFinder:
    """Finds pictures in some folders, by one listing of each.

    Args:
        folders: Where names start from; the first in which a picture is found counts.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(dict.fromkeys(folders))
        self._listings: dict[Path, _Listing] = {}
        self._by_last_parts: dict[Path, list[str]] = {}
        self._used: dict[Path, None] = {}

    def find(self, name: str) -> Path | None:
        """Return the picture of a name; None if there is none.

        As much of the name as fits is taken: of ``/data/upload/1/a.jpg`` perhaps only ``a.jpg``.

        Raises:
            AmbiguousNameError: Several pictures fit, or the picture that fits was found by the last
                parts of another name.
        """
        parts = list(file_parts(name.strip()))
        if not parts:
            return None
        found = self._lookup(Path(name.strip()).parent, parts[-1]) if _is_absolute(name) else None
        if found is not None:
            return self._note(found)
        for start in range(len(parts)):
            for folder in self.folders:
                found = self._lookup(folder.joinpath(*parts[start:-1]), parts[-1])
                if found is not None:
                    return self._note(self._only_for(found, parts, start))
        return None

    def expected(self, name: str) -> Path:
        """Return where a picture that was not found would be, for messages."""
        return self.folders[0].joinpath(*file_parts(name.strip()))

    def unlisted(self) -> list[Path]:
        """Return the pictures in the folders of those found that were not found, sorted."""
        return sorted(
            folder / name
            for folder in {path.parent for path in self._used}
            for name in self._listing(folder).names
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and folder / name not in self._used
        )

    def _note(self, found: Path) -> Path:
        self._used[found] = None
        return found

    def _only_for(self, found: Path, parts: list[str], start: int) -> Path:
        """Return a picture unless it was found by the last parts of another name."""
        earlier = self._by_last_parts.setdefault(found, parts)
        if start > 0 and earlier[:-1] != parts[:-1]:
            raise AmbiguousNameError(
                f"{'/'.join(earlier)} and {'/'.join(parts)} would both be {found}, by the last "
                "parts of their names"
            )
        return found

    def _lookup(self, folder: Path, name: str) -> Path | None:
        listing = self._listing(folder)
        if name in listing.names:
            return folder / name
        for candidates in (listing.by_key.get(name_key(name)), listing.by_stem.get(name_key(name))):
            if candidates is not None and len(candidates) > 1:
                raise AmbiguousNameError(f"{name} may be {' or '.join(candidates)} in {folder}")
            if candidates:
                return folder / candidates[0]
        return None

    def _listing(self, folder: Path) -> _Listing:
        if folder not in self._listings:
            self._listings[folder] = _Listing(folder)
        return self._listings[folder]


class _Listing:
    """The names in a folder, and the same without what some systems ignore."""

    def __init__(self, folder: Path) -> None:
        try:
            self.names = set(os.listdir(folder))
        except (OSError, ValueError):
            # There is none, it cannot be read, or no folder can have such a name.
            self.names = set()
        self.by_key: dict[str, list[str]] = {}
        self.by_stem: dict[str, list[str]] = {}
        for name in sorted(self.names):
            self.by_key.setdefault(name_key(name), []).append(name)
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                self.by_stem.setdefault(name_key(stem), []).append(name)


def _is_absolute(name: str) -> bool:
    return name.strip().startswith("/")


def image_folders(path: Path, words: Sequence[str] = ()) -> list[Path]:
    """Return where the pictures of an annotation file may be, the likeliest folder first.

    Args:
        path: The annotation file.
        words: The spellings of its split.
    """
    folder = path.parent
    names = ("images", path.stem, "", *(f"images/{word}" for word in words), *words)
    names = (*names, "data", "JPEGImages", "Images", "imgs", "img", "pictures")
    below = [folder / name for name in names]
    above = [folder.parent / name for name in ("images", *(f"images/{w}" for w in words), *words)]
    return [place for place in dict.fromkeys([*below, *above]) if place.is_dir()] or [folder]
