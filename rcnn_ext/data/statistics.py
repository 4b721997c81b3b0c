"""Mean and standard deviation of the channels of training images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from rcnn_ext.data.annotations import AnnotationSet, ImageRecord
from rcnn_ext.data.images import ImageReader
from rcnn_ext.errors import UserError


def channel_statistics(
    annotations: AnnotationSet,
    *,
    workers: int = 2,
    skip_broken: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items,
) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation of each channel over all pixels.

    The result is the same for any number of workers: sums of 8-bit values and of their squares are
    whole numbers, and are added as such; others are added in the order of the images.

    Args:
        annotations: The images.
        workers: Threads that read them.
        skip_broken: Whether images that cannot be read are passed over.
        progress: Wraps the iteration over images, to show it.

    Returns:
        Means [C] and standard deviations [C] of values in [0, 1], as ``model.image_mean`` and
        ``model.image_std`` take them.

    Raises:
        UserError: An image cannot be read, or none can.
    """
    reader = annotations.reader
    moments = _moments_of_bytes if reader.channels == 3 else _moments_of_floats
    pixels, totals, squares = 0, [0.0] * reader.channels, [0.0] * reader.channels
    if reader.channels == 3:
        totals, squares = [0, 0, 0], [0, 0, 0]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = pool.map(lambda record: moments(record, reader, skip_broken), annotations.images)
        for in_image in progress(found):
            if in_image is None:
                continue
            pixels += in_image[0]
            for channel in range(reader.channels):
                totals[channel] += in_image[1][channel]
                squares[channel] += in_image[2][channel]
    if not pixels:
        raise UserError(f"{annotations.source} has no image that can be read")
    means = [total / pixels for total in totals]
    # Exact until the last division for bytes: pixels * squares - total^2 are whole numbers.
    variances = [
        max(0.0, (pixels * square - total * total) / (pixels * pixels))
        for square, total in zip(squares, totals, strict=True)
    ]
    white = 255 if reader.channels == 3 else 1
    return [mean / white for mean in means], [math.sqrt(value) / white for value in variances]


# The number of pixels of an image; per channel the sums of its values and of their squares.
_Moments = tuple[int, list[float], list[float]]


def _moments_of_bytes(
    record: ImageRecord, reader: ImageReader, skip_broken: bool
) -> _Moments | None:
    try:
        picture = reader.load_image(record.path, (record.width, record.height))
    except UserError:
        if skip_broken:
            return None
        raise
    counts = np.array(picture.histogram(), dtype=np.int64).reshape(3, 256)
    values = np.arange(256, dtype=np.int64)
    totals, squares = (counts @ values).tolist(), (counts @ (values * values)).tolist()
    return int(counts[0].sum()), totals, squares


def _moments_of_floats(
    record: ImageRecord, reader: ImageReader, skip_broken: bool
) -> _Moments | None:
    try:
        image = reader.load_tensor(record.path, (record.width, record.height))
    except UserError:
        if skip_broken:
            return None
        raise
    flat = image.double().flatten(1)  # [C, H * W]
    return flat.shape[1], flat.sum(1).tolist(), flat.square().sum(1).tolist()
