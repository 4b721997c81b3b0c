"""Writing COCO: one JSON file per split, entry by entry."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import IO, ClassVar

from rcnn_ext import __version__
from rcnn_ext.data.conversion.numbers import corner_and_side_texts, text_of
from rcnn_ext.data.conversion.target import Target
from rcnn_ext.data.images import Header
from rcnn_ext.data.records import ImageRecord
from rcnn_ext.data.segmentation import Segmentation


class CocoTarget(Target):
    """Writes ``annotations/instances_<split>.json``, and pictures in ``<split>``."""

    title: ClassVar[str] = "COCO"
    by_stem: ClassVar[bool] = False
    takes_paths: ClassVar[bool] = True
    repeats_pictures: ClassVar[bool] = True
    keeps_crowds: ClassVar[bool] = True
    keeps_areas: ClassVar[bool] = True
    keeps_ids: ClassVar[bool] = True

    def images_folder(self, split: str) -> Path:
        """Return ``<split>``."""
        return Path(split)

    def begin(self, split: str, annotated: bool) -> None:
        """Open the file of a split."""
        folder = self.folder / "annotations"
        folder.mkdir(exist_ok=True)
        kind = "instances" if annotated else "image_info"
        self._annotated = annotated
        self._num_images = self._num_objects = 0
        self._file: IO[str] = (folder / f"{kind}_{split}.json").open("w", encoding="utf-8")
        # The images come first in the file, and the objects become known with them.
        self._objects: IO[str] = tempfile.TemporaryFile(  # noqa: SIM115
            "w+", encoding="utf-8", dir=self.folder
        )
        info = {"description": f"converted by rcnn_ext {__version__}"}
        self._file.write(f'{{"info": {json.dumps(info)},\n"images": [')

    def add(self, record: ImageRecord, name: str, header: Header) -> int:
        """Add an entry of an image, and those of its objects."""
        self.count_losses(record)
        image_id = json.dumps(record.file_id)
        self._file.write(
            f"{',' if self._num_images else ''}\n"
            f'{{"id": {image_id}, "file_name": {json.dumps(name)}, '
            f'"width": {record.width}, "height": {record.height}}}'
        )
        self._num_images += 1
        for index, box in enumerate(record.boxes):
            label = int(record.labels[index])
            outlines = record.segmentations
            outline = None if outlines is None else outlines[index]
            shape = "" if outline is None else f', "segmentation": {_segmentation(outline)}'
            self._objects.write(
                f"{',' if self._num_objects else ''}\n"
                f'{{"id": {self._num_objects + 1}, "image_id": {image_id}, '
                f'"category_id": {json.dumps(self.classes.category_id(label))}, '
                f'"bbox": [{", ".join(corner_and_side_texts(box))}], '
                f'"area": {text_of(record.areas[index])}, '
                f'"iscrowd": {int(record.crowd[index])}{shape}}}'
            )
            self._num_objects += 1
        return len(record.boxes)

    def end(self) -> None:
        """Write the objects behind the images, and close the file."""
        with self._file as file, self._objects as objects:
            file.write("\n]")
            if self._annotated:
                file.write(',\n"annotations": [')
                objects.seek(0)
                shutil.copyfileobj(objects, file)
                file.write("\n]")
            categories = [
                json.dumps({"id": number, "name": name})
                for name, number in zip(self.classes.names, self.classes.category_ids, strict=True)
            ]
            file.write(',\n"categories": [\n' + ",\n".join(categories) + "\n]}\n")

    def finish(self) -> None:
        """Write nothing: each split has all."""


def _segmentation(outline: Segmentation) -> str:
    if outline.runs is not None:
        return json.dumps({"counts": outline.runs.tolist(), "size": list(outline.size)})
    polygons = (", ".join(map(text_of, points.ravel())) for points in outline.polygons)
    return "[" + ", ".join(f"[{polygon}]" for polygon in polygons) + "]"
