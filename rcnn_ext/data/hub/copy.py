"""A split of the Hub as files, for what looks at the same images again and again."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import warnings
from pathlib import Path
from typing import Any

from rcnn_ext import __version__
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.formats.coco import read_coco
from rcnn_ext.data.hub.rows import RowsBuilder, decode_row, plain_rows
from rcnn_ext.data.hub.split import HubSplit
from rcnn_ext.data.images import ImageReader, image_suffix
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from rcnn_ext.files import read_json, replacing_folder, write_json

_ANNOTATIONS, _IMAGES = "annotations.json", "images"


def copy_split(
    split: HubSplit,
    folder: Path | str,
    max_images: int | None = None,
) -> AnnotationSet:
    """Keep the rows of a split in COCO's layout, and open that.

    Evaluation looks at images more than once: in every validation, and for pictures of the best and
    the worst. The pictures are stored as they came.

    Args:
        split: What to keep.
        folder: Where to. A copy of the same that is there is used; another one is replaced.
        max_images: Maximum number of images, the first ones; None means all.

    Raises:
        UserError: A row is broken and ``data.on_error`` is ``stop``, no row is usable, or
            ``folder`` holds something else.
    """
    folder = Path(folder)
    made_from = _description(split, max_images)
    if not _holds(folder, made_from):
        if folder.exists() and any(folder.iterdir()):
            if not (folder / _ANNOTATIONS).is_file():
                raise UserError(f"{folder} holds something other than a copy of a stream")
            shutil.rmtree(folder)
        try:
            with replacing_folder(folder) as temporary:
                _write(split, temporary, max_images, made_from)
        except OSError:
            # Another process of this machine may have been faster.
            if not _holds(folder, made_from):
                raise
    found = read_coco(
        folder / _ANNOTATIONS,
        folder / _IMAGES,
        classes=split.classes.names,
        missing_classes_ok=True,
    )
    return dataclasses.replace(found, reader=ImageReader.of(split.config))


def _description(split: HubSplit, max_images: int | None) -> dict[str, Any]:
    """Return all that decides the content of a copy, but for changes of the data themselves."""
    hub = dataclasses.asdict(split.config.hf)
    for name in ("shuffle_buffer", "streaming", "train_images", "resume"):
        del hub[name]
    return {
        "source": str(split.source),
        "split": split.name,
        "first_images": max_images,
        "classes": list(split.classes.names),
        "other_classes": split.config.other_classes,
        "hf": hub,
    }


def _holds(folder: Path, made_from: dict[str, Any]) -> bool:
    path = folder / _ANNOTATIONS
    if not path.is_file():
        return False
    info = read_json(path).get("info")
    return isinstance(info, dict) and info.get("made_from") == made_from


def _write(
    split: HubSplit,
    folder: Path,
    max_images: int | None,
    made_from: dict[str, Any],
) -> None:
    report = Report()
    builder = RowsBuilder(split.source, split, report)
    (folder / _IMAGES).mkdir()
    rows = itertools.islice(plain_rows(split.rows), max_images)
    numbers: dict[int, int | None] = {}
    for place, row in enumerate(split.tracked("Copying", max_images)(rows), start=1):
        try:
            decoded = decode_row(row, split, place)
        except UserError as error:
            if split.config.on_error == "stop":
                raise
            warnings.warn(f"skipped: {error}", RuntimeWarning, stacklevel=2)
            continue
        numbers[place] = decoded.image_id
        path = Path(f"{place:08d}{image_suffix(decoded.content, decoded.name)}")
        (folder / _IMAGES / path).write_bytes(decoded.content)
        builder.add_row(decoded, place, path, place)
    found = builder.finish()
    # Ids of the data only where they tell all rows apart; else each has its place.
    own = len({number for number in numbers.values() if number is not None}) == len(numbers)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in found.images:
        image_id = numbers[record.image_id] if own else record.image_id
        size = {"width": record.width, "height": record.height}
        images.append({"id": image_id, "file_name": record.path.name, **size})
        for box, label, area, crowd in zip(
            record.boxes.tolist(),
            record.labels.tolist(),
            record.areas.tolist(),
            record.crowd.tolist(),
            strict=True,
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": split.classes.category_id(label),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    categories = [
        {"id": number, "name": name}
        for name, number in zip(split.classes.names, split.classes.category_ids, strict=True)
    ]
    write_json(
        folder / _ANNOTATIONS,
        {
            "info": {"description": f"made by rcnn_ext {__version__}", "made_from": made_from},
            "images": images,
            "annotations": annotations,
            "categories": categories,
        },
    )
