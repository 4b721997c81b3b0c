"""Anchors: boxes of fixed sizes and shapes at every position of every feature map."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

# Batches of one padded size share their anchors. A training run with images of many shapes
# meets some tens of sizes; 16 of the largest usual ones (800x1344) are 70 MB.
_MAX_CACHED = 16


class AnchorGenerator(nn.Module):
    """Make the anchors of a batch.

    Args:
        sizes: For each feature map, the sides (of square anchors) in image pixels. Plain numbers
            mean one size per feature map.
        aspect_ratios: For each feature map, height / width. Plain numbers mean the same ratios for
            every feature map. An anchor of size s and ratio r has area s * s.
        whole_pixels: Round the corners around the center to whole pixels, as in the code of the
            Faster R-CNN paper and in torchvision; detectron2 does not.
        strides: Image pixels from one position of each feature map to the next. None finds them
            from the sizes of image and map: the power of two that explains both sides of the map,
            else ``floor``. ``floor`` divides the side of the image by that of the map and rounds
            down, as torchvision does: where the map's side was rounded up, anchors then drift from
            their positions (stride 61 rather than 64 for P6 of an image 800 pixels high), and
            detectors trained so expect it.

    Raises:
        ValueError: ``sizes`` and ``aspect_ratios`` are empty, not positive or differ in length, or
            ``strides`` do.

    The constructor and the order of the anchors are those of torchvision's ``AnchorGenerator``, and
    with ``strides="floor"`` their coordinates too, except that half-precision features get float32
    anchors.

    Example:
        >>> AnchorGenerator(sizes=(16, 32, 64, 128, 256), aspect_ratios=(0.5, 1.0, 2.0))
    """

    def __init__(
        self,
        sizes: Sequence[Any] = ((128, 256, 512),),
        aspect_ratios: Sequence[Any] = ((0.5, 1.0, 2.0),),
        whole_pixels: bool = True,
        strides: Sequence[float] | Literal["floor"] | None = None,
    ) -> None:
        super().__init__()
        if len(sizes) == 0 or len(aspect_ratios) == 0:
            raise ValueError("anchor sizes and aspect ratios must not be empty")
        if not isinstance(sizes[0], Sequence):
            sizes = [(size,) for size in sizes]
        if not isinstance(aspect_ratios[0], Sequence):
            aspect_ratios = [aspect_ratios] * len(sizes)
        self.sizes = tuple(tuple(level) for level in sizes)
        self.aspect_ratios = tuple(tuple(level) for level in aspect_ratios)
        if len(self.sizes) != len(self.aspect_ratios):
            raise ValueError(
                f"anchor sizes are given for {len(self.sizes)} feature maps, aspect ratios for "
                f"{len(self.aspect_ratios)}"
            )
        for level in self.sizes + self.aspect_ratios:
            if len(level) == 0 or any(not value > 0 for value in level):
                raise ValueError(f"anchor sizes and aspect ratios must be positive, got {level}")
        self.whole_pixels = whole_pixels
        self.strides = _checked_strides(strides, len(self.sizes))
        self._cache: OrderedDict[Any, Tensor] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles of a model need no anchors: they are made again when first used.
        return {**self.__dict__, "_cache": OrderedDict()}

    def num_anchors_per_location(self) -> list[int]:
        """Return the number of anchors at each position, for each feature map."""
        return [
            len(sizes) * len(ratios)
            for sizes, ratios in zip(self.sizes, self.aspect_ratios, strict=True)
        ]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors of each image.

        Args:
            image_list: The batch; ``image_list.tensors`` is [N, 3, H, W], padded.
            feature_maps: [N, C, H_l, W_l] for each level l.

        Returns:
            N times the same tensor [A, 4] (x1, y1, x2, y2), image pixels, not clipped. In order:
            level, row, column, aspect ratio, size. Do not change it in place: it is cached.

        Raises:
            ValueError: The number of feature maps is not the number of ``sizes``.
        """
        anchors = self.of_batch(image_list.tensors, feature_maps)
        return [anchors] * len(image_list.image_sizes)

    def of_batch(
        self, images: Tensor, feature_maps: list[Tensor], strides: Sequence[float] | None = None
    ) -> Tensor:
        """Return the anchors of every image of a batch.

        Args:
            images: [N, 3, H, W], padded.
            feature_maps: [N, C, H_l, W_l] for each level l.
            strides: Image pixels from one position of each map to the next, used where
                ``strides`` is None; None finds them from the sizes of image and map.

        Returns:
            Tensor [A, 4], as ``forward`` gives it for an image.

        Raises:
            ValueError: The number of feature maps is not the number of ``sizes``.
        """
        if len(feature_maps) != len(self.sizes):
            raise ValueError(
                f"the anchor generator has sizes for {len(self.sizes)} feature maps, the backbone "
                f"gives {len(feature_maps)}"
            )
        height, width = images.shape[-2:]
        grids = tuple((f.shape[-2], f.shape[-1]) for f in feature_maps)
        if self.strides is None and strides is not None:
            used = _repeated(strides)
        else:
            used = self._strides_of((height, width), grids)
        dtype = torch.promote_types(feature_maps[0].dtype, torch.float32)
        return self._cached_anchors(grids, used, dtype, feature_maps[0])

    def _strides_of(
        self, image: tuple[int, int], grids: tuple[tuple[int, int], ...]
    ) -> tuple[tuple[float, float], ...]:
        """Return the strides (y, x) of each level."""
        if isinstance(self.strides, tuple):
            return _repeated(self.strides)
        if self.strides is None:
            return tuple(_found_strides(image, grid) for grid in grids)
        return tuple((image[0] // rows, image[1] // columns) for rows, columns in grids)

    def _cached_anchors(
        self,
        grids: tuple[tuple[int, int], ...],
        strides: tuple[tuple[float, float], ...],
        dtype: torch.dtype,
        feature_map: Tensor,
    ) -> Tensor:
        device = feature_map.device
        if torch.compiler.is_compiling() or type(feature_map) is not Tensor:
            # A traced or fake tensor must not reach later calls through the cache.
            return self._make_anchors(grids, strides, dtype, device)
        key = (grids, strides, dtype, device, self.whole_pixels)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        # Outside inference mode, whose tensors autograd could not save in a later training step.
        with torch.inference_mode(False), torch.no_grad():
            anchors = self._make_anchors(grids, strides, dtype, device)
        self._cache[key] = anchors
        if len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        return anchors

    def _make_anchors(
        self,
        grids: tuple[tuple[int, int], ...],
        strides: tuple[tuple[float, float], ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        levels = []
        for level, ((rows, columns), (stride_y, stride_x)) in enumerate(
            zip(grids, strides, strict=True)
        ):
            x = torch.arange(columns, device=device) * stride_x
            y = torch.arange(rows, device=device) * stride_y
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")  # [rows, columns] each
            centers = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1).reshape(-1, 1, 4)
            cell = self._cell_anchors(level).to(device=device, dtype=dtype)  # [K, 4]
            levels.append((centers + cell).reshape(-1, 4))  # [rows * columns * K, 4]
        return torch.cat(levels)

    def _cell_anchors(self, level: int) -> Tensor:
        """Return the anchors [K, 4] around (0, 0), ordered by aspect ratio, then size."""
        sizes = torch.tensor(self.sizes[level], dtype=torch.float32)  # [S]
        root = torch.tensor(self.aspect_ratios[level], dtype=torch.float32).sqrt()[:, None]
        widths = (1 / root * sizes).flatten()  # [R, 1] * [S] -> [R * S]
        heights = (root * sizes).flatten()
        cell = torch.stack((-widths, -heights, widths, heights), dim=1) / 2
        return cell.round() if self.whole_pixels else cell


def _checked_strides(
    strides: Sequence[float] | Literal["floor"] | None, num_levels: int
) -> tuple[float, ...] | Literal["floor"] | None:
    """Return the strides with whole numbers as such, so that anchors are made of integers."""
    if strides is None or strides == "floor":
        return strides
    if isinstance(strides, str):
        raise ValueError(f"strides must be numbers, 'floor' or None, got {strides!r}")
    if len(strides) != num_levels:
        raise ValueError(
            f"anchor sizes are given for {num_levels} feature maps, strides for {len(strides)}"
        )
    if any(not 0 < stride < math.inf for stride in strides):
        raise ValueError(f"strides must be positive, got {tuple(strides)}")
    return tuple(int(stride) if stride == int(stride) else float(stride) for stride in strides)


def _repeated(strides: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return each stride for both directions."""
    return tuple((stride, stride) for stride in strides)


def _found_strides(image: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Return the strides (y, x) of a map, from the sizes (height, width) of image and map."""
    # Networks halve, and round odd sides up or down. The longer side tells two powers apart best.
    longer = 0 if grid[0] >= grid[1] else 1
    stride = 2 ** max(0, round(math.log2(max(image[longer] / grid[longer], 1))))
    if all(
        side // stride <= cells <= -(-side // stride)
        for side, cells in zip(image, grid, strict=True)
    ):
        return stride, stride
    return image[0] // grid[0], image[1] // grid[1]
