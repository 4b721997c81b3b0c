"""Finding the files of images that annotations name as they were called on another machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rcnn_ext.data.formats.file_names import file_parts, name_key
from rcnn_ext.data.formats.folder_tree import walk

# What is no image, whatever else may be one.
_OTHER_SUFFIXES = {".json", ".jsonl", ".xml", ".txt", ".csv", ".yaml", ".yml", ".md", ".parquet"}

# Label Studio writes eight hexadecimal digits before the name of an uploaded file.
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")


class ImageFinder:
    """Looks for image files below a data folder.

    Args:
        root: The data folder.
        folder: Where the recipe says that the images are; None: anywhere in ``root``.
    """

    def __init__(self, root: Path, folder: Path | None = None) -> None:
        self.root = root
        self.folder = folder
        self.base = folder or root
        self._files: dict[str, list[Path]] | None = None

    def find(self, names: Sequence[str], near: Path) -> Path | None:
        """Find an image.

        Args:
            names: What its annotations call it, the likeliest first; a path relative to ``near`` or
                to the data folder, or one of another machine, of which the last parts count.
            near: The folder of its annotations.

        Returns:
            The file whose path agrees with the longest end of a name, and of several such the one
            with the fewest steps from ``near``; None if there is none.
        """
        for name in names:
            parts = file_parts(name)
            if not parts:
                continue
            for base in (near, self.root) if self.folder is None else (self.folder,):
                path = Path(os.path.normpath(base.joinpath(*parts)))
                if path.is_file():
                    return path
        for name in names:
            found = self._by_end(file_parts(name), near)
            if found is not None:
                return found
        return None

    def all_files(self) -> Iterable[Path]:
        """Return all files that may be images."""
        for paths in self._index().values():
            yield from paths

    def _index(self) -> dict[str, list[Path]]:
        if self._files is None:
            self._files = {}
            for folder, files in walk(self.base):
                for file in files:
                    if os.path.splitext(file)[1].lower() not in _OTHER_SUFFIXES:
                        self._files.setdefault(name_key(file), []).append(folder / file)
        return self._files

    def _by_end(self, parts: tuple[str, ...], near: Path) -> Path | None:
        if not parts:
            return None
        found = self._index().get(name_key(parts[-1]), [])
        if not found:
            found = self._index().get(name_key(_UPLOAD_PREFIX.sub("", parts[-1])), [])
        if not found:
            return None

        def agreement(path: Path) -> tuple[int, bool, int]:
            own = [name_key(part) for part in path.parts]
            wanted = [name_key(part) for part in parts]
            count = 0
            while count < min(len(own), len(wanted)) and own[-1 - count] == wanted[-1 - count]:
                count += 1
            steps = len(Path(os.path.relpath(path, near)).parts)
            return count, path.name == parts[-1], -steps

        return max(found, key=agreement)
