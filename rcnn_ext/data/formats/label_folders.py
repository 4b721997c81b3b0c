"""Text files of annotations, one per picture: reading them, and naming those that fit none."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rcnn_ext.data.builder import RawObject, SetBuilder
from rcnn_ext.data.images import IMAGE_SUFFIXES, numeric_ids
from rcnn_ext.data.text_files import read_lines
from rcnn_ext.errors import UserError
from rcnn_ext.files import read_head

# Reads a line, given the width and height of the picture in pixels, and the number of the line.
# Raises ValueError with what is wrong; lines without an object give none.
LineReader = Callable[[str, tuple[int, int], int], Sequence[RawObject]]


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder, sorted."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def add_labeled(
    builder: SetBuilder,
    pictures: Sequence[Path],
    labels: Sequence[Path],
    parse: LineReader,
    *,
    needs_size: bool,
    repeats_break: bool = False,
) -> None:
    """Add pictures with the objects of their text files; those without a file have none.

    Args:
        builder: Where they are added.
        pictures: The pictures.
        labels: The text file of each, which need not exist.
        parse: Reads a line.
        needs_size: Whether ``parse`` needs the size of the picture; else it is given (1, 1).
        repeats_break: Whether an image with a line twice cannot be used; else one counts.
    """
    ids = numeric_ids([path.stem for path in pictures])
    for image_id, path, label in zip(ids, pictures, labels, strict=True):
        size = None
        if needs_size and builder.exists(path):
            try:
                size = builder.options.reader.image_size(path)
            except UserError as error:
                builder.report.error(path, None, str(error))
                builder.skip()
                continue
        present = builder.exists(label) and (size is not None or not needs_size)
        objects, broken = (
            _read(builder, label, size or (1, 1), parse, repeats_break) if present else ([], False)
        )
        origin = (label if present else path, None)
        builder.add(image_id, path, size, objects, origin, broken=broken)


def _read(
    builder: SetBuilder,
    label: Path,
    size: tuple[int, int],
    parse: LineReader,
    repeats_break: bool,
) -> tuple[list[RawObject], bool]:
    """Return the objects of a file, and whether something of it is broken, which is reported."""
    report = builder.report
    try:
        lines = read_lines(label, builder.options.encoding)
    except UserError as error:
        report.error(label, None, str(error))
        return [], True
    objects: list[RawObject] = []
    broken = False
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = " ".join(line.split())
        if not text:
            continue
        try:
            found = parse(text, size, number)
        except ValueError as error:
            report.error(label, number, str(error))
            broken = True
            continue
        if text in seen:
            add = report.error if repeats_break else report.warning
            add(label, number, f"repeats line {seen[text]}")
            broken |= repeats_break
            continue
        seen[text] = number
        objects += found
    return objects, broken


def report_unmatched(
    builder: SetBuilder,
    pictures: Sequence[Path],
    labels: Sequence[Path],
    is_label: Callable[[Path], bool],
) -> None:
    """Name and count pictures without a text file, and text files without a picture.

    Args:
        builder: The builder.
        pictures: The pictures.
        labels: The text file of each, which need not exist.
        is_label: Whether a text file is one of labels, and no list of classes for instance.
    """
    without = [p for p, label in zip(pictures, labels, strict=True) if not builder.exists(label)]
    if without and len(without) < len(pictures):
        count = "1 picture has" if len(without) == 1 else f"{len(without)} pictures have"
        builder.report.note(
            without[0].parent,
            None,
            f"{count} no text file, so no objects; the first is {without[0].name}",
        )
    used = set(labels)
    for folder in dict.fromkeys(label.parent for label in labels):
        stray = [p for p in folder_texts(folder) if p not in used and is_label(p)]
        if stray:
            count = "1 text file has" if len(stray) == 1 else f"{len(stray)} text files have"
            builder.report.warning(
                folder, None, f"{count} no picture that can be read; the first is {stray[0].name}"
            )


def folder_texts(folder: Path) -> list[Path]:
    """Return the text files in a folder, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt")


def first_texts(folder: Path, count: int = 20) -> list[Path]:
    """Return some text files of a folder, without listing all of perhaps 100,000."""
    return _first_files(folder, (".txt",), count)


def has_pictures(folder: Path) -> bool:
    """Return whether there is a picture in a folder, without listing all."""
    return bool(_first_files(folder, IMAGE_SUFFIXES, 1))


def _first_files(folder: Path, suffixes: tuple[str, ...], count: int) -> list[Path]:
    found: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if os.path.splitext(entry.name)[1].lower() in suffixes:
                    found.append(folder / entry.name)
                    if len(found) == count:
                        break
    except OSError:
        # There is no such folder, or it cannot be read.
        return []
    return found


def first_line(path: Path) -> str:
    """Return the first line of a file that is not empty, for telling formats apart."""
    text = read_head(path, 4096).decode("utf-8-sig", errors="replace")
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
