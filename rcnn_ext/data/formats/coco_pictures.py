"""Where the pictures are that a COCO file names, as other machines and systems write names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rcnn_ext.data.formats.file_names import file_parts, name_key
from rcnn_ext.data.images import IMAGE_SUFFIXES
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError

# How many of the names are tried to know their folder, evenly spread: some may be missing.
_MAX_TRIED = 50


def find_images_folder(root: Path | str, annotations: Path | str, first_file: str) -> Path:
    """Find the folder that the file names of an annotation file start from.

    Args:
        root: Folder of the data set.
        annotations: The annotation file.
        first_file: The file name of one of its images.

    Raises:
        UserError: No candidate holds that image.
    """
    candidates = _image_folders(Path(root), Path(annotations))
    for candidate in candidates:
        if _is_file(candidate / first_file):
            return candidate
    raise _not_found(candidates, Path(annotations), first_file)


def _image_folders(root: Path, annotations: Path) -> list[Path]:
    stem = annotations.stem.removeprefix("instances_")
    split = stem.rstrip("0123456789")
    names = [stem, f"images/{stem}", split, f"images/{split}", "images", "data", ""]
    candidates = [root / name for name in names]
    candidates += [annotations.parent, annotations.parent / "images"]
    return list(dict.fromkeys(candidates))


def _not_found(candidates: Sequence[Path], annotations: Path, name: str) -> UserError:
    tried = ", ".join(map(str, candidates))
    return UserError(
        f"the images of {annotations} are in none of {tried} (looked for {name}); name "
        "their folder with data.train_images=PATH, data.val_images=PATH or data.test_images=PATH"
    )


def _is_file(path: Path | str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # A zero character.
        return False


class CocoPictureFinder:
    """Finds the pictures of one annotation file.

    Args:
        annotations: The file.
        images: The folder that its names start from; None looks for it.
        root: Folder of the data set.
        report: Where is said what was found elsewhere than the file says.
    """

    def __init__(self, annotations: Path, images: Path | None, root: Path, report: Report) -> None:
        self.annotations = annotations
        self.report = report
        self.named = images is not None
        self.root = root
        self._candidates = _image_folders(root, annotations) if images is None else [images]
        self._listings: dict[str, frozenset[str]] = {}
        self._below: dict[str, list[str]] | None = None
        self._ambiguous: dict[str, list[str]] = {}

    def paths(self, names: Sequence[str]) -> tuple[list[str], dict[int, str]]:
        """Return the path of each name, and what is wrong with those that are not there.

        A name is looked for as it is written; with the other system's separators; without its
        first folders, one by one; and at last by its file name anywhere below the folder of the
        images, in any case, with its accents composed or not, and without its suffix, if only one
        file there has it.

        Args:
            names: Names as the annotation file has them.

        Returns:
            The paths, and messages by index.

        Raises:
            UserError: The folder is not named, and none of the pictures is found in any.
        """
        plain = [name.replace("\\", "/") if "\\" in name else name for name in names]
        folder = self._folder(plain)
        found: list[str] = []
        elsewhere: list[tuple[str, str]] = []
        outside: list[str] = []
        missing: dict[int, str] = {}
        for index, (name, as_written) in enumerate(zip(plain, names, strict=True)):
            path = os.path.join(folder, name)
            if not self._exists(path):
                other = self._elsewhere(folder, name, as_written)
                if other is None:
                    missing[index] = self._message(path, name)
                else:
                    path = other
                    if other != os.path.join(folder, as_written):
                        elsewhere.append((as_written, other))
            elif os.path.isabs(name) or ".." in name.split("/"):
                outside.append(path)
            found.append(path)
        if len(missing) == len(names) and not self.named:
            if self._ambiguous:
                raise UserError(f"{self.annotations}: {next(iter(missing.values()))}")
            raise _not_found(self._candidates, self.annotations, names[0])
        self._say(folder, elsewhere, outside)
        return found, missing

    def _say(self, folder: str, elsewhere: list[tuple[str, str]], outside: list[str]) -> None:
        if elsewhere:
            name, path = elsewhere[0]
            self.report.note(
                self.annotations,
                None,
                f"{len(elsewhere)} of the images are not where the file says and were found by "
                f"their names below {folder}, the first is {name} as {path}",
            )
        top = os.path.abspath(self.root)
        outside = [path for path in outside if not os.path.abspath(path).startswith(top + os.sep)]
        if outside:
            self.report.note(
                self.annotations,
                None,
                f"{len(outside)} of the images are outside of the data folder, the first is "
                f"{outside[0]}",
            )

    def _folder(self, names: Sequence[str]) -> str:
        """Return the candidate that has the most of some of the names."""
        tried = [names[i] for i in np.linspace(0, len(names) - 1, _MAX_TRIED).astype(int)]
        tried = list(dict.fromkeys(tried))
        best, most = self._candidates[0], 0
        for shorten in (False, True):
            for candidate in self._candidates:
                parts = [name.rpartition("/")[2] if shorten else name for name in tried]
                count = sum(_is_file(os.path.join(candidate, part)) for part in parts)
                if count > most:
                    best, most = candidate, count
            if most:
                break
        if not most and not self.named:
            # By name in any folder, which need not be one of the usual.
            best = self.root
        return str(best)

    def _exists(self, path: str) -> bool:
        """Return whether there is such a file, by one listing of each folder."""
        folder, name = os.path.split(path)
        if folder not in self._listings:
            try:
                self._listings[folder] = frozenset(os.listdir(folder or "."))
            except (OSError, ValueError):
                # There is none, it cannot be read, or no folder can have such a name.
                self._listings[folder] = frozenset()
        return name in self._listings[folder]

    def _elsewhere(self, folder: str, name: str, as_written: str) -> str | None:
        if as_written != name and self._exists(os.path.join(folder, as_written)):
            return os.path.join(folder, as_written)
        parts = [part for part in file_parts(name) if part != ".."]
        for start in range(len(parts)):
            path = os.path.join(folder, *parts[start:])
            if self._exists(path):
                return path
        if not parts:
            return None
        if self._below is None:
            self._below = _names_below(folder)
        same = self._below.get(name_key(parts[-1]), [])
        exact = [path for path in same if os.path.basename(path) == parts[-1]]
        same = exact or same
        if len(same) > 1:
            self._ambiguous[name] = same
        return same[0] if len(same) == 1 else None

    def _message(self, path: str, name: str) -> str:
        several = self._ambiguous.get(name)
        if several:
            return (
                f"the image {path} does not exist, and several files have its name: "
                f"{several[0]}, {several[1]}"
            )
        return f"the image {path} does not exist"


def _names_below(folder: str) -> dict[str, list[str]]:
    """Return all files below a folder by their names, and pictures without their suffixes too."""
    found: dict[str, list[str]] = {}
    stems: dict[str, list[str]] = {}
    for top, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            path = os.path.join(top, file)
            found.setdefault(name_key(file), []).append(path)
            stem, suffix = os.path.splitext(file)
            if suffix.lower() in IMAGE_SUFFIXES:
                stems.setdefault(name_key(stem), []).append(path)
    return stems | found
