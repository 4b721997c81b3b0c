"""Cut RoIs out of the single feature map of a backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rcnn_ext import ops
from rcnn_ext.models.feature_maps import measure_feature_maps

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
