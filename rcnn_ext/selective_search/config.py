"""The section ``selective_search`` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rcnn_ext.selective_search.filters import ProposalFilter
from rcnn_ext.selective_search.settings import SearchSettings


@dataclass
class SelectiveSearchConfig:
    """Where Fast R-CNN gets the boxes that it classifies: selective search, kept on disk.

    null means the default of the mode. The attributes from ``mode`` to ``seed`` are those of
    :class:`SearchSettings`, the rest are those of :class:`ProposalFilter`.

    Attributes:
        folder: Where the regions are kept, relative to the current folder, as ``rcnn-ext
            selective-search --out`` writes them; null means ``selective_search`` in the folder of
            the run. The filters are applied when it is read, so they may change without another
            search.
        missing: What to do for images that have none there: ``compute`` them before the first step,
            with all cores, or ``error``.
        backend: ``native``; or a peer, to compare with.
        mode: ``single`` (one grouping), ``fast`` or ``quality`` (the paper's sets of colour spaces,
            similarities and scales, best proposals first).
        scale: Of the segmentation; several for ``fast`` and ``quality``.
        sigma: Of the smoothing, in pixels.
        min_size: Pixels of the smallest segment.
        seed: Of the order in ``fast`` and ``quality``.
        min_side: Proposals with a shorter side, in pixels, are left out.
        max_aspect_ratio: So are those whose longer side is more than so many times the shorter one.
        by_size: Whether the largest come first, not those that the search puts first.
        max_boxes: At most so many of an image are used, the first ones; null means all.
    """

    folder: str | None = None
    missing: Literal["compute", "error"] = "compute"
    backend: Literal["native", "package", "opencv"] = "native"
    mode: Literal["single", "fast", "quality"] = "single"
    scale: float | list[float] | None = None
    sigma: float | None = None
    min_size: int | None = None
    seed: int = 0
    min_side: float = 0.0
    max_aspect_ratio: float | None = None
    by_size: bool = False
    max_boxes: int | None = 2000

    def __post_init__(self) -> None:
        # They raise ValueError for what has no meaning.
        self.settings()
        self.filters()

    def settings(self) -> SearchSettings:
        """The search."""
        return SearchSettings.of(
            backend=self.backend,
            mode=self.mode,
            scale=self.scale,
            sigma=self.sigma,
            min_size=self.min_size,
            seed=self.seed,
        )

    def filters(self) -> ProposalFilter:
        """What of its regions is used."""
        return ProposalFilter(
            min_side=self.min_side,
            max_aspect_ratio=self.max_aspect_ratio,
            by_size=self.by_size,
            max_boxes=self.max_boxes,
        )
