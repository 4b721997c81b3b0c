"""torchvision's operators, defined here where its own binary does not load.

torchvision from PyPI beside a CPU-only torch, or beside a torch that it was not built for, can't
load its binary, and then can't be imported: "operator torchvision::nms does not exist". Here its
operators are defined, with the kernels of this package where there are any.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcnn_ext.ops._torchvision_kernels import KERNELS

# All operators of torchvision's binary for detection, torchvision 0.26 to 0.29.
_SIZE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_BINS = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_CONVOLUTION = (
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, "
    "SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask"
)
_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": f"(Tensor input, Tensor rois, {_BINS}, int sampling_ratio, bool aligned)"
    " -> Tensor",
    "_roi_align_backward": f"(Tensor grad, Tensor rois, {_BINS}, {_SIZE}, int sampling_ratio,"
    " bool aligned) -> Tensor",
    "roi_pool": f"(Tensor input, Tensor rois, {_BINS}) -> (Tensor, Tensor)",
    "_roi_pool_backward": f"(Tensor grad, Tensor rois, Tensor argmax, {_BINS}, {_SIZE}) -> Tensor",
    "ps_roi_align": f"(Tensor input, Tensor rois, {_BINS}, int sampling_ratio) -> (Tensor, Tensor)",
    "_ps_roi_align_backward": f"(Tensor grad, Tensor rois, Tensor channel_mapping, {_BINS},"
    f" int sampling_ratio, {_SIZE}) -> Tensor",
    "ps_roi_pool": f"(Tensor input, Tensor rois, {_BINS}) -> (Tensor, Tensor)",
    "_ps_roi_pool_backward": f"(Tensor grad, Tensor rois, Tensor channel_mapping, {_BINS},"
    f" {_SIZE}) -> Tensor",
    "deform_conv2d": "(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias,"
    f" {_CONVOLUTION}) -> Tensor",
    "_deform_conv2d_backward": "(Tensor grad, Tensor input, Tensor weight, Tensor offset,"
    f" Tensor mask, Tensor bias, {_CONVOLUTION}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qroi_align": "(Tensor input, Tensor rois, float input_scale, int input_zero_point,"
    f" float rois_scale, int rois_zero_point, {_BINS}, int sampling_ratio, bool aligned)"
    " -> Tensor",
    "box_iou_rotated": "(Tensor boxes1, Tensor boxes2) -> Tensor",
    "_cuda_version": "() -> int",
}
# Names of the binary: with the stable ABI from torchvision 0.27 on, and before.
_BINARIES = ("_C_stable", "_C")

_lock = threading.RLock()
_libraries: list[torch.library.Library] = []
_reasons: list[str] = []


def reason() -> str | None:
    """Return why torchvision's operators are defined here; ``None`` where they are its own."""
    return _reasons[0] if _reasons else None


def install() -> bool:
    """Define torchvision's operators where its binary does not load.

    Where the binary loads, where torchvision was imported with it, and where torchvision is not
    installed, nothing is done.

    Returns:
        Whether torchvision's operators are those of this package.
    """
    with _lock:
        if _reasons:
            return True
        if "torchvision" in sys.modules and _has_operator("nms"):
            return False
        problem = _why_not_loaded()
        if problem is None:
            return False
        _define(problem)
        _reasons.append(problem)
        _announce()
        return True


def _has_operator(name: str) -> bool:
    return torch._C._dispatch_has_kernel(f"torchvision::{name}")


