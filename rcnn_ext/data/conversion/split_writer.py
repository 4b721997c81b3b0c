"""Writing the images of a split, one after another, with their pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.conversion.file_names import FileNames
from rcnn_ext.data.conversion.pictures import ImagesMode, place_picture, turned
from rcnn_ext.data.conversion.target import Target
from rcnn_ext.data.formats.file_names import file_parts
from rcnn_ext.data.images import IMAGE_SUFFIXES, Header, read_header
from rcnn_ext.data.records import ImageRecord
from rcnn_ext.errors import UserError
from rcnn_ext.progress import Progress


class SplitWriter:
    """Writes the splits of a data set.

    Args:
        target: Writes the annotations.
        out: What messages call the folder.
        images: What pictures become.
        skip_broken: Whether images whose pictures cannot be used are left out, and counted; else
            they are an error.
    """

    def __init__(self, target: Target, out: Path, images: ImagesMode, skip_broken: bool) -> None:
        self.target = target
        self.out = out
        self.images = images
        self.skip_broken = skip_broken
        self._names: dict[Path, FileNames] = {}
        # Names that pictures have in a folder already, with what records must agree in.
        self._placed: dict[tuple[Path, Path], list[tuple[object, str]]] = {}

    def write(
        self, split: str, annotations: AnnotationSet, labels: np.ndarray, progress: Progress
    ) -> tuple[int, int]:
        """Write a split.

        Args:
            split: ``train``, ``val`` or ``test``.
            annotations: Its images.
            labels: The label of the target for each label of ``annotations``, int64 [C].
            progress: Counts the images.

        Returns:
            The numbers of images and of objects that are written.

        Raises:
            UserError: A picture cannot be used.
        """
        target = self.target
        folder = target.images_folder(split)
        (target.folder / folder).mkdir(parents=True, exist_ok=True)
        target.begin(split, annotations.annotated)
        ids, stems, old = [], [], []
        used: set[str] = set()
        num_objects = 0
        for record in annotations.images:
            progress.advance()
            try:
                header, record = _upright(record)
            except UserError as error:
                if not self.skip_broken:
                    raise UserError(
                        f"{error}; data.on_error=skip leaves out what is broken"
                    ) from error
                why = "they or their annotations are broken: left out"
                target.losses.add("images", why)
                continue
            record = dataclasses.replace(record, labels=labels[record.labels])
            name = self._place(record, folder, header, used, annotations.annotated)
            used.add(name)
            num_objects += target.add(record, name, header)
            ids.append(record.file_id)
            stems.append(Path(name).stem)
            old.append(record.path.stem)
        target.end()
        target.count_ids(ids, stems, old)
        return len(ids), num_objects

    def _place(
        self, record: ImageRecord, folder: Path, header: Header, used: set[str], annotated: bool
    ) -> str:
        """Bring a picture to its place, and return its name."""
        target = self.target
        if self.images == "none" and target.takes_paths:
            return _absolute(record.path, target.title)
        key = target.shared_key(record) if annotated else None
        placed = self._placed.setdefault((folder, record.path), [])
        for other, name in placed:
            if other == key and (target.repeats_pictures or name not in used):
                return name
        if placed:
            why = "in several images with other objects: copied once for each"
            target.losses.add("pictures", why)
        names = self._names.setdefault(folder, FileNames(target.losses, target.by_stem))
        known = record.path.suffix.lower() in IMAGE_SUFFIXES
        suffix = "" if known or not target.needs_suffix else header.suffix
        name = names.take(record.path, suffix)
        while not target.takes_name(name, annotated):
            why = "its end would be read as a flag in a list: a _ is behind it now"
            target.losses.add("names of pictures", why)
            name = names.take(record.path.with_name(f"{Path(name).stem}_{Path(name).suffix}"))
        path = target.folder / folder / name
        place_picture(record.path, path, self.images, self.out / folder / name, target.losses)
        placed.append((key, name))
        return name


def _upright(record: ImageRecord) -> tuple[Header, ImageRecord]:
    """Return the header of a picture, and the record in upright pixels."""
    header = read_header(record.path)
    name = str(record.path)
    if header.is_as_stored((record.width, record.height), name):
        record = turned(record, header.orientation, header.upright_size)
    return header, record


def _absolute(path: Path, title: str) -> str:
    """Return the path of a picture that stays where it is.

    Raises:
        UserError: The format cannot hold it.
    """
    found = str(path.resolve())
    parts = (Path(found).anchor, *file_parts(found))
    if title == "CSV" and (parts != Path(found).parts or not found.isprintable()):
        raise UserError(f"{found!r} cannot be named in a table as it is: use --images copy")
    return found
