"""From the regions of a search to the proposals that a detector is given."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rcnn_ext.selective_search.regions import Regions, unique_boxes
from rcnn_ext.selective_search.settings import check_number


@dataclasses.dataclass(frozen=True)
class ProposalFilter:
    """Chooses among the regions of an image.

    The steps are taken in the order of the attributes.

    Attributes:
        unique: keep only the first of equal boxes.
        min_side: drop boxes whose width or height, x2 - x1 or y2 - y1, is below this, in pixels.
        max_aspect_ratio: drop boxes whose longer side is more than so many times the shorter one.
        by_size: order by the size of regions, the largest first; equal ones keep their order.
        max_boxes: keep so many at most, the first ones.
        whole_image: give the whole image where nothing remains.
    """

    unique: bool = True
    min_side: float = 0.0
    max_aspect_ratio: float | None = None
    by_size: bool = False
    max_boxes: int | None = None
    whole_image: bool = True

    def __post_init__(self) -> None:
        check_number("min_side", self.min_side, 0.0, np.inf)
        if self.max_aspect_ratio is not None:
            check_number("max_aspect_ratio", self.max_aspect_ratio, 1.0, np.inf)
        if self.max_boxes is not None and (
            not isinstance(self.max_boxes, (int, np.integer)) or self.max_boxes < 1
        ):
            raise ValueError(
                f"max_boxes: expected a whole number of at least 1, got {self.max_boxes!r}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Give the settings for JSON."""
        return dataclasses.asdict(self)

    def __call__(self, regions: Regions, height: int, width: int) -> Regions:
        """Choose.

        Args:
            regions: of one image, in the order of the search.
            height: of the image, in pixels.
            width: of the image, in pixels.

        Returns:
            What remains; at least one region if ``whole_image`` is set.
        """
        if self.unique:
            regions = regions.take(unique_boxes(regions.boxes))
        sides = (regions.boxes[:, 2:] - regions.boxes[:, :2]).astype(np.float64)  # [N, 2]
        shorter, longer = sides.min(axis=1, initial=np.inf), sides.max(axis=1, initial=0.0)
        keep = shorter >= self.min_side
        if self.max_aspect_ratio is not None:
            keep &= (longer <= self.max_aspect_ratio * shorter) & (shorter > 0)
        regions = regions.take(keep)
        if self.by_size:
            regions = regions.take(np.argsort(-regions.sizes, kind="stable"))
        if self.max_boxes is not None:
            regions = regions.take(np.arange(min(len(regions), self.max_boxes)))
        if self.whole_image and len(regions) == 0:
            return Regions.whole_image(height, width)
        return regions
