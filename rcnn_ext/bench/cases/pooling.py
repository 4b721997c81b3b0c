"""Cases of RoIAlign and RoIPool, on one feature map and on a pyramid."""

from __future__ import annotations

import dataclasses
import itertools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rcnn_ext.bench import inputs as draw
from rcnn_ext.bench.cases.base import (
    TOLERANCES,
    Call,
    Case,
    Check,
    double_reference,
    worst_error,
)

# torchvision computes sampling positions in the features' dtype: in half precision they are off by
# whole pixels, and so are its results. It is timed all the same; its error stands in the report.
_HALF_TOLERANCE = 0.5


@dataclasses.dataclass(frozen=True)
class PoolingCase(Case):
    """Base class of the cases of RoIAlign, RoIPool and their pyramid form.

    Attributes:
        rois: Number of RoIs, K.
        channels: Depth of the features, C.
        output_size: Height and width of a pooled map.
        backward: Whether the gradient is the work; the forward pass then runs before the clock.
        channels_last: Whether features and the gradient of the result are in channels-last layout.
    """

    rois: int = 0
    channels: int = 256
    output_size: int = 7
    backward: bool = False
    channels_last: bool = False

    @property
    def name(self) -> str:
        """Operator, size and variant."""
        parts = [self.operator, str(self.rois), *self._variant]
        parts += ["nhwc"] * self.channels_last + ["bwd"] * self.backward
        return "/".join(parts)

    @property
    def work(self) -> str:
        """Short description of the work."""
        parts = [f"{self.rois:,} RoIs", *self._details]
        parts += ["NHWC"] * self.channels_last + ["backward"] * self.backward
        return ", ".join(parts)

    @property
    @abstractmethod
    def _variant(self) -> list[str]:
        """Further parts of the name."""

    @property
    @abstractmethod
    def _details(self) -> list[str]:
        """Further details of the work."""

    @property
    def differentiates(self) -> bool:
        """Whether the timed call runs autograd."""
        return self.backward

    @property
    def has_atomic_variant(self) -> bool:
        """Whether the gradient can be summed by atomic additions."""
        return self.backward and self.operator != "roi_pool"

    def tolerance(self, dtype: torch.dtype, other_library: bool) -> float:
        """Return the largest relative error that counts as right."""
        half = dtype in (torch.float16, torch.bfloat16)
        return _HALF_TOLERANCE if other_library and half else TOLERANCES[dtype]

    def _draw_gradient(
        self, random: torch.Generator, device: torch.device, dtype: torch.dtype
    ) -> Tensor | None:
        if not self.backward:
            return None
        shape = (self.rois, self.channels, self.output_size, self.output_size)
        return draw.features(shape, random, device, dtype, self.channels_last)


@dataclasses.dataclass(frozen=True)
class RoiInputs:
    """A feature map, RoIs on it and a gradient for the pooled maps."""

    features: Tensor  # [1, C, H, W]
    rois: Tensor  # [K, 5] (batch, x1, y1, x2, y2), image pixels
    gradient: Tensor | None  # [K, C, P, P]; None for the forward cases


