"""Pooling modules under the names of ``torchvision.ops.poolers``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rcnn_ext.ops._arguments import explained
from rcnn_ext.ops._rois import pair, to_rois
from rcnn_ext.ops._torchvision import torchvision_ops
from rcnn_ext.ops.multiscale_roi_align import multiscale_roi_align
from rcnn_ext.ops.roi_align import roi_align


class MultiScaleRoIAlign(nn.Module):
    """Pool every box from the pyramid level that fits its size.

    :func:`multiscale_roi_align` with strides measured from the sizes of the maps and the images.

    Drop-in replacement for :class:`torchvision.ops.MultiScaleRoIAlign`, with its attributes:

    Attributes:
        scales: 1 / stride of each map, as measured in the last call; ``None`` before the first.
            Strides that are assigned are used instead of measuring, until ``None`` is assigned.
        map_levels: Function from the boxes of each image, ``[L, 4]``, to the index int64 ``[sum of
            L]`` of the map that each is pooled from; ``None`` before the first call. One that is
            assigned is used, until ``None`` is assigned.

    Args:
        featmap_names: Keys of the maps to pool from; others are ignored.
        output_size: Bins (height, width), or one number for both.
        sampling_ratio: As in :func:`roi_align`.
        canonical_scale: Side of a box, in image pixels.
        canonical_level: Level that such a box is pooled from.
        aligned: As in :func:`roi_align`; torchvision's class has no such choice, detectron2's
            detectors were trained with it.

    Example:
        >>> pooler = MultiScaleRoIAlign(["0", "1"], 7, 2)
        >>> features = {"0": torch.rand(1, 256, 64, 64), "1": torch.rand(1, 256, 32, 32)}
        >>> pooler(features, [torch.tensor([[8.0, 8, 96, 96]])], [(256, 256)]).shape
        torch.Size([1, 256, 7, 7])
    """

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.featmap_names = featmap_names
        self.output_size = pair(output_size, "MultiScaleRoIAlign")
        self.sampling_ratio = sampling_ratio
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.aligned = aligned
        self._measured_scales: list[float] | None = None
        self._given_scales: list[float] | None = None
        self._given_map_levels: Callable[[list[Tensor]], Tensor] | None = None

    @property
    def scales(self) -> list[float] | None:
        """Return 1 / stride of each map, as assigned or as measured in the last call."""
        return self._measured_scales if self._given_scales is None else self._given_scales

    @scales.setter
    def scales(self, value: Sequence[float] | None) -> None:
        self._given_scales = None if value is None else list(value)
        self._measured_scales = None

    @property
    def map_levels(self) -> Callable[[list[Tensor]], Tensor] | None:
        """Return the function that maps boxes to levels: as assigned, or torchvision's."""
        if self._given_map_levels is not None or self.scales is None:
            return self._given_map_levels
        finest, coarsest = (int(-math.log2(self.scales[level])) for level in (0, -1))
        mapper: Callable[[list[Tensor]], Tensor] = torchvision_ops().poolers.LevelMapper(
            finest, coarsest, self.canonical_scale, self.canonical_level
        )
        return mapper

    @map_levels.setter
    def map_levels(self, value: Callable[[list[Tensor]], Tensor] | None) -> None:
        self._given_map_levels = value

    @explained
    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Pool boxes of all images.

        Args:
            x: Maps ``[N, C, H, W]`` by name, finest first.
            boxes: One ``[L, 4]`` (x1, y1, x2, y2) per image, image pixels.
            image_shapes: (height, width) of each image before padding, in image pixels.

        Returns:
            ``[sum of L, C, height, width]``, boxes in order.

        Raises:
            ValueError: No map of the names wanted, or wrong shapes.
        """
        levels = None if self._given_map_levels is None else self._given_map_levels(boxes)
        rois = to_rois(boxes, "MultiScaleRoIAlign")  # [K, 5]
        return self.pool_rois(x, rois, image_shapes, levels=levels)

    @property
    def fixed_scales(self) -> list[float] | None:
        """Return the scales that were assigned; None where each call measures them."""
        return self._given_scales

    @property
    def pools_by_size(self) -> bool:
        """Return whether the level of a box follows from its size: no other rule was assigned."""
        return self._given_map_levels is None

    def pool_rois(
        self,
        x: dict[str, Tensor],
        rois: Tensor,
        image_shapes: list[tuple[int, int]],
        scales: list[float] | None = None,
        *,
        levels: Tensor | None = None,
    ) -> Tensor:
        """Pool RoIs of all images.

        Args:
            x: Maps ``[N, C, H, W]`` by name, finest first.
            rois: ``[K, 5]`` (index of the image, x1, y1, x2, y2), image pixels.
            image_shapes: (height, width) of the images that the maps cover.
            scales: 1 / stride of each map; None takes those that were assigned, else measures.
            levels: Index ``[K]`` of the map that each RoI is pooled from; None chooses by size.

        Returns:
            ``[K, C, height, width]``.

        Raises:
            ValueError: No map of the names wanted, or wrong shapes.
        """
        features = [x[name] for name in self.featmap_names if name in x]
        if not features:
            raise ValueError(
                f"MultiScaleRoIAlign: expected a map named one of {self.featmap_names}, "
                f"got {sorted(x)}"
            )
        scales = self._given_scales if scales is None else scales
        if scales is None:
            scales = measure_scales(features, image_shapes)
            if not torch.compiler.is_compiling():
                self._measured_scales = scales
        if len(features) == 1:
            return roi_align(
                features[0], rois, self.output_size, scales[0], self.sampling_ratio, self.aligned
            )
        # Maps of several dtypes, as autocast may leave them, take that of the first.
        features = [feature.to(features[0].dtype) for feature in features]
        if levels is not None:
            return self._pool_from(levels, features, rois, scales)
        return multiscale_roi_align(
            features,
            rois,
            self.output_size,
            scales,
            self.sampling_ratio,
            self.aligned,
            canonical_scale=self.canonical_scale,
            canonical_level=self.canonical_level,
        )

    def _pool_from(
        self, levels: Tensor, features: list[Tensor], rois: Tensor, scales: list[float]
    ) -> Tensor:
        """Pool each RoI from the level that a function of the user chose, ``[K]``."""
        pooled = features[0].new_zeros(len(rois), features[0].shape[1], *self.output_size)
        for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
            members = (levels == level).nonzero()[:, 0]
            of_level = roi_align(
                feature, rois[members], self.output_size, scale, self.sampling_ratio, self.aligned
            )
            pooled = pooled.index_copy(0, members, of_level)
        return pooled

    def extra_repr(self) -> str:
        """Return the options, for ``repr``."""
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio}" + ", aligned=True" * self.aligned
        )


def measure_scales(features: list[Tensor], image_shapes: list[tuple[int, int]]) -> list[float]:
    """Return 1 / stride of each map: the power of two nearest to its size over the images'.

    Measured along the longer side, where padding to a multiple of the stride weighs least.
    """
    if not image_shapes:
        raise ValueError("MultiScaleRoIAlign: expected at least one image shape")
    extent = _longest(side for shape in image_shapes for side in shape)
    sides = [_longest(feature.shape[-2:]) for feature in features]
    if not torch.compiler.is_compiling() and not (extent > 0 and all(side > 0 for side in sides)):
        raise ValueError(
            "MultiScaleRoIAlign: expected maps and images of at least one pixel, got maps of "
            f"{[tuple(feature.shape[-2:]) for feature in features]} and images of {image_shapes}"
        )
    return [nearest_power_of_two(side / extent) for side in sides]


def _longest(sides: Iterable[int]) -> int:
    # Not max(), which would bind an exported program to pictures that are wide, or high, as the
    # example is.
    longest: int = functools.reduce(torch.sym_max, sides)  # type: ignore[arg-type]
    return longest


def nearest_power_of_two(ratio: float) -> float:
    """Return the power of two whose logarithm is nearest to that of a positive number.

    By comparisons: the logarithm of a symbolic number would fix it in an exported program.
    """
    exponent = 0
    while ratio < 2.0 ** (exponent - 0.5):
        exponent -= 1
    while ratio > 2.0 ** (exponent + 0.5):
        exponent += 1
    return 2.0**exponent


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(torchvision_ops().poolers, name)
