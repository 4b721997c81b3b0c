"""The searches of the ``selectivesearch`` package and of OpenCV behind the same interface."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from rcnn_ext.config.selective_search import SearchSettings
from rcnn_ext.errors import UserError
from rcnn_ext.selective_search.images import as_rgb
from rcnn_ext.selective_search.regions import Regions


def search_with_package(image: Any, settings: SearchSettings) -> Regions:
    """Search with the ``selectivesearch`` package.

    Args:
        image: See :func:`rcnn_ext.selective_search.selective_search`.
        settings: Settings of the search; the mode has to be ``single``.

    Returns:
        All regions, in the package's order.

    Raises:
        UserError: The package is not installed.
        ValueError: Another mode than ``single``.
    """
    try:
        import selectivesearch
    except ImportError as error:
        raise UserError(
            "backend 'package' needs the selectivesearch package: "
            f"pip install 'rcnn-ext[selective-search]' ({error})"
        ) from None
    if settings.mode != "single":
        raise ValueError(f"mode: backend 'package' has 'single' only, got {settings.mode!r}")
    (scale,) = settings.scales
    pixels = as_rgb(image)
    with warnings.catch_warnings():
        # scikit-image warns of local binary patterns of floats, which the package makes of any.
        warnings.filterwarnings("ignore", ".*local_binary_pattern.*", UserWarning)
        _, found = selectivesearch.selective_search(
            pixels,
            # Its histograms expect values up to 255, but it segments floats as they are, where the
            # scale refers to values up to 1.
            scale=scale if pixels.dtype == np.uint8 else scale * 255.0,
            sigma=settings.smoothing_sigma,
            min_size=settings.min_size_at(scale),
        )
    rects = np.array([region["rect"] for region in found], dtype=np.int32).reshape(-1, 4)
    rects[:, 2:] += rects[:, :2]
    return Regions(rects, np.array([region["size"] for region in found], dtype=np.int64))


def search_with_opencv(image: Any, settings: SearchSettings) -> Regions:
    """Search with ``cv2.ximgproc.segmentation``, which opencv-contrib has.

    OpenCV takes one scale and, in its fast and quality modes, steps from it by itself; it has no
    parameter for the smallest segment, and takes no more than 8 bits a channel. Its process dies on
    some images with extreme aspect ratios (opencv_contrib#705).

    Args:
        image: See :func:`rcnn_ext.selective_search.selective_search`.
        settings: Settings of the search; the first scale and sigma are used.

    Returns:
        Its boxes, in its order, which is random; ``sizes`` are those of the boxes.

    Raises:
        UserError: The package opencv-contrib is not installed.
    """
    try:
        import cv2

        segmentation = cv2.ximgproc.segmentation
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"backend 'opencv' needs opencv-contrib: pip install 'rcnn-ext[opencv]' ({error})"
        ) from None
    pixels = as_rgb(image)
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels).astype(np.uint8)
    searcher = segmentation.createSelectiveSearchSegmentation()
    searcher.setBaseImage(np.ascontiguousarray(pixels[:, :, ::-1]))  # OpenCV's order is BGR
    scale, sigma = settings.scales[0], settings.smoothing_sigma
    if settings.mode == "single":
        searcher.switchToSingleStrategy(round(scale), sigma)
    elif settings.mode == "fast":
        searcher.switchToSelectiveSearchFast(round(scale), _step(settings), sigma)
    else:
        searcher.switchToSelectiveSearchQuality(round(scale), _step(settings), sigma)
    rects = np.asarray(searcher.process(), dtype=np.int32).reshape(-1, 4)
    sizes = rects[:, 2].astype(np.int64) * rects[:, 3]
    boxes = rects.copy()
    boxes[:, 2:] += boxes[:, :2] - 1
    return Regions(boxes, sizes)


def _step(settings: SearchSettings) -> int:
    scales = settings.scales
    return round(scales[1] - scales[0]) if len(scales) > 1 else round(scales[0])