@dataclasses.dataclass(frozen=True)
class RoiCase(PoolingCase):
    """RoIAlign or RoIPool on one feature map.

    Attributes:
        map_size: Height and width of the feature map.
        spatial_scale: Feature pixels per image pixel.
        sampling_ratio: RoIAlign's samples along each side of a bin; 0 lets the RoI's size choose.
        sides: Smallest and largest side of a RoI, in image pixels.
    """

    map_size: tuple[int, int] = (200, 304)
    spatial_scale: float = 0.25
    sampling_ratio: int = 2
    sides: tuple[float, float] = draw.BOX_SIDES

    @property
    def size(self) -> int | None:
        """RoIs of the plain passes."""
        return None if self._variant or self.channels_last else self.rois

    @property
    def _variant(self) -> list[str]:
        adaptive = self.operator == "roi_align" and self.sampling_ratio == 0
        return ["adaptive"] * adaptive + ["small"] * (self.sides != draw.BOX_SIDES)

    @property
    def _details(self) -> list[str]:
        details = ["x".join(str(side) for side in (self.channels, *self.map_size))]
        if self.operator == "roi_align":
            details += [f"{self.sampling_ratio} samples" if self.sampling_ratio else "adaptive"]
        if self.sides != draw.BOX_SIDES:
            details += [f"sides {self.sides[0]:g}-{self.sides[1]:g}"]
        return details

    def make(self, seed: int, device: torch.device, dtype: torch.dtype) -> RoiInputs:
        """Draw a feature map, RoIs and, for a backward case, a gradient."""
        random = draw.generator(seed)
        shape = (1, self.channels, *self.map_size)
        features = draw.features(shape, random, device, dtype, self.channels_last)
        boxes = draw.random_rois(self.rois, random, self.map_size, self.spatial_scale, self.sides)
        rois = torch.cat([torch.zeros(self.rois, 1), boxes], dim=1).to(device, dtype)  # [K, 5]
        return RoiInputs(features, rois, self._draw_gradient(random, device, dtype))

    def bind(self, ops: Any, inputs: RoiInputs) -> Call:
        """Return the call of the operator, or of its backward pass on a graph recorded here."""
        pool = self._pool(ops)
        features, rois, gradient = inputs.features, inputs.rois, inputs.gradient
        if gradient is None:
            return lambda: pool(features, rois)
        features = features.detach().requires_grad_()
        pooled = pool(features, rois)
        return lambda: torch.autograd.grad(pooled, features, gradient, retain_graph=True)[0]

    def check(self, inputs: RoiInputs) -> Check:
        """Compute pooled maps or the features' gradient with the float64 reference."""
        gradient = None if inputs.gradient is None else inputs.gradient.double()
        if self.operator == "roi_pool":
            truth = self._pool_exactly(inputs, gradient)
            return lambda result: worst_error(result, (truth,))
        exact = RoiInputs(inputs.features.double(), inputs.rois.double(), gradient)
        with double_reference() as ops:
            truth = self.bind(ops, exact)()
        return lambda result: worst_error(result, (truth,))

    def _pool_exactly(self, inputs: RoiInputs, gradient: Tensor | None) -> Tensor:
        """Pool bin by bin, or send each bin's gradient to its maximum; float64.

        The reference in float64 would not do: the bins are computed in float32 and jump by a whole
        pixel, so that a float64 bin may be another one. A maximum itself does not round.
        """
        features = inputs.features.double().cpu()[0]  # [C, H, W]
        pooled = features.new_zeros(self.rois, self.channels, self.output_size, self.output_size)
        into = torch.zeros_like(features)
        for roi, (left, top, right, bottom) in enumerate(inputs.rois[:, 1:].float().tolist()):
            rows = _bins(top, bottom, self.spatial_scale, self.output_size, self.map_size[0])
            columns = _bins(left, right, self.spatial_scale, self.output_size, self.map_size[1])
            for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
                window = features[:, row, column].flatten(1)  # [C, h * w]
                if window.shape[1] == 0:
                    continue
                if gradient is None:
                    pooled[roi, :, i, j] = window.amax(dim=1)
                    continue
                best = window.argmax(dim=1)  # [C]
                width = column.stop - column.start
                y = row.start + best // width
                x = column.start + best % width
                into[torch.arange(self.channels), y, x] += gradient[roi, :, i, j].cpu()
        truth = pooled if gradient is None else into[None]
        return truth.to(inputs.features.device)

    def _pool(self, ops: Any) -> Callable[[Tensor, Tensor], Tensor]:
        size, scale, ratio = self.output_size, self.spatial_scale, self.sampling_ratio
        if self.operator == "roi_pool":
            return lambda features, rois: ops.roi_pool(features, rois, size, scale)
        return lambda features, rois: ops.roi_align(features, rois, size, scale, ratio)


