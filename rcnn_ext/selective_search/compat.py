"""The interface of the ``selectivesearch`` package 0.4, on the native search.

``from rcnn_ext.selective_search import compat as selectivesearch`` is a drop-in replacement for
``import selectivesearch``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rcnn_ext.config.selective_search import check_min_size, check_number, check_sigma
from rcnn_ext.selective_search.images import check_not_empty, gaussian_weights
from rcnn_ext.selective_search.native import load


def selective_search(
    im_orig: Any, scale: float = 1.0, sigma: float = 0.8, min_size: float = 50
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Search as ``selectivesearch.selective_search`` does, with its results.

    The results are those of the package with a stable sort inside scikit-image's ``felzenszwalb``;
    see ``docs/selective_search.md`` for what its own, unstable one does.

    Args:
        im_orig: [H, W, 3] image. As in the package, integers are scaled by the largest value of
            their dtype for the segmentation and taken as they are, in a range up to 255, for the
            color histograms.
        scale: Larger gives larger segments.
        sigma: Standard deviation of the smoothing, in pixels.
        min_size: Pixels of the smallest segment.

    Returns:
        The image with the label of each pixel's segment as a fourth channel, [H, W, 4] float64, and
        a list of regions, the segments first: dicts of ``rect`` (x, y, width, height, where
        x + width is the last column), ``size`` in pixels, and the ``labels`` of its segments.

    Raises:
        TypeError: An argument's type is wrong.
        ValueError: The image is not [H, W, 3], has no pixels, or values that are negative or not
            finite; a parameter is out of range.
    """
    image, factor = _prepare(im_orig)
    labels, boxes, sizes, merged = load().selectivesearch_compat(
        image,
        factor=factor,
        weights=gaussian_weights(check_sigma(sigma)),
        scale=check_number("scale", scale, 0.0, np.inf),
        min_size=check_min_size(min_size),
    )
    labeled = np.concatenate([image, labels[:, :, None]], axis=2, dtype=np.float64)
    corners = boxes[:, :2]
    rects = np.concatenate([corners, boxes[:, 2:] - corners], axis=1).tolist()
    segments = len(boxes) - len(merged)
    lists: list[list[np.float64]] = [[label] for label in np.arange(segments, dtype=np.float64)]
    for first, second in merged.tolist():
        lists.append(lists[first] + lists[second])
    regions = [
        {"rect": tuple(rect), "size": size, "labels": labels_of_region}
        for rect, size, labels_of_region in zip(rects, sizes.tolist(), lists, strict=True)
    ]
    return labeled, regions


def _prepare(im_orig: Any) -> tuple[np.ndarray, float]:
    """Return the pixels and what brings them to [0, 1], as ``skimage.util.img_as_float`` does."""
    image = np.asarray(im_orig)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"im_orig: expected the shape (H, W, 3), got {image.shape}")
    check_not_empty(image)
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image), 1.0 / 255
    if image.dtype.kind in "ui":
        factor = 1.0 / np.iinfo(image.dtype).max
    elif image.dtype.kind in "bf" and image.dtype.itemsize <= 8:
        factor = 1.0
    else:
        raise TypeError(f"im_orig: expected integers, floats or bool, got {image.dtype}")
    values = image.astype(np.float64, order="C")
    # Written so that NaN does not pass.
    if not (values.min() >= 0.0 and np.isfinite(values.max())):
        raise ValueError(
            "im_orig: expected finite values of at least 0, "
            f"got values from {values.min():g} to {values.max():g}"
        )
    return values, factor
