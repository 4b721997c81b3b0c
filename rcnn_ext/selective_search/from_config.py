"""Proposals for Fast R-CNN, as the recipe of a run says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import distributed

from rcnn_ext.config import Recipe
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.images import ImageReader
from rcnn_ext.distributed import Processes
from rcnn_ext.selective_search import (
    CachedRegions,
    ProposalCache,
    ProposalFilter,
    find_regions,
)
from rcnn_ext.selective_search.precompute import precompute

_FOLDER = "selective_search"


class SearchedProposals:
    """Proposals from the folder that a recipe names, or from a search.

    A :class:`rcnn_ext.data.samples.ProposalSource`.

    Args:
        recipe: The recipe of a model that needs proposals.
        run: The folder of its training run.
    """

    def __init__(self, recipe: Recipe, run: Path) -> None:
        config = recipe.selective_search
        folder = run / _FOLDER if config.folder is None else Path(config.folder)
        self.cache = ProposalCache(folder, config.settings(), ProposalFilter.of(config))
        self.reader = ImageReader.of(recipe.data)
        self.computes = config.missing == "compute"

    def boxes(self, image: Path) -> np.ndarray:
        """Return the proposals for an image file that has been prepared.

        Returns:
            float32 [P, 4] (x1, y1, x2, y2), pixels of the image.

        Raises:
            UserError: There are none for it.
        """
        return self.cache.boxes(image)

    def boxes_in(self, image: Path | None, picture: Image.Image) -> np.ndarray:
        """Return the proposals for any picture, without keeping those of a new search.

        Args:
            image: Its file, or None for a picture in memory.
            picture: The picture in it, upright.

        Returns:
            float32 [P, 4] (x1, y1, x2, y2), pixels of the picture.
        """
        if image is not None and self.cache.has(image.read_bytes()):
            return self.cache.boxes(image)
        found = find_regions(picture, self.cache.settings)
        return self.cache.chosen(CachedRegions(found, picture.height, picture.width))

    def prepare(self, sets: Sequence[AnnotationSet], processes: Processes) -> None:
        """Search the images that have no proposals, each process its share, unless forbidden.

        Pictures that cannot be read are left for the reader of samples, which knows whether that
        matters.
        """
        if not self.computes:
            return
        images = [record.path for annotations in sets for record in annotations.images]
        summary = precompute(images, self.cache, processes=processes, reader=self.reader)
        if processes.count > 1:
            distributed.barrier()
        own = " by the main process" if processes.count > 1 else ""
        processes.print_once(
            f"selective search: {summary.computed} images searched{own}, {summary.present} were in "
            f"{self.cache.folder}"
        )


def open_proposals(recipe: Recipe, run: Path) -> SearchedProposals | None:
    """Return the proposals of a recipe; None for models that need none.

    Args:
        recipe: What is trained, or was.
        run: The folder of the training run.
    """
    return SearchedProposals(recipe, run) if recipe.model.detector == "fast_rcnn" else None
