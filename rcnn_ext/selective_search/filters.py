"""From the regions of a search to the proposals that a detector is given."""

from __future__ import annotations

import dataclasses

import numpy as np

from rcnn_ext.config.selective_search import FilterSettings
from rcnn_ext.selective_search.regions import Regions, unique_boxes


@dataclasses.dataclass(frozen=True)
class ProposalFilter(FilterSettings):
    """Choose among the regions of an image.

    Its options are those of :class:`FilterSettings`: ``unique``, ``min_side``,
    ``max_aspect_ratio``, ``by_size``, ``max_boxes`` and ``whole_image``, applied in this order.
    """

    @classmethod
    def of(cls, settings: FilterSettings) -> ProposalFilter:
        """Return a filter with the options of any settings that have them, such as a recipe's."""
        names = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: getattr(settings, name) for name in names})

    def __call__(self, regions: Regions, height: int, width: int) -> Regions:
        """Choose.

        Args:
            regions: Regions of one image, in the order of the search.
            height: Height of the image, in pixels.
            width: Width of the image, in pixels.

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
