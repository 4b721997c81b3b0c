"""Sources of proposals for the pictures that Fast R-CNN is run on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rcnn_ext.config import Recipe
from rcnn_ext.errors import UserError
from rcnn_ext.models.fast_rcnn import needs_proposals
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


def proposals_for(detector: nn.Module, given: Any, kind: str) -> ProposalsOf | None:
    """Return the source of the proposals that a method is given; None where it is given none.

    Args:
        detector: The model.
        given: Boxes [P, 4] for one picture, or a list of such.
        kind: Whether there is ``"one"`` picture, or ``"many"``, or a ``"stream"``.

    Raises:
        UserError: The model takes none, or they are for a stream.
    """
    if given is None:
        return None
    if not needs_proposals(detector):
        raise UserError("proposals are for Fast R-CNN; this model finds its own")
    if kind == "stream":
        raise UserError("proposals go with a list of pictures, not with an iterator")
    return given_proposals([given] if kind == "one" else list(given))
