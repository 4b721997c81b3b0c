"""PyTorch's operators on weights in oneDNN's own layout, with what follows them in one pass.

They carry private names, so each is looked up and tried once; where one is missing, or PyTorch was
built without oneDNN, layers compute as they did before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_OPERATORS = (
    "_convolution_pointwise",
    "_convolution_pointwise_",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_reorder_linear_weight",
)


class Settings(NamedTuple):
    """What a convolution is called with, besides tensors."""

    padding: list[int]
    stride: list[int]
    dilation: list[int]
    groups: int


class Epilogue(NamedTuple):
    """An elementwise function of the results, by oneDNN's name for it."""

    name: str = "none"
    scalars: tuple[float, ...] = ()
    algorithm: str = ""


NO_EPILOGUE = Epilogue()

_EPILOGUES: dict[type[nn.Module], Callable[[Any], Epilogue]] = {
    nn.ReLU: lambda _: Epilogue("relu"),
    nn.ReLU6: lambda _: Epilogue("hardtanh", (0.0, 6.0)),
    nn.Hardtanh: lambda layer: Epilogue("hardtanh", (layer.min_val, layer.max_val)),
    nn.LeakyReLU: lambda layer: Epilogue("leaky_relu", (layer.negative_slope,)),
    nn.Hardswish: lambda _: Epilogue("hardswish"),
    nn.SiLU: lambda _: Epilogue("swish"),
    nn.Sigmoid: lambda _: Epilogue("sigmoid"),
    nn.Tanh: lambda _: Epilogue("tanh"),
    nn.GELU: lambda layer: Epilogue("gelu", (), layer.approximate),
}


def epilogue_of(activation: nn.Module | None) -> Epilogue | None:
    """Return what an activation is to oneDNN, or None if it is nothing to it."""
    if activation is None:
        return NO_EPILOGUE
    make = _EPILOGUES.get(type(activation))
    return None if make is None else make(activation)


@functools.cache
def why_unavailable() -> str | None:
    """Return why the operators cannot be used in this process, or None if they can."""
    if not torch.backends.mkldnn.is_available():
        return "PyTorch was built without oneDNN"
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.mkldnn, name)]
    if missing:
        return f"this version of PyTorch has no mkldnn::{missing[0]}"
    try:
        right = _are_right()
    except (RuntimeError, TypeError) as error:
        # A schema of another version, or a build for another processor.
        return f"oneDNN's operators do not run here: {str(error).splitlines()[0]}"
    return None if right else "oneDNN's operators return other results here"


@torch.no_grad()
def _are_right() -> bool:
    """Run each operator on a few numbers, and compare."""
    settings = Settings([1, 1], [1, 1], [1, 1], 1)
    x = torch.linspace(-1, 1, 72).view(1, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    weight = torch.linspace(-2, 1, 576).view(8, 8, 3, 3)
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias = torch.linspace(0, 1, 8)
    direct = F.conv2d(x, weight, bias, padding=1)
    packed = pack_convolution(weight, settings)
    relu = Epilogue("relu")
    rows, matrix = x.flatten(1), torch.linspace(-1, 2, 576).view(8, 72)
    linear = F.linear(rows, matrix, bias)
    found = (
        convolution(x, packed, bias, settings, relu),
        convolution_add(x, x, packed, bias, settings, relu, overwrite=False),
        convolution_add(x, x.clone(), packed, bias, settings, NO_EPILOGUE, overwrite=True),
        linear_layer(rows, pack_linear(matrix), bias, relu),
        linear_add(rows, linear, matrix, bias),
    )
    expected = (direct.relu(), (direct + x).relu(), direct + x, linear.relu(), 2 * linear)
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, expected, strict=True)
    )


def why_not_dtype(dtype: torch.dtype) -> str | None:
    """Return why the operators cannot be used with a type, or None if they can."""
    supported = {
        torch.float32: lambda: True,
        torch.bfloat16: lambda: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: lambda: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    name = str(dtype).removeprefix("torch.")
    if dtype not in supported:
        return f"oneDNN does not compute in {name}"
    return None if supported[dtype]() else f"oneDNN does not compute in {name} on this processor"


@functools.cache
def usable_dtypes() -> frozenset[torch.dtype]:
    """Return the types that the operators can be used with in this process."""
    if why_unavailable() is not None:
        return frozenset()
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return frozenset(dtype for dtype in dtypes if why_not_dtype(dtype) is None)


def is_eager(x: Tensor) -> bool:
    """Return whether an operator on ``x`` would run at once, on a CPU, in the type of ``x``.

    Under ``torch.compile``, export, tracing, ``torch.func`` and tensor modes layers are made of
    PyTorch's public operators only, and under autocast it chooses the type.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.layout is torch.strided
        and not torch.jit.is_tracing()
        and torch._C._get_mkldnn_enabled()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.is_autocast_enabled("cpu")
    )


def pack_convolution(weight: Tensor, settings: Settings) -> Tensor:
    """Return weights [C_out, C_in / groups, h, w] in the layout that oneDNN computes with.

    For kernels above 1x1 the layout does not depend on the size of the map. Those of 1x1 go
    through the linear operators: their best layout as convolutions changes with the size, and
    another one makes them up to ten times slower.
    """
    # Measured by CPU time on AMD EPYC (Zen 5) with PyTorch 2.14, November 2026.
    size = [1, weight.shape[1] * settings.groups, 50, 68]
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *settings, size)


def pack_linear(weight: Tensor) -> Tensor:
    """Return a matrix [D_out, D_in] in the layout that oneDNN computes many rows with."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1000)


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, epilogue: Epilogue
) -> Tensor:
    """Return ``epilogue(conv2d(x))``, packed weights or channels-last ones."""
    name, scalars, algorithm = epilogue
    return torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, *settings, name, list(scalars), algorithm
    )


def convolution_add(
    x: Tensor,
    other: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    settings: Settings,
    epilogue: Epilogue,
    *,
    overwrite: bool,
) -> Tensor:
    """Return ``epilogue(conv2d(x) + other)``; with ``overwrite`` in the memory of ``other``."""
    name = None if epilogue.name == "none" else epilogue.name
    last = (weight, bias, *settings, "add", 1.0, name, list(epilogue.scalars), epilogue.algorithm)
    if overwrite:
        return torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *last)
    return torch.ops.mkldnn._convolution_pointwise.binary(x, other, *last)


def linear_layer(x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue) -> Tensor:
    """Return ``epilogue(linear(x))`` for ``[R, D_in]``, packed weights or plain ones."""
    name, scalars, algorithm = epilogue
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, list(scalars), algorithm)


def linear_add(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``linear(x) + other`` for ``[R, D_in]`` and ``[R, D_out]``."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "add")
