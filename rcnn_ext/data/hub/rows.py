"""From a row of a data set of the Hub to a checked image."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import tv_tensors

from rcnn_ext.data.annotations import ImageRecord
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.formats.outside import is_inside
from rcnn_ext.data.hub.split import HubSplit
from rcnn_ext.data.images import ImageReader, fitting_size
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class DecodedRow:
    """The content of a row, unchecked but for the picture.

    Attributes:
        name: What messages call it.
        image_id: Its number; None where the data give none.
        content: The picture as it is stored.
        image: The picture, [C, H, W], as :func:`rcnn_ext.data.images.load_tensor` returns it.
        objects: What is in it.
    """

    name: str
    image_id: int | None
    content: bytes
    image: tv_tensors.Image
    objects: list[RawObject]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width = self.image.shape[-2:]
        return width, height


def plain_rows(rows: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows; iterating directly would divide them among workers once more."""
    for batch in rows.iter(batch_size=1):
        yield {name: values[0] for name, values in batch.items()}


def decode_row(row: Row, split: HubSplit, number: int | None = None) -> DecodedRow:
    """Read one row.

    Args:
        row: The picture, not decoded, and the columns that ``split.config.hf`` names.
        split: Where it comes from.
        number: Its place in the split, from 1, for messages; None where that is not known.

    Raises:
        UserError: It is broken; the message names the image.
    """
    hub = split.config.hf
    own = row.get(hub.image_id)
    image_id = int(own) if isinstance(own, (int, np.integer)) else None
    picture = row[hub.image] or {}
    called = own if own is not None else picture.get("path") or f"row {number}"
    name = f"image {called} of {split.source}"
    content, path = picture.get("bytes"), picture.get("path")
    if content is None:
        if not path:
            raise UserError(f"{name} has neither bytes nor a path")
        _check_inside(path, split, name)
        try:
            content = Path(path).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{name} cannot be read from {path}: {reason}") from error
    reader = ImageReader.of(split.config)
    # Only a size that fits says whether the picture is meant upright or as stored.
    width, height = row.get("width"), row.get("height")
    annotated = None
    if isinstance(width, (int, np.integer)) and isinstance(height, (int, np.integer)):
        annotated = fitting_size(io.BytesIO(content), (int(width), int(height)), name)
    image = tv_tensors.Image(reader.load_tensor(io.BytesIO(content), annotated, name=name))
    return DecodedRow(name, image_id, content, image, objects_of(row, split, name, number))


def _check_inside(path: str, split: HubSplit, name: str) -> None:
    """Refuse a path to a file that is neither the data set's nor in the library's cache.

    Raises:
        UserError: It is such a path, and the recipe does not allow it.
    """
    if split.config.allow_outside:
        return
    from datasets import config as library
    from huggingface_hub import constants

    caches = (library.HF_CACHE_HOME, library.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
    folders = [Path(folder) for folder in caches]
    if split.source.is_dir():
        folders.append(split.source)
    if not is_inside(Path(path).parent, folders):
        raise UserError(
            f"{name} is {path}, outside of the data set: data.allow_outside=true reads it, where "
            "the data are trusted"
        )


def read_row(row: Row, split: HubSplit) -> tuple[tv_tensors.Image, ImageRecord]:
    """Read and check one row, as :func:`decode_row` and all the formats do.

    Raises:
        UserError: It is broken; the message names the image.
    """
    decoded = decode_row(row, split)
    builder = RowsBuilder(Path(decoded.name), split, Report())
    builder.add_row(decoded, decoded.image_id or 0, builder.source, None)
    return decoded.image, builder.finish().images[0]


class RowsBuilder(SetBuilder):
    """The checks that all formats share, for pictures that are no files.

    Args:
        source: What the set is called.
        split: Where the rows come from.
        report: Where problems go.
    """

    def __init__(self, source: Path, split: HubSplit, report: Report) -> None:
        super().__init__(
            source,
            ReadOptions(split.classes.names, True, split.config.other_classes, report=report),
        )
        if split.class_names is not None:
            declared = {name: index for index, name in enumerate(split.class_names)}
            extra = dict(zip(split.classes.names, split.classes.category_ids, strict=True))
            self.declare(list({**extra, **declared}.items()))

    def exists(self, path: Path) -> bool:
        """Pictures of rows are there."""
        return True

    def add_row(self, row: DecodedRow, image_id: int, path: Path, number: int | None) -> None:
        """Add a row, under an id and a path of the caller's choice."""
        self.add(image_id, path, row.size, row.objects, (self.source, number))


def useful(row: Row, split: HubSplit) -> bool:
    """Return whether a row may be trained on, as far as it shows without being decoded."""
    try:
        objects = objects_of(row, split, "")
    except UserError:
        return True  # Its reading will say what is wrong.
    wanted = [item for item in objects if item.name in split.classes.names]
    return any(not item.crowd for item in wanted) or (not wanted and split.config.keep_empty)


def objects_of(row: Row, split: HubSplit, name: str, number: int | None = None) -> list[RawObject]:
    """Return the objects of a row; ``name`` and ``number`` are its own, for messages.

    Raises:
        UserError: They are broken.
    """
    hub = split.config.hf
    value = row[hub.objects]
    if isinstance(value, list):
        # A list of objects rather than an object of lists.
        keys = value[0].keys() if value else (hub.box, hub.label)
        value = {key: [item[key] for item in value] for key in keys}
    boxes, labels = value[hub.box], value[hub.label]
    if len(boxes) != len(labels):
        raise UserError(f"{name} has {len(boxes)} boxes but {len(labels)} classes")
    areas = value.get("area") or [None] * len(boxes)
    crowds = value.get("iscrowd", value.get("is_crowd")) or [False] * len(boxes)
    objects = []
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        if len(box) != 4:
            raise UserError(f"{name}: box {index} is {list(box)}, not four numbers")
        a, b, c, d = map(float, box)
        corners = (a, b, c, d) if hub.box_format == "xyxy" else (a, b, a + c, b + d)
        if not isinstance(label, str):
            names = split.class_names or split.classes.names
            if not 0 <= int(label) < len(names):
                raise UserError(
                    f"{name}: object {index} has the unknown class {label}; there are {len(names)}"
                )
            label = names[int(label)]
        area, crowd = areas[index], bool(crowds[index])
        objects.append(
            RawObject(corners, label, number, f"object {index}", area and float(area), crowd)
        )
    return objects