@dataclasses.dataclass(frozen=True)
class PyramidInputs:
    """The levels of a feature pyramid, boxes of one image and a gradient for the pooled maps."""

    levels: dict[str, Tensor]  # level: [1, C, H, W], finest first
    boxes: Tensor  # [K, 4] (x1, y1, x2, y2), image pixels
    gradient: Tensor | None  # [K, C, P, P]; None for the forward cases


@dataclasses.dataclass(frozen=True)
class PyramidCase(PoolingCase):
    """``MultiScaleRoIAlign`` over a feature pyramid with strides 4, 8, 16 and 32.

    Attributes:
        finest: Height and width of the finest level.
    """

    finest: tuple[int, int] = (200, 304)

    @property
    def _variant(self) -> list[str]:
        return []

    @property
    def _details(self) -> list[str]:
        finest = "x".join(str(side) for side in (self.channels, *self.finest))
        return [f"4 levels from {finest}", "2 samples"]

    def make(self, seed: int, device: torch.device, dtype: torch.dtype) -> PyramidInputs:
        """Draw four levels, boxes of all sizes and, for a backward case, a gradient."""
        random = draw.generator(seed)
        levels = {}
        for level in range(4):
            height, width = (side >> level for side in self.finest)
            shape = (1, self.channels, height, width)
            levels[str(level)] = draw.features(shape, random, device, dtype, self.channels_last)
        # Sides up to 800 pixels, so that every level gets some of the boxes.
        boxes = draw.random_rois(self.rois, random, self.finest, 0.25, (8.0, 800.0))
        return PyramidInputs(
            levels, boxes.to(device, dtype), self._draw_gradient(random, device, dtype)
        )

    def bind(self, ops: Any, inputs: PyramidInputs) -> Call:
        """Return the call of the module, or of its backward pass on a graph recorded here."""
        module = ops.MultiScaleRoIAlign(list(inputs.levels), self.output_size, sampling_ratio=2)
        boxes, gradient = [inputs.boxes], inputs.gradient
        image_shapes = [(self.finest[0] * 4, self.finest[1] * 4)]
        if gradient is None:
            return lambda: module(inputs.levels, boxes, image_shapes)
        levels = {name: level.detach().requires_grad_() for name, level in inputs.levels.items()}
        pooled = module(levels, boxes, image_shapes)
        leaves = tuple(levels.values())
        # A level without RoIs may be left out of the graph; its gradient is zero.
        return lambda: torch.autograd.grad(
            pooled, leaves, gradient, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    def check(self, inputs: PyramidInputs) -> Check:
        """Compute pooled maps or the levels' gradients with the float64 reference."""
        gradient = None if inputs.gradient is None else inputs.gradient.double()
        levels = {name: level.double() for name, level in inputs.levels.items()}
        with double_reference() as ops:
            truth = self.bind(ops, PyramidInputs(levels, inputs.boxes.double(), gradient))()
        truths = truth if isinstance(truth, tuple) else (truth,)
        return lambda result: worst_error(result, truths)


def _bins(start: float, end: float, scale: float, count: int, extent: int) -> list[slice]:
    """Return RoIPool's bins along one axis, in feature pixels, computed in float32 as it does.

    Args:
        start: Lower edge of the RoI, image pixels.
        end: Upper edge of the RoI, image pixels.
        scale: Feature pixels per image pixel.
        count: Number of bins.
        extent: Pixels of the feature map along the axis.
    """
    edges = torch.tensor([start, end]) * torch.tensor(scale)
    # Half a pixel rounds away from zero.
    first, last = (edges.sign() * (edges.abs() + 0.5).floor()).tolist()
    size = torch.tensor(max(last - first + 1, 1.0)) / count
    index = torch.arange(count + 1, dtype=torch.float32)
    lows = ((index[:-1] * size).floor() + first).clamp(0, extent).long().tolist()
    highs = ((index[1:] * size).ceil() + first).clamp(0, extent).long().tolist()
    return [slice(low, max(low, high)) for low, high in zip(lows, highs, strict=True)]
