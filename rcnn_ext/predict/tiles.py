"""Detection in large pictures: tile by tile, in batches, with the results merged."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rcnn_ext import ops
from rcnn_ext.errors import UserError
from rcnn_ext.predict.stream import DecodedPicture, Network, as_masks

OVERLAP = 0.2
# Of the smaller of two boxes: the part of an object in one tile lies in its box in another.
_MERGE_THRESHOLD = 0.5
_MIN_TILE = 16
# A proposal of which less than this is in a tile has nothing to be seen there.
_MIN_PROPOSAL_SIDE = 1.0


@dataclass(frozen=True)
class Tiling:
    """Division of pictures into tiles.

    Attributes:
        width: Width of a tile in pixels.
        height: Height of a tile in pixels.
        overlap: Fraction of a tile that its neighbor has too.
        whole_picture: Whether the model also runs on the whole picture, for objects larger than a
            tile.
    """

    width: int
    height: int
    overlap: float = OVERLAP
    whole_picture: bool = True

    @classmethod
    def of(cls, tile: Any, overlap: float = OVERLAP, whole_picture: bool = True) -> Tiling:
        """Return the division into tiles of one side, or of (width, height).

        Raises:
            UserError: A value is out of range.
        """
        sides = [tile, tile] if isinstance(tile, int) else tile
        if (
            not isinstance(sides, Sequence)
            or len(sides) != 2
            or not all(isinstance(side, int) and side >= _MIN_TILE for side in sides)
        ):
            raise UserError(
                f"tile must be a number of pixels from {_MIN_TILE} on, or (width, height), not "
                f"{tile!r}"
            )
        if not 0 <= overlap < 1:
            raise UserError(f"overlap must be at least 0 and below 1, not {overlap}")
        return cls(sides[0], sides[1], overlap, whole_picture)

    def covers(self, height: int, width: int) -> bool:
        """Return whether one tile holds a whole picture."""
        return height <= self.height and width <= self.width

    def windows(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Return the tiles of a picture, which cover it.

        Args:
            height: Height of the picture in pixels.
            width: Width of the picture in pixels.

        Returns:
            (x1, y1, x2, y2) of each, row by row; all of one size, smaller than a tile only where
            the picture is.
        """
        tile_width, tile_height = min(self.width, width), min(self.height, height)
        return [
            (x, y, x + tile_width, y + tile_height)
            for y, x in itertools.product(
                self._starts(height, tile_height), self._starts(width, tile_width)
            )
        ]

    def _starts(self, length: int, tile: int) -> list[int]:
        step = max(1, round(tile * (1 - self.overlap)))
        # The last tile ends where the picture does, and overlaps more.
        return [*range(0, length - tile, step), length - tile]


class TiledNetwork:
    """Call a model on the tiles of pictures, and on pictures that are no larger as they are.

    Args:
        network: The model.
        tiling: The division into tiles.
        batch_size: Number of tiles per batch.
        min_score: Minimum score of a detection; those below it are not merged either.
        max_whole_pixels: Larger pictures, whose files are only mapped, are not searched as a whole.
    """

    def __init__(
        self,
        network: Network,
        tiling: Tiling,
        batch_size: int,
        min_score: float,
        max_whole_pixels: int,
    ) -> None:
        self.network = network
        self.tiling = tiling
        self.batch_size = batch_size
        self.min_score = min_score
        self.max_whole_pixels = max_whole_pixels

    def __call__(self, pictures: Sequence[DecodedPicture]) -> list[dict[str, Tensor]]:
        """Return the merged results, one dict per picture.

        Raises:
            UserError: The device has not enough memory for a batch.
        """
        small = [one for one in pictures if self.tiling.covers(*one.pixels.shape[1:])]
        of_small = iter(self.network(small) if small else [])
        return [
            next(of_small) if self.tiling.covers(*one.pixels.shape[1:]) else self._detect(one)
            for one in pictures
        ]

    def _detect(self, one: DecodedPicture) -> dict[str, Tensor]:
        height, width = one.pixels.shape[1:]
        windows = self.tiling.windows(height, width)
        found: list[dict[str, Tensor]] = []
        for start in range(0, len(windows), self.batch_size):
            batch = windows[start : start + self.batch_size]
            proposals = None
            if one.proposals is not None:
                proposals = [_proposals_in(one.proposals, window) for window in batch]
            results = self.network.run(
                [one.pixels[:, y1:y2, x1:x2] for x1, y1, x2, y2 in batch], proposals
            )
            found += [
                self._moved(result, window, (height, width))
                for result, window in zip(results, batch, strict=True)
            ]
        if self.tiling.whole_picture and height * width <= self.max_whole_pixels:
            (result,) = self.network([one])
            found.append(self._moved(result, (0, 0, width, height), (height, width)))
        return _merged(found)

    def _moved(
        self, result: dict[str, Tensor], window: tuple[int, int, int, int], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return the results of a tile, without low scores, in pixels of the picture."""
        x1, y1, x2, y2 = window
        keep = result["scores"] >= self.min_score
        boxes = result["boxes"][keep]
        moved = {
            "boxes": boxes + boxes.new_tensor([x1, y1, x1, y1]),
            "labels": result["labels"][keep],
            "scores": result["scores"][keep],
        }
        if "masks" in result:
            masks = as_masks(result["masks"][keep])
            moved["masks"] = masks.new_zeros(len(masks), *size)
            moved["masks"][:, y1:y2, x1:x2] = masks
        return moved


def _merged(found: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Merge what was found in several tiles, by the intersection over the smaller box."""
    together = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    merged = ops.non_max_merging(
        together["boxes"],
        together["scores"],
        together["labels"],
        threshold=_MERGE_THRESHOLD,
        metric="ios",
    )
    result = {
        "boxes": merged.boxes,
        "scores": merged.scores,
        "labels": together["labels"][merged.indices],
    }
    if "masks" in together:
        masks = together["masks"]
        whole = masks.new_zeros(len(merged.boxes), *masks.shape[1:])
        for group, mask in zip(merged.groups.tolist(), masks, strict=True):
            if group >= 0:
                whole[group] |= mask
        result["masks"] = whole
    return result


def _proposals_in(proposals: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """Return the parts of proposals [P, 4] in a tile, in its pixels."""
    x1, y1, x2, y2 = window
    limits = proposals.new_tensor([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
    moved = proposals - proposals.new_tensor([x1, y1, x1, y1])
    inside = torch.minimum(moved.clamp(min=0), limits)
    return inside[(inside[:, 2:] - inside[:, :2] >= _MIN_PROPOSAL_SIDE).all(dim=1)]
