"""Pictures with their boxes for a page: chosen so that all classes are seen."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rcnn_ext.data.annotations import AnnotationSet, ImageRecord
from rcnn_ext.data.packed import PackedImages
from rcnn_ext.errors import UserError
from rcnn_ext.viz import draw_boxes

SIDE = 400  # pixels, the longer one
_QUALITY = 78
# Kept of a stream; evenly spread over it.
_MAX_KEPT = 192


class StreamThumbnails:
    """Thumbnails of some pictures of a stream, evenly spread over it, as it passes by once.

    Every picture is kept until there are twice as many as wanted; then every second is dropped, and
    from there on only every second, fourth, ... is kept.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Path, bytes]] = {}
        self._step = 1
        self._seen = 0

    def see(self, path: Path, picture: torch.Tensor) -> None:
        """Look at the next picture.

        Args:
            path: What the annotations call it.
            picture: [C, H, W], uint8 or floats in [0, 1].
        """
        place, self._seen = self._seen, self._seen + 1
        if place % self._step:
            return
        self._kept[place] = (path, _encoded(_shrunk(_as_picture(picture))))
        if len(self._kept) > _MAX_KEPT:
            self._step *= 2
            self._kept = {place: one for place, one in self._kept.items() if not place % self._step}

    def paths(self) -> dict[Path, bytes]:
        """Return what was kept, JPEG by path."""
        return dict(self._kept.values())


def spread_over_classes(images: PackedImages, seed: int = 0) -> Iterator[int]:
    """Yield all images, so that the first ones show all classes, the rarest first.

    Args:
        images: The images.
        seed: Of the order within a class; the same images come in the same order.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    image_of, labels = images.object_images(), images.labels
    counts = np.bincount(labels)
    rarest = [label for label in np.argsort(counts, kind="stable").tolist() if counts[label]]
    queues = []
    for label in rarest:
        rows = np.unique(image_of[labels == label])
        queues.append(iter(rows[np.argsort(rank[rows])].tolist()))
    seen: set[int] = set()
    while queues:
        left = []
        for queue in queues:
            row = next((row for row in queue if row not in seen), None)
            if row is not None:
                seen.add(row)
                left.append(queue)
                yield row
        queues = left
    yield from (row for row in order.tolist() if row not in seen)


def draw_samples(
    annotations: AnnotationSet, count: int, kept: dict[Path, bytes] | None = None
) -> list[tuple[str, str]]:
    """Return pictures with their boxes, and their names.

    Args:
        annotations: The images.
        count: Maximum number of pictures; those that cannot be read are passed over.
        kept: The thumbnails to choose from, JPEG by path, where pictures are no files.

    Returns:
        ``data:`` URLs and names.
    """
    images = annotations.images
    if kept is not None:
        rows = [row for row, path in enumerate(images.paths()) if path in kept]
        images = images.take(rows)
    found: list[tuple[str, str]] = []
    broken = 0
    for row in spread_over_classes(images):
        if len(found) == count or broken > 4 * count:
            break
        record = images[row]
        try:
            picture = thumbnail(record, annotations, kept)
        except UserError:
            broken += 1
            continue
        factor = np.array([picture.width / record.width, picture.height / record.height] * 2)
        drawn = draw_boxes(
            picture, record.boxes * factor, record.labels.tolist(), annotations.classes, None, SIDE
        )
        found.append((as_url(drawn), record.path.name))
    return found


def thumbnail(
    record: ImageRecord, annotations: AnnotationSet, kept: dict[Path, bytes] | None = None
) -> Image.Image:
    """Return a picture of at most ``SIDE`` pixels a side.

    Raises:
        UserError: It cannot be read.
    """
    if kept is not None:
        return Image.open(io.BytesIO(kept[record.path])).convert("RGB")
    reader = annotations.reader
    size = (record.width, record.height)
    if reader.channels == 3:
        return _shrunk(reader.load_image(record.path, size))
    return _shrunk(_as_picture(reader.load_tensor(record.path, size)))


def as_url(picture: Image.Image) -> str:
    """Return a picture as a ``data:`` URL."""
    return f"data:image/jpeg;base64,{base64.b64encode(_encoded(picture)).decode()}"


def _shrunk(picture: Image.Image) -> Image.Image:
    factor = SIDE / max(picture.size)
    if factor >= 1:
        return picture.convert("RGB")
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(size, Image.Resampling.BOX)


def _as_picture(tensor: torch.Tensor) -> Image.Image:
    """Return the first three channels as RGB, or the first as gray."""
    pixels = tensor.as_subclass(torch.Tensor)
    if pixels.dtype != torch.uint8:
        pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    if pixels.shape[0] < 3:
        return Image.fromarray(pixels[0].numpy())
    return Image.fromarray(np.ascontiguousarray(pixels[:3].permute(1, 2, 0).numpy()))


def _encoded(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.convert("RGB").save(content, "JPEG", quality=_QUALITY, optimize=True)
    return content.getvalue()
