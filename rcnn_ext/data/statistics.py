"""Mean and standard deviation of the channels of training images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from rcnn_ext.data.annotations import AnnotationSet, ImageRecord
from rcnn_ext.data.images import load_image
from rcnn_ext.errors import UserError


def channel_statistics(
    annotations: AnnotationSet,
    *,
    workers: int = 2,
    skip_broken: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items,
) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation of red, green and blue over all pixels.

    The result is the same for any number of workers: sums of 8-bit values and of their squares are
    whole numbers, and are added as such.

    Args:
        annotations: The images.
        workers: Threads that read them.
        skip_broken: Whether images that cannot be read are passed over.
        progress: Wraps the iteration over images, to show it.

    Returns:
        Means [3] and standard deviations [3] of values in [0, 1], as ``model.image_mean`` and
        ``model.image_std`` take them.

    Raises:
        UserError: An image cannot be read, or none can.
    """
    pixels, totals, squares = 0, [0, 0, 0], [0, 0, 0]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = pool.map(lambda record: _histograms(record, skip_broken), annotations.images)
        values = np.arange(256, dtype=np.int64)
        for histograms in progress(found):
            if histograms is None:
                continue
            pixels += int(histograms[0].sum())
            for channel, counts in enumerate(histograms):
                totals[channel] += int((counts * values).sum())
                squares[channel] += int((counts * values * values).sum())
    if not pixels:
        raise UserError(f"{annotations.source} has no image that can be read")
    means = [total / pixels for total in totals]
    # Exact until the last division: pixels * squares - total^2 are whole numbers.
    variances = [
        (pixels * square - total * total) / (pixels * pixels)
        for square, total in zip(squares, totals, strict=True)
    ]
    return [mean / 255 for mean in means], [math.sqrt(value) / 255 for value in variances]


def _histograms(record: ImageRecord, skip_broken: bool) -> np.ndarray | None:  # int64 [3, 256]
    try:
        picture = load_image(record.path, (record.width, record.height))
    except UserError:
        if skip_broken:
            return None
        raise
    return np.array(picture.histogram(), dtype=np.int64).reshape(3, 256)
