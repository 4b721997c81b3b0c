"""Sources of proposals for the pictures that Fast R-CNN is run on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcnn_ext.config import Recipe
from rcnn_ext.errors import UserError
from rcnn_ext.predict.pictures import Picture, PictureFile
from rcnn_ext.predict.stream import ProposalsOf
from rcnn_ext.selective_search.from_config import SearchedProposals


def searched_proposals(recipe: Recipe, run: Path) -> ProposalsOf:
    """Return a source that takes proposals from the folder of a recipe, else searches for them.

    Args:
        recipe: The recipe of a model that needs proposals.
        run: The folder of its training run.
    """
    searched = SearchedProposals(recipe, run)

    def search(index: int, one: Picture, picture: Image.Image | None) -> Tensor:
        # Only a file has proposals in a folder: a Pillow image may have been changed.
        path = one.path if isinstance(one, PictureFile) else None
        return torch.from_numpy(searched.boxes_in(path, picture or one.picture()))

    return search


def given_proposals(boxes: Sequence[Any]) -> ProposalsOf:
    """Return a source that takes the proposals of each picture from a list.

    Args:
        boxes: For each picture [P, 4] (x1, y1, x2, y2), in its pixels; a tensor, array or list.
    """

    def take(index: int, one: Picture, picture: Image.Image | None) -> Tensor:
        if index >= len(boxes):
            raise UserError(f"{one.name} has no proposals: there are {len(boxes)}")
        found = torch.as_tensor(np.asarray(boxes[index], dtype=np.float32))
        if found.numel() == 0:
            return found.reshape(0, 4)
        if found.dim() != 2 or found.shape[1] != 4:
            raise UserError(
                f"the proposals of {one.name} have the shape {list(found.shape)}; expected "
                "[number of boxes, 4]"
            )
        if not bool(torch.isfinite(found).all() and (found[:, 2:] > found[:, :2]).all()):
            raise UserError(
                f"the proposals of {one.name} need finite coordinates with x1 < x2 and y1 < y2"
            )
        return found

    return take
