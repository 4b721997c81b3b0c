"""Bad calls of the operators on feature maps, and their error messages."""

from __future__ import annotations

import math
from typing import Any

import torch

from rcnn_ext import ops
from tests.helpers.bad_calls import FLOATS, Call, Cases, make, make_rois

rcnn = torch.ops.rcnn_ext


def align(input: Any = (2, 3, 5, 6), rois: Any = (4, 5), size: Any = 2, scale: float = 1.0) -> Call:
    """A call of roi_align whose RoIs lie in the first image."""

    def call(device: torch.device) -> torch.Tensor:
        return ops.roi_align(make(input, device), make_rois(rois, device), size, scale)

    return call


def pool(input: Any = (2, 3, 5, 6), rois: Any = (4, 5), size: Any = 2, scale: float = 1.0) -> Call:
    def call(device: torch.device) -> torch.Tensor:
        return ops.roi_pool(make(input, device), make_rois(rois, device), size, scale)

    return call


def _align_backward(
    grad: tuple[int, ...] = (4, 3, 2, 2),
    pooled: tuple[int, int] = (2, 2),
    shape: tuple[int, ...] = (2, 3, 5, 6),
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    rois: tuple[int, ...] = (4, 5),
) -> Call:
    def call(device: torch.device) -> torch.Tensor:
        return rcnn.roi_align_backward(
            torch.zeros(grad, dtype=dtype, device=device),
            torch.zeros(rois, device=device),
            scale,
            *pooled,
            *shape,
            -1,
            False,
            False,
        )

    return call


def _pool_backward(
    grad: tuple[int, ...] = (4, 3, 2, 2),
    argmax: tuple[int, ...] = (4, 3, 2, 2),
    shape: tuple[int, ...] = (2, 3, 5, 6),
    argmax_dtype: torch.dtype = torch.int32,
    scale: float = 1.0,
) -> Call:
    def call(device: torch.device) -> torch.Tensor:
        return rcnn.roi_pool_backward(
            torch.zeros(grad, device=device),
            torch.zeros(argmax, dtype=argmax_dtype, device=device),
            torch.zeros(4, 5, device=device),
            scale,
            *shape,
            False,
        )

    return call


ROI_ERRORS: Cases = {}
for _name, _call in {"roi_align": align, "roi_pool": pool}.items():
    ROI_ERRORS |= {
        f"{_name}, input 3-D": (
            _call(input=(3, 5, 6)),
            rf"{_name}: expected input of shape \[N, C, H, W\], got \[3, 5, 6\]",
        ),
        f"{_name}, rows": (
            _call(input=torch.zeros(1, 1, 1, 1).expand(1, 1, 2**31, 1)),
            rf"{_name}: .* at most 2\^31 - 1 rows and columns, got 2147483648 x 1",
        ),
        f"{_name}, integers": (
            _call(input=torch.zeros(1, 1, 4, 4, dtype=torch.int32)),
            rf"{_name}: expected input to be {FLOATS}, got int32",
        ),
        f"{_name}, bytes": (
            _call(input=torch.zeros(1, 1, 4, 4, dtype=torch.uint8)),
            rf"{_name}: expected input to be {FLOATS}, got uint8",
        ),
        f"{_name}, boxes for RoIs": (
            _call(rois=(3, 4)),
            rf"{_name}: expected boxes of shape \[K, 5\] .* or a list of \[L, 4\].*\[3, 4\]",
        ),
        f"{_name}, a RoI": (_call(rois=(5,)), rf"{_name}: expected boxes of shape \[K, 5\].*\[5\]"),
        f"{_name}, integer RoIs": (
            _call(rois=torch.zeros(3, 5, dtype=torch.int64)),
            rf"{_name}: expected rois to be {FLOATS}, got int64",
        ),
        f"{_name}, RoIs in a list": (
            _call(rois=[(3, 4), (3, 5)]),
            rf"{_name}: expected boxes\[1\] of shape \[L, 4\], got \[3, 5\]",
        ),
        f"{_name}, a box in a list": (_call(rois=[(4,)]), rf"{_name}: .*boxes\[0\].*got \[4\]"),
        f"{_name}, no list": (_call(rois=[]), rf"{_name}: .*for each image, got an empty list"),
        f"{_name}, bins below 0": (
            _call(size=(3, -1)),
            rf"{_name}: expected a positive output size, got 3 x -1",
        ),
        f"{_name}, bins of no RoI": (_call(size=-1, rois=(0, 5)), rf"{_name}: expected a positive"),
    }
    for _scale in (0.0, -0.25, math.nan, math.inf, -math.inf, 1e300):
        ROI_ERRORS[f"{_name}, scale {_scale}"] = (
            _call(scale=_scale),
            rf"{_name}: expected a positive, finite spatial_scale, got ",
        )
