"""Kernels of this package under torchvision's operators, through PyTorch's dispatcher.

Only the CPU and CUDA kernels of ``torchvision::nms``, ``roi_align`` and ``roi_pool`` and of the
backward operators are replaced: autograd, autocast, fake kernels and batching rules stay
torchvision's, which call what is registered here. Inputs for which this package would give another
result than torchvision go to torchvision's own kernel.
"""

from __future__ import annotations

import collections
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rcnn_ext import _extension, torchvision_compat
from rcnn_ext.ops import has_native_kernel
from rcnn_ext.ops._torchvision_kernels import KERNELS, own_name

# torchvision's kernels take half types too, with coordinates and sums rounded to them.
_DTYPES = (torch.float32, torch.float64)
# RoIAlign takes no more samples per axis of a bin, see rcnn_ext.ops.roi_align.
_MAX_SAMPLING_RATIO = 4096
# Looking for non-finite values costs 0.1 ns per feature, and torchvision's kernel 4 ns per bin and
# channel more than ours (2 x 2 samples; AMD EPYC with AVX-512, one thread, 2026-11-30): with more
# features per bin than this, torchvision's kernel is faster than looking.
_MAX_FEATURES_PER_BIN = 16

_Kernel = Callable[..., Any]


class _Mode:
    """How the kernels choose, in the whole process.

    Attributes:
        exact: Whether inputs with deliberately different results go to torchvision's kernels.
    """

    exact = True


mode = _Mode()

# Kernels of the last times that they were registered. The dispatcher would free a kernel that is
# taken back, even while another thread waits in it for the interpreter lock.
_outlived: collections.deque[list[Any]] = collections.deque(maxlen=1000)


def _all_finite(tensor: Tensor) -> bool:
    # A sum that overflows only costs the way through torchvision's kernel.
    return math.isfinite(tensor.sum().item())


def _nms_agrees(dets: Tensor, scores: Tensor, iou_threshold: float) -> bool:
    return (
        dets.dim() == 2
        and dets.shape[1] == 4
        and scores.shape == dets.shape[:1]
        and dets.dtype in _DTYPES
        and scores.dtype == dets.dtype
        and scores.device == dets.device
        and 0 <= iou_threshold <= 1
        and _all_finite(dets)
    )


def _rois_agree(maps: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int) -> bool:
    return (
        maps.dim() == 4
        and rois.dim() == 2
        and rois.shape[1] == 5
        and maps.dtype in _DTYPES
        and rois.dtype == maps.dtype
        and rois.device == maps.device
        and 0 < spatial_scale < math.inf
        and min(height, width) > 0
    )


def _roi_pool_agrees(
    input: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int
) -> bool:
    if not _rois_agree(input, rois, spatial_scale, height, width):
        return False
    if input.device.type != "cpu":
        return True  # the answer would make the host wait for the device
    bins = len(rois) * input.shape[1] * height * width
    return input.numel() <= _MAX_FEATURES_PER_BIN * bins and _all_finite(input)


def _roi_align_agrees(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> bool:
    return sampling_ratio <= _MAX_SAMPLING_RATIO and _roi_pool_agrees(
        input, rois, spatial_scale, height, width
    )


def _gradient_agrees(
    grad: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int
) -> bool:
    return _rois_agree(grad, rois, spatial_scale, height, width) and (
        grad.device.type != "cpu" or _all_finite(grad)
    )


def _roi_align_backward_agrees(grad: Tensor, rois: Tensor, *options: Any) -> bool:
    spatial_scale, height, width, *_, sampling_ratio, _ = options
    return sampling_ratio <= _MAX_SAMPLING_RATIO and _gradient_agrees(
        grad, rois, spatial_scale, height, width
    )


def _roi_pool_backward_agrees(grad: Tensor, rois: Tensor, argmax: Tensor, *options: Any) -> bool:
    return _gradient_agrees(grad, rois, *options[:3]) and argmax.shape == grad.shape


# Whether this package computes what torchvision does, by operator and from its arguments.
_AGREES: dict[str, Callable[..., bool]] = {
    "nms": _nms_agrees,
    "roi_align": _roi_align_agrees,
    "_roi_align_backward": _roi_align_backward_agrees,
    "roi_pool": _roi_pool_agrees,
    "_roi_pool_backward": _roi_pool_backward_agrees,
}


def replaceable(device_type: str) -> tuple[str, ...]:
    """Return torchvision's operators that have a compiled kernel here, for ``cpu`` or ``cuda``.

    Empty where torchvision has none, as where :mod:`rcnn_ext.torchvision_compat` defined it.
    """
    return tuple(
        name
        for name in KERNELS
        if has_native_kernel(own_name(name), device_type)
        and torch._C._dispatch_has_kernel_for_dispatch_key(
            f"torchvision::{name}", device_type.upper()
        )
    )


def _kernel_of_torchvision(name: str, key: str) -> _Kernel:
    kernel = torch.library.get_kernel(f"torchvision::{name}", key)
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    return lambda *args: kernel.call_boxed(keys, *args)


def _choosing(ours: _Kernel, agrees: Callable[..., bool], theirs: _Kernel) -> _Kernel:
    """Return the kernel that runs ours, or torchvision's where the results would differ."""

    def kernel(*args: Any) -> Any:
        return theirs(*args) if mode.exact and not agrees(*args) else ours(*args)

    return kernel


def install() -> Callable[[], None]:
    """Register the kernels, and return the function that brings torchvision's back."""
    already_ours = torchvision_compat.install()
    import torchvision  # noqa: F401 - registers its kernels, over which these have to come

    registered = []
    library = torch.library.Library("torchvision", "IMPL")
    names = {key: replaceable(key.lower()) for key in ("CPU", "CUDA")}
    for key, replaced in names.items():
        for name in replaced:
            theirs = _kernel_of_torchvision(name, key)
            library.impl(name, _choosing(KERNELS[name], _AGREES[name], theirs), key)
            registered.append(torch.library.get_kernel(f"torchvision::{name}", key))
    _outlived.append(registered)
    if not any(names.values()) and not already_ours:
        warnings.warn(
            "rcnn_ext.accelerate: torchvision is not accelerated, because _C is "
            f"{_extension.status()['_C'].reason}; rcnn-ext doctor says more",
            RuntimeWarning,
            stacklevel=2,
        )
    return library._destroy
