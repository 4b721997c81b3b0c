"""Cut RoIs out of the single feature map of a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rcnn_ext import ops
from rcnn_ext.models.feature_maps import measure_feature_maps
from rcnn_ext.ops.poolers import nearest_power_of_two

POOLERS = ("align", "pool")


class RoIPooler(nn.Module):
    """RoIAlign or RoIPool on a backbone with one feature map.

    Args:
        backbone: Module from [N, 3, H, W] to one map. It is only measured, not kept: the operator's
            spatial scale is 1 / its stride.
        kind: "align" (bilinear samples, half-pixel-correct) or "pool" (maximum over whole
            feature pixels, as in Fast R-CNN).
        output_size: Pooled height and width.
        sampling_ratio: Samples along each side of a bin, for "align"; 0 adapts to the RoI's size.

    Raises:
        ValueError: An unknown kind, or a backbone with several feature maps.
    """

    def __init__(
        self,
        backbone: nn.Module,
        kind: str = "align",
        output_size: int | tuple[int, int] = 7,
        sampling_ratio: int = 2,
    ) -> None:
        super().__init__()
        maps = measure_feature_maps(backbone)
        if len(maps) != 1:
            raise ValueError(
                f"a RoIPooler needs a backbone with one feature map, this one gives {list(maps)}; "
                "use MultiScaleRoIAlign"
            )
        ((self.featmap_name, feature_map),) = maps.items()
        self.output_size = (
            (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        )
        scale = 1 / feature_map.stride
        self.operator: nn.Module
        if kind == "align":
            self.operator = ops.RoIAlign(self.output_size, scale, sampling_ratio, aligned=True)
        elif kind == "pool":
            self.operator = ops.RoIPool(self.output_size, scale)
        else:
            raise ValueError(f"pooler must be one of {', '.join(POOLERS)}, got {kind!r}")

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Return [R, C, h, w], the RoIs of all images one after the other.

        Args:
            features: Name to map [N, C, H, W].
            proposals: One tensor [R_i, 4] (x1, y1, x2, y2) per image, image pixels.
            image_shapes: Not used; the call is that of ``MultiScaleRoIAlign``.
        """
        return self.operator(features[self.featmap_name], list(proposals))


def measures_strides(pooler: nn.Module) -> bool:
    """Return whether a pooler measures the strides of the maps in each call."""
    return isinstance(pooler, ops.MultiScaleRoIAlign) and pooler.fixed_scales is None


def pool_padded(
    pooler: nn.Module,
    features: dict[str, Tensor],
    proposals: Tensor,
    padded_size: tuple[int, int],
    strides: Mapping[str, float] | None = None,
) -> Tensor:
    """Pool the proposals of a batch, those that only fill it up included.

    Args:
        pooler: A ``RoIPooler``, a ``MultiScaleRoIAlign``, or a module with their call.
        features: Name of a level to its map [N, C, H_l, W_l].
        proposals: [N, P, 4] (x1, y1, x2, y2), image pixels.
        padded_size: (height, width) of the batch that the features were computed from.
        strides: Stride of each map by name, for poolers that measure them; None measures.

    Returns:
        [N * P, C, h, w].
    """
    n, p = proposals.shape[:2]
    image_ids = torch.arange(n, dtype=proposals.dtype, device=proposals.device)
    # [N, P, 1] and [N, P, 4] -> [N * P, 5]
    rois = torch.cat((image_ids[:, None, None].expand(n, p, 1), proposals), dim=-1).flatten(0, 1)
    if isinstance(pooler, RoIPooler):
        return cast(Tensor, pooler.operator(features[pooler.featmap_name], rois))
    if isinstance(pooler, ops.MultiScaleRoIAlign) and pooler.pools_by_size:
        scales = None
        if strides is not None and measures_strides(pooler):
            names = [name for name in pooler.featmap_names if name in features]
            scales = [nearest_power_of_two(1 / strides[name]) for name in names]
        return pooler.pool_rois(features, rois, [padded_size], scales)
    return cast(Tensor, pooler(features, list(proposals.unbind()), [padded_size] * n))
