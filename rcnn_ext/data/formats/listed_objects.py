"""From the rows of a table or a list, in any order, to images with their objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from rcnn_ext.data.builder import RawObject, SetBuilder
from rcnn_ext.data.formats.picture_names import AmbiguousNameError, PictureFinder
from rcnn_ext.data.images import numeric_ids
from rcnn_ext.errors import UserError

T = TypeVar("T")


@dataclass
class ListedImage(Generic[T]):
    """An image as a file names it.

    Attributes:
        rows: Its rows, each with its line.
        broken: Whether something of it is broken, which is reported.
    """

    rows: list[tuple[int, T]] = field(default_factory=list)
    broken: bool = False


def add_listed(
    builder: SetBuilder,
    path: Path,
    finder: PictureFinder,
    images: Mapping[str, ListedImage[T]],
    parse: Callable[[T, tuple[int, int], int], Sequence[RawObject]],
    *,
    needs_size: bool = False,
    background: Sequence[Path] = (),
    repeats_break: bool = True,
) -> None:
    """Add images in the order of their first rows.

    Args:
        builder: Where they are added.
        path: The file that lists them.
        finder: Finds their pictures.
        images: By their names in the file. Several names of one picture are one image.
        parse: Returns the objects of a row, given the image's width and height in pixels ((1, 1)
            where ``needs_size`` is false), and its line. Raises :class:`ValueError` with what is
            wrong.
        needs_size: Whether ``parse`` needs the size of the picture.
        background: Pictures without objects, which are added behind.
        repeats_break: Whether an image with a row twice cannot be used; else one row counts.
    """
    by_file: dict[Path, ListedImage[T]] = {}
    for name, image in images.items():
        try:
            file = finder.find(name) or finder.expected(name)
        except AmbiguousNameError as error:
            builder.report.error(path, image.rows[0][0], str(error))
            builder.skip()
            continue
        if file in by_file:
            by_file[file].rows += image.rows
            by_file[file].broken |= image.broken
        else:
            by_file[file] = image
    ids = iter(numeric_ids([file.stem for file in (*by_file, *background)]))
    for file, image in by_file.items():
        _add(builder, path, next(ids), file, image, parse, needs_size, repeats_break)
    for file in background:
        builder.add(next(ids), file, None, [], (file, None))


def _add(
    builder: SetBuilder,
    path: Path,
    image_id: int,
    file: Path,
    image: ListedImage[T],
    parse: Callable[[T, tuple[int, int], int], Sequence[RawObject]],
    needs_size: bool,
    repeats_break: bool,
) -> None:
    report, first, broken = builder.report, image.rows[0][0], image.broken
    size = None
    if needs_size and not broken and builder.exists(file):
        try:
            size = builder.options.reader.image_size(file)
        except UserError as error:
            report.error(path, first, str(error))
            builder.skip()
            return
    objects: list[RawObject] = []
    seen: dict[tuple[object, ...], int] = {}
    for line, row in image.rows if not broken else []:
        try:
            found = parse(row, size or (1, 1), line)
        except ValueError as error:
            report.error(path, line, str(error))
            broken = True
            continue
        # A row without objects says that the image has none, which is to be said once.
        items: list[RawObject | None] = [*found] or [None]
        for item in items:
            key = ("empty",) if item is None else (item.box, item.name)
            if key not in seen:
                seen[key] = line
                objects += [] if item is None else [item]
                continue
            add = report.error if repeats_break else report.warning
            add(path, line, f"repeats line {seen[key]}: the same image, class and box")
            broken |= repeats_break
    builder.add(image_id, file, size, objects, (path, first), broken=broken)


def warn_of_unlisted(
    builder: SetBuilder, path: Path, pictures: Sequence[Path], advice: str
) -> None:
    """Warn of pictures that a file does not list.

    Args:
        builder: Where to.
        path: The file.
        pictures: The pictures.
        advice: What could be done about them.
    """
    if pictures:
        folder = pictures[0].parent
        count = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
        builder.report.warning(
            path, None, f"{count} in {folder} not listed, the first is {pictures[0].name}; {advice}"
        )
