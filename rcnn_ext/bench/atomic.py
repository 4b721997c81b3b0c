"""RoIAlign with a gradient summed by atomic additions: a contender in the backward rows on CUDA.

It measures what determinism costs. Its kernel is
``benchmarks/cuda/atomic_roi_align_backward.cu``, part of no wheel;
``RCNN_EXT_BENCHMARKS=1 python setup.py build_ext --inplace`` builds it in a checkout, and ``make
gpu`` does.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rcnn_ext import ops
from rcnn_ext._memory_format import is_channels_last
from rcnn_ext.ops._rois import pair, to_rois
from rcnn_ext.ops.poolers import measure_scales

_FOLDER = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "cuda"
# Requirements of the variant, for error messages.
HOW = (
    "it runs on CUDA, built in a checkout by RCNN_EXT_BENCHMARKS=1 python setup.py build_ext "
    "--inplace"
)
# Each operator, and the atomic variant with an equal schema.
DERIVATIVES = {
    name: f"atomic_{name}" for name in ("roi_align_backward", "multiscale_roi_align_backward")
}


def library() -> pathlib.Path | None:
    """Return the path of the compiled kernels; None where they are not built."""
    return next(iter(sorted(_FOLDER.glob("_atomic*.so"))), None)


class AtomicOps:
    """A replacement for :mod:`rcnn_ext.ops` in a case, with atomic gradients.

    Args:
        namespace: Namespace of the operators in ``torch.ops``.
    """

    def __init__(self, namespace: str = "rcnn_ext") -> None:
        self._operators = getattr(torch.ops, namespace)

    def roi_align(
        self,
        input: Tensor,
        boxes: Tensor,
        output_size: int,
        spatial_scale: float,
        sampling_ratio: int,
    ) -> Tensor:
        """As :func:`rcnn_ext.ops.roi_align`."""
        shape, channels_last = input.shape, is_channels_last(input)
        operator = self._operators.atomic_roi_align_backward.default
        bins = pair(output_size, "roi_align")

        def differentiate(grad: Tensor) -> list[Tensor]:
            options = (sampling_ratio, False, channels_last)
            return [operator(grad, boxes, spatial_scale, *bins, *shape, *options)]

        def pool(features: Tensor) -> Tensor:
            return ops.roi_align(features, boxes, output_size, spatial_scale, sampling_ratio)

        return _Pooled.apply(pool, differentiate, input)

    def MultiScaleRoIAlign(  # noqa: N802 - the name of the class that it stands for
        self, featmap_names: list[str], output_size: int, sampling_ratio: int
    ) -> Callable[[dict[str, Tensor], list[Tensor], list[tuple[int, int]]], Tensor]:
        """As :class:`rcnn_ext.ops.MultiScaleRoIAlign`, of several maps."""
        pooler = ops.MultiScaleRoIAlign(featmap_names, output_size, sampling_ratio)
        operator = self._operators.atomic_multiscale_roi_align_backward.default

        def forward(
            x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
        ) -> Tensor:
            maps = [x[name] for name in featmap_names]
            rois = to_rois(boxes, "MultiScaleRoIAlign")  # [K, 5]
            scales = measure_scales(maps, image_shapes)
            shapes, channels_last = [m.shape for m in maps], is_channels_last(maps[0])

            def differentiate(grad: Tensor) -> list[Tensor]:
                return operator(
                    grad,
                    rois,
                    scales,
                    *pooler.output_size,
                    *shapes[0][:2],
                    [shape[2] for shape in shapes],
                    [shape[3] for shape in shapes],
                    sampling_ratio,
                    False,
                    pooler.canonical_scale,
                    pooler.canonical_level,
                    channels_last,
                )

            def pool(*features: Tensor) -> Tensor:
                named = dict(zip(featmap_names, features, strict=True))
                return pooler(named, boxes, image_shapes)

            return _Pooled.apply(pool, differentiate, *maps)

        return forward


class _Pooled(torch.autograd.Function):
    """Pooled maps with a given function as their derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        pool: Callable[..., Tensor],
        differentiate: Callable[[Tensor], Sequence[Tensor]],
        *maps: Tensor,
    ) -> Tensor:
        ctx.differentiate = differentiate
        return pool(*maps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, None, *ctx.differentiate(*grads)


@functools.cache
def load() -> AtomicOps:
    """Load the kernels and return the operators that call them.

    Raises:
        RuntimeError: The kernels are not built.
    """
    path = library()
    if path is None:
        raise RuntimeError(f"no atomic variant here: {HOW}")
    for name, atomic in DERIVATIVES.items():
        schema = str(getattr(torch.ops.rcnn_ext, name).default._schema).partition("(")
        torch.library.define(f"rcnn_ext::{atomic}", schema[1] + schema[2])
    torch.ops.load_library(str(path))
    return AtomicOps()