ROI_ERRORS |= {
    "align backward, grad": (
        _align_backward(grad=(4, 3, 2, 3)),
        r"roi_align_backward: expected grad of shape \[4, 3, 2, 2\], got \[4, 3, 2, 3\]",
    ),
    "align backward, grad 3-D": (
        _align_backward(grad=(4, 3, 2)),
        r"roi_align_backward: expected grad of shape \[4, 3, 2, 2\], got \[4, 3, 2\]",
    ),
    "align backward, channels": (
        _align_backward(shape=(2, 4, 5, 6)),
        r"roi_align_backward: expected grad of shape \[4, 4, 2, 2\], got \[4, 3, 2, 2\]",
    ),
    "align backward, integers": (
        _align_backward(dtype=torch.int64),
        rf"roi_align_backward: expected grad to be {FLOATS}, got int64",
    ),
    "align backward, RoIs": (
        _align_backward(rois=(4, 4)),
        r"roi_align_backward: expected rois of shape \[K, 5\].* got \[4, 4\]",
    ),
    "align backward, bins": (
        _align_backward(grad=(4, 3, 0, 2), pooled=(0, 2)),
        "roi_align_backward: expected a positive output size, got 0 x 2",
    ),
    "align backward, sizes": (
        _align_backward(shape=(2, 3, -5, 6)),
        r"roi_align_backward: .*without negative numbers, got \[2, 3, -5, 6\]",
    ),
    "align backward, columns": (
        _align_backward(shape=(2, 3, 0, 2**31)),
        r"roi_align_backward: .*at most 2\^31 - 1 rows and columns, got 0 x 2147483648",
    ),
    "align backward, scale": (
        _align_backward(scale=math.nan),
        "roi_align_backward: expected a positive, finite spatial_scale, got -?nan",
    ),
    "pool backward, grad": (
        _pool_backward(grad=(4, 3, 2)),
        r"roi_pool_backward: expected grad of shape \[K, C, PH, PW\], got \[4, 3, 2\]",
    ),
    "pool backward, channels": (
        _pool_backward(shape=(2, 4, 5, 6)),
        r"roi_pool_backward: expected grad of shape \[4, 4, 2, 2\], got \[4, 3, 2, 2\]",
    ),
    "pool backward, argmax": (
        _pool_backward(argmax=(4, 3, 2, 1)),
        r"roi_pool_backward: expected argmax to be int32 of shape \[4, 3, 2, 2\], got int32 of "
        r"shape \[4, 3, 2, 1\]",
    ),
    "pool backward, argmax dtype": (
        _pool_backward(argmax_dtype=torch.int64),
        r"roi_pool_backward: expected argmax to be int32 of shape .*, got int64",
    ),
    "pool backward, sizes": (
        _pool_backward(shape=(2, 3, -5, 6)),
        r"roi_pool_backward: .*without negative numbers, got \[2, 3, -5, 6\]",
    ),
    "pool backward, pixels": (
        _pool_backward(shape=(2, 3, 2**20, 2**20)),
        r"roi_pool_backward: .*at most 2\^31 - 1 pixels per channel, got 1048576 x 1048576",
    ),
    "pool backward, scale": (
        _pool_backward(scale=0.0),
        "roi_pool_backward: expected a positive, finite spatial_scale, got 0",
    ),
}
