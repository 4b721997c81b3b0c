"""The native search (``csrc/selective_search``)."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np

from rcnn_ext import _extension
from rcnn_ext.config.selective_search import SearchSettings
from rcnn_ext.selective_search.images import UNIT, as_rgb, gaussian_weights
from rcnn_ext.selective_search.regions import Regions, unique_boxes

# Of the image whose derivatives are the texture, as in the paper.
_TEXTURE_SIGMA = 1.0


@dataclasses.dataclass(frozen=True)
class _Diversity:
    """Color spaces, and sums of similarities by their first letters."""

    spaces: tuple[str, ...]
    strategies: tuple[str, ...]


# Uijlings et al., table 5.
_DIVERSITY = {
    "fast": _Diversity(("hsv", "lab"), ("CTSF", "TSF")),
    "quality": _Diversity(("hsv", "lab", "rgi", "h", "i"), ("CTSF", "TSF", "F", "S")),
}


def load() -> Any:
    """Return the native module.

    Raises:
        RuntimeError: It cannot be loaded; the message says why.
    """
    module = _extension.status()["_selective_search"]
    if not module.loaded:
        raise RuntimeError(f"the native selective search is {module.reason}")
    return importlib.import_module("rcnn_ext._selective_search")


def search(image: Any, settings: SearchSettings) -> Regions:
    """Search with one grouping, or with those of the paper.

    Args:
        image: See :func:`rcnn_ext.selective_search.selective_search`.
        settings: Settings of the search.

    Returns:
        Mode ``single``: all regions, segments first, then unions in the order of their merging.
        Otherwise the regions of all groupings, the likeliest objects first, each box once.
    """
    pixels = as_rgb(image)
    if settings.mode == "single":
        (scale,) = settings.scales
        _, boxes, sizes, _ = load().selectivesearch_compat(
            pixels,
            factor=UNIT,
            weights=gaussian_weights(settings.smoothing_sigma),
            scale=scale,
            min_size=settings.min_size_at(scale),
        )
        return Regions(boxes, sizes)
    return _search_diversely(pixels, settings)


def _search_diversely(pixels: np.ndarray, settings: SearchSettings) -> Regions:
    module = load()
    measure = {"C": module.COLOR, "T": module.TEXTURE, "S": module.SIZE, "F": module.FILL}
    diversity = _DIVERSITY[settings.mode]
    groupings = module.diversified_search(
        pixels,
        factor=UNIT,
        spaces=list(diversity.spaces),
        weights=gaussian_weights(settings.smoothing_sigma),
        texture_weights=gaussian_weights(_TEXTURE_SIGMA),
        scales=[(scale, settings.min_size_at(scale)) for scale in settings.scales],
        strategies=[sum(measure[letter] for letter in s) for s in diversity.strategies],
    )
    # The paper's order: a region's place counted from the end of its grouping, where it is the
    # whole image, times a random number, so that large regions come first more often than not.
    random = np.random.default_rng(settings.seed)
    priorities = [
        random.random(len(sizes)) * np.arange(len(sizes), 0, -1) for _, sizes in groupings
    ]
    order = np.argsort(np.concatenate(priorities), kind="stable")
    found = Regions(
        np.concatenate([boxes for boxes, _ in groupings]),
        np.concatenate([sizes for _, sizes in groupings]),
    ).take(order)
    return found.take(unique_boxes(found.boxes))


def instruction_set(name: str | None = None) -> str:
    """Return, or choose, the instruction set that the search uses; results do not depend on it."""
    module = load()
    if name is not None:
        module.use_instruction_set(name)
    return module.instruction_set()
