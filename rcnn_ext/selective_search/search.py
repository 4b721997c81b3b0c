"""Selective search: ``selective_search`` and ``find_regions``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rcnn_ext.config.selective_search import BackendName, ModeName, SearchSettings
from rcnn_ext.selective_search import external_backends, native
from rcnn_ext.selective_search.filters import ProposalFilter
from rcnn_ext.selective_search.regions import Regions

BACKENDS: dict[str, Callable[[Any, SearchSettings], Regions]] = {
    "native": native.search,
    "package": external_backends.search_with_package,
    "opencv": external_backends.search_with_opencv,
}


def find_regions(image: Any, settings: SearchSettings | None = None) -> Regions:
    """Find the regions of an image.

    Several threads may search at once: the native search holds neither the GIL nor state.

    Args:
        image: [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] array, or a Pillow image: uint8,
            uint16, or floats in [0, 1].
        settings: Settings of the search. None means ``SearchSettings()``, the search of the
            ``selectivesearch`` package.

    Returns:
        Boxes in image pixels and region sizes, unfiltered, in the order of the search.

    Raises:
        TypeError, ValueError: The image or a setting is not as described; the message says how.
        rcnn_ext.errors.UserError: The backend is not installed.
    """
    settings = SearchSettings() if settings is None else settings
    return BACKENDS[settings.backend](image, settings)


def selective_search(
    image: Any,
    scale: float | Sequence[float] | None = None,
    sigma: float | None = None,
    min_size: int | None = None,
    *,
    backend: BackendName = "native",
    mode: ModeName = "single",
    seed: int = 0,
    filters: ProposalFilter | None = None,
    enclose: bool = False,
) -> np.ndarray:
    """Propose boxes of objects in an image.

    Source: Uijlings et al., Selective Search for Object Recognition, IJCV 2013; mode ``single``
    gives the regions of the ``selectivesearch`` package 0.4.

    Args:
        image: [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] array, or a Pillow image: uint8,
            uint16, or floats in [0, 1].
        scale: Scale of the segmentation; larger gives larger segments. Several in modes ``fast``
            and ``quality``. None means the default of the mode, which
            :class:`rcnn_ext.config.SearchSettings` lists.
        sigma: Standard deviation of the smoothing in pixels. None as for ``scale``.
        min_size: Pixels of the smallest segment. None as for ``scale``.
        backend: ``native``, ``package`` (the selectivesearch package) or ``opencv``.
        mode: ``single``: one grouping; ``fast`` and ``quality``: the paper's sets of color spaces,
            similarities and scales, best proposals first.
        seed: Seed of the random part of the order in ``fast`` and ``quality``.
        filters: Which regions to keep. Default: all, in the order of the search.
        enclose: Whether x2 and y2 are the outer borders of the last column and row, as the models
            and RoI operators want, rather than that column and row, as the package has it.

    Returns:
        [N, 4] float32 boxes (x1, y1, x2, y2) in image pixels.

    Raises:
        TypeError, ValueError: An argument is not as described; the message says how.
        rcnn_ext.errors.UserError: The backend is not installed.

    Example:
        >>> boxes = selective_search(image, filters=ProposalFilter(min_side=20), enclose=True)
    """
    settings = SearchSettings(
        backend=backend,
        mode=mode,
        scale=scale,  # type: ignore[arg-type]  # any sequence becomes a tuple
        sigma=sigma,
        min_size=min_size,
        seed=seed,
    )
    regions = find_regions(image, settings)
    if filters is not None:
        height, width = np.asarray(image).shape[:2]
        regions = filters(regions, height, width)
    return regions.enclosing_boxes() if enclose else regions.boxes.astype(np.float32)