def _why_not_loaded() -> str | None:
    """Load torchvision's binary, without importing torchvision; return why that fails."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = spec.submodule_search_locations[0]
    loaders = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    finder = importlib.machinery.FileFinder(folder, loaders)
    problems = []
    for name in _BINARIES:
        found = finder.find_spec(name)
        if found is None or found.origin is None:
            continue
        try:
            # ctypes names the library that is missing, where torch.ops.load_library does not.
            ctypes.CDLL(found.origin)
            torch.ops.load_library(found.origin)
        except OSError as error:
            problems.append(f"{Path(found.origin).name}: {error}")
        else:
            if _has_operator("nms"):
                return None
            problems.append(f"{Path(found.origin).name} does not define torchvision::nms")
    return "; ".join(problems) or f"{folder} has no binary"


def _refuse(name: str, problem: str) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        raise NotImplementedError(
            f"torchvision::{name} needs torchvision's own binary, which does not load here "
            f"({problem}); install the torchvision that belongs to torch {torch.__version__}"
        )

    return kernel


def _define(problem: str) -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    _libraries.append(library)
    for name, schema in _SCHEMAS.items():
        library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
        if name == "_cuda_version":
            # Of an operator without tensors, only this key is looked at. -1: built without CUDA.
            library.impl(name, lambda: -1, "CompositeImplicitAutograd")
            continue
        kernel = KERNELS.get(name) or _refuse(name, problem)
        library.impl(name, kernel, "CompositeExplicitAutograd")


def _has_ops() -> bool:
    return True


def _announce() -> None:
    """Tell torchvision that it has operators, and register what it leaves out without them.

    Without its binary torchvision registers no fake kernels, autograd or autocast but of ``nms``.
    """
    import torchvision.extension

    # Other modules have imported the function by name: its code is exchanged, not the name.
    torchvision.extension._has_ops.__code__ = _has_ops.__code__
    (library,) = _libraries
    for name, fake in _FAKES.items():
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{name}", "Meta"):
            torch.library.register_fake(f"torchvision::{name}", fake, lib=library)
    torch.library.register_autograd(
        "torchvision::roi_align", _derive_roi_align, setup_context=_save_roi_align, lib=library
    )
    torch.library.register_autograd(
        "torchvision::roi_pool", _derive_roi_pool, setup_context=_save_roi_pool, lib=library
    )
    for key in ("AutocastCPU", "AutocastCUDA"):
        library.impl("nms", _autocast_nms, key)
        library.impl("roi_align", _autocast_roi_align, key)
    library.impl("roi_pool", _autocast_roi_pool, "AutocastCUDA")


def _fake_roi_align(
    input: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int, *options: Any
) -> Tensor:
    return input.new_empty((rois.shape[0], input.shape[1], height, width))


def _fake_roi_align_backward(
    grad: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int, *options: Any
) -> Tensor:
    return grad.new_empty(options[:4])


def _fake_roi_pool(
    input: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    pooled = _fake_roi_align(input, rois, spatial_scale, height, width)
    return pooled, torch.empty_like(pooled, dtype=torch.int32)


def _fake_roi_pool_backward(grad: Tensor, rois: Tensor, argmax: Tensor, *options: Any) -> Tensor:
    return grad.new_empty(options[3:])


_FAKES: dict[str, Callable[..., Any]] = {
    "roi_align": _fake_roi_align,
    "_roi_align_backward": _fake_roi_align_backward,
    "roi_pool": _fake_roi_pool,
    "_roi_pool_backward": _fake_roi_pool_backward,
}


def _save_roi_align(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, *ctx.options = inputs
    ctx.save_for_backward(rois)
    ctx.shape = input.shape


def _derive_roi_align(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    *bins, sampling_ratio, aligned = ctx.options
    backward = torch.ops.torchvision._roi_align_backward
    grad_input = backward(grad, rois, *bins, *ctx.shape, sampling_ratio, aligned)
    return grad_input, None, *[None] * len(ctx.options)


def _save_roi_pool(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, rois, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(rois, output[1])
    ctx.shape = input.shape


def _derive_roi_pool(ctx: Any, grad: Tensor, grad_argmax: Tensor | None) -> tuple[Any, ...]:
    rois, argmax = ctx.saved_tensors
    backward = torch.ops.torchvision._roi_pool_backward
    grad_input = backward(grad, rois, argmax, *ctx.options, *ctx.shape)
    return grad_input, None, *[None] * len(ctx.options)


def _widened(tensor: Tensor) -> Tensor:
    """Return half types as float32, as torchvision computes under autocast."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor


_AUTOCAST_KEYS = torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCPU
) | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


def _autocast_nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
        return torch.ops.torchvision.nms(_widened(dets), _widened(scores), iou_threshold)


def _autocast_roi_align(input: Tensor, rois: Tensor, *options: Any) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
        pooled = torch.ops.torchvision.roi_align(_widened(input), _widened(rois), *options)
    return pooled.to(input.dtype)


def _autocast_roi_pool(input: Tensor, rois: Tensor, *options: Any) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
        pooled, argmax = torch.ops.torchvision.roi_pool(_widened(input), _widened(rois), *options)
    return pooled.to(input.dtype), argmax.to(input.dtype)
