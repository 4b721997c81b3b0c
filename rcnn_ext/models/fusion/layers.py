"""Convolutions and linear layers that compute with packed weights, with what follows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn_ext.models.fusion import onednn, winograd
from rcnn_ext.models.fusion.buffers import MapBuffers
from rcnn_ext.models.fusion.classes import FusedLayer
from rcnn_ext.models.fusion.onednn import NO_EPILOGUE, Epilogue, Settings
from rcnn_ext.ops import conv_winograd

# The three bounds were measured by CPU time on AMD EPYC (Zen 5) with PyTorch 2.14, November 2026.

# A 1x1 convolution with a sum runs as a convolution from so many pixels on, else as a linear layer
# and an addition: oneDNN brings the plain weights of the convolution into its layout in each call.
_MIN_PIXELS = 512
# Below, PyTorch's own linear layer (a product of matrix and vector) is as fast.
_MIN_ROWS = 8
# Above, the linear layer reads its plain weights: 2 to 5% slower, and no second copy of them.
_MAX_PACKED_BYTES = 16 * 2**20
# Winograd's algorithm writes into given memory without a pass more, so that it takes a buffer also
# for maps that an allocator would keep: an estimate.
_MIN_WINOGRAD_BYTES = 2**20


class PackedWeights:
    """Packed copies of the weights of one or more layers, made anew when the weights change.

    Copies and pickles start empty. Two threads may make the same copy at once; one of them stays.
    """

    def __init__(self) -> None:
        self._copies: dict[str, tuple[list[Any], Tensor]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeights, ()

    @property
    def num_bytes(self) -> int:
        """Bytes of all copies, without the padding of their layouts."""
        return sum(copy.numel() * copy.dtype.itemsize for _, copy in self._copies.values())

    def get(self, name: str, weights: list[Tensor], pack: Callable[[], Tensor]) -> Tensor:
        """Return what ``pack`` made of ``weights`` as they are now."""
        known = self._copies.get(name)
        # The tensors are held, so that another cannot have come into their place unseen.
        state = [part for weight in weights for part in (id(weight), *state_of(weight))]
        if known is not None and known[0][1:] == state:
            return known[1]
        with torch.no_grad(), torch.inference_mode(False):
            packed = pack()
        self._copies[name] = ([weights, *state], packed)
        return packed


def state_of(weight: Tensor) -> tuple[int, int]:
    """Return what changes when the values of a tensor are written through PyTorch."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


class FusedConv2d(FusedLayer, nn.Conv2d):
    """A convolution with packed weights, together with a sum and an activation after it."""

    _fused_weights: PackedWeights
    _fused_buffers: MapBuffers

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[N, C_in, H, W]``."""
        return self.run(x)

    def run(
        self,
        x: Tensor,
        other: Tensor | None = None,
        activation: nn.Module | None = None,
        *,
        overwrite: bool = False,
    ) -> Tensor:
        """Return ``activation(conv(x) + other)``.

        Args:
            x: [N, C_in, H, W].
            other: [N, C_out, H', W'], added; None means nothing.
            activation: One that ``onednn.epilogue_of`` knows, or None.
            overwrite: Whether the memory of ``other`` may take the result.

        Returns:
            [N, C_out, H', W'], channels last where x is on a CPU.
        """
        weight, bias = self.weight, self.bias
        epilogue = onednn.epilogue_of(activation)
        if epilogue is None or not computes_packed(x, weight, bias) or x.dim() != 4:
            y = self._conv_forward(x, weight, bias)
            y = y if other is None else y + other
            return y if activation is None else activation(y)
        x = x.contiguous(memory_format=torch.channels_last)
        tile = winograd.find_tile(self, x.dtype) if winograd.is_worthwhile(x) else None
        shape = (x.shape[0], self.out_channels, *self.output_size(x))
        if tile is not None:
            memory = other if overwrite else None
            return self._run_winograd(x, other, memory, shape, tile, epilogue, activation)
        if other is not None and not other.is_contiguous(memory_format=torch.channels_last):
            other, overwrite = other.contiguous(memory_format=torch.channels_last), True
        num_pixels = shape[0] * shape[2] * shape[3]
        as_linear = not _is_large(shape, x.dtype) if other is None else num_pixels < _MIN_PIXELS
        if self.is_pointwise and as_linear:
            return self._run_linear(x, other, epilogue, activation)
        if epilogue.name in ("none", "relu"):
            return self._run_convolution(x, other, shape, epilogue, overwrite=overwrite)
        if other is None:
            packed = self._convolution_weight()
            return onednn.convolution(x, packed, self.bias, self._settings(), epilogue)
        # With a sum, oneDNN's operators take no other activation than ReLU.
        y = self._run_convolution(x, other, shape, NO_EPILOGUE, overwrite=overwrite)
        return y if activation is None else activation(y)

    @property
    def is_pointwise(self) -> bool:
        """Whether the layer is a linear layer at each pixel that it looks at."""
        return self.kernel_size == (1, 1) and self.groups == 1 and _padding(self) == [0, 0]

    def pack(self) -> None:
        """Pack the weights now, rather than in the first call."""
        tile = winograd.find_tile(self, self.weight.dtype)
        if tile is not None:  # Maps too small for it have their packed weights made in the call.
            self._winograd_weight(tile)
        elif self.is_pointwise:
            self._linear_weight()
        else:
            self._convolution_weight()

    def _settings(self) -> Settings:
        return Settings(_padding(self), list(self.stride), list(self.dilation), self.groups)

    def output_size(self, x: Tensor) -> tuple[int, int]:
        """Return height and width of the result for [N, C_in, H, W]."""
        if self.is_pointwise and self.stride == (1, 1):
            return x.shape[2], x.shape[3]
        padding, stride, dilation, _ = self._settings()
        height, width = (
            (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (self.kernel_size[i] - 1) - 1)
            // stride[i]
            + 1
            for i in range(2)
        )
        return height, width

    def _linear_weight(self) -> Tensor:
        weight = self.weight
        return self._fused_weights.get(
            "linear", [weight], lambda: onednn.pack_linear(weight.flatten(1))
        )

    def _convolution_weight(self) -> Tensor:
        weight = self.weight
        if self.is_pointwise:  # No layout fits all sizes of maps.
            return weight
        return self._fused_weights.get(
            "convolution", [weight], lambda: onednn.pack_convolution(weight, self._settings())
        )

    def _winograd_weight(self, tile: int) -> Tensor:
        weight = self.weight
        return self._fused_weights.get(
            f"winograd{tile}", [weight], lambda: conv_winograd.pack(weight, tile)
        )

    def _run_winograd(
        self,
        x: Tensor,
        other: Tensor | None,
        memory: Tensor | None,
        shape: tuple[int, int, int, int],
        tile: int,
        epilogue: Epilogue,
        activation: nn.Module | None,
    ) -> Tensor:
        relu = epilogue.name == "relu"
        packed = self._winograd_weight(tile)
        if memory is None or not memory.is_contiguous(memory_format=torch.channels_last):
            memory = self._fused_buffers.take(shape, x.dtype, _MIN_WINOGRAD_BYTES)
        y = conv_winograd.conv(
            x, packed, self.bias, other, relu, tile, self.out_channels, out=memory
        )
        return y if relu or activation is None else activation(y)

    def _run_linear(
        self,
        x: Tensor,
        other: Tensor | None,
        epilogue: Epilogue,
        activation: nn.Module | None,
    ) -> Tensor:
        """Run a 1x1 convolution as a linear layer on the rows of pixels."""
        if self.stride != (1, 1):
            x = x[:, :, :: self.stride[0], :: self.stride[1]]
        n, _, height, width = x.shape
        packed, bias = self._linear_weight(), self.bias
        if other is None:
            rows = onednn.linear_layer(_rows_of(x), packed, bias, epilogue)
        else:
            rows = onednn.linear_add(_rows_of(x), _rows_of(other), packed, bias)
            rows = rows if activation is None else activation(rows)
        return _map_of(rows, n, height, width)

    def _run_convolution(
        self,
        x: Tensor,
        other: Tensor | None,
        shape: tuple[int, int, int, int],
        epilogue: Epilogue,
        *,
        overwrite: bool,
    ) -> Tensor:
        settings, bias = self._settings(), self.bias
        packed = self._convolution_weight()
        # oneDNN's operators write into given memory only where they add to it. To clear memory
        # that is there, or to copy to it, takes less time than to get new memory.
        if not overwrite:
            buffer = self._fused_buffers.take(shape, x.dtype)
            if buffer is not None:
                other = buffer.zero_() if other is None else buffer.copy_(other)
                overwrite = True
        if other is None:
            return onednn.convolution(x, packed, bias, settings, epilogue)
        return onednn.convolution_add(
            x, other, packed, bias, settings, epilogue, overwrite=overwrite
        )


class FusedLinear(FusedLayer, nn.Linear):
    """A linear layer with packed weights, together with the activation after it."""

    _fused_weights: PackedWeights

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., D_out]`` for ``[..., D_in]``."""
        return self.run(x)

    def run(self, x: Tensor, activation: nn.Module | None = None) -> Tensor:
        """Return ``activation(linear(x))`` for ``[R, D_in]``."""
        weight, bias = self.weight, self.bias
        epilogue = onednn.epilogue_of(activation)
        if (
            epilogue is None
            or not computes_packed(x, weight, bias)
            or x.dim() != 2
            or x.shape[0] < _MIN_ROWS
        ):
            y = F.linear(x, weight, bias)
            return y if activation is None else activation(y)
        return onednn.linear_layer(x, self._packed(), bias, epilogue)

    def pack(self) -> None:
        """Pack the weights now, rather than in the first call."""
        self._packed()

    def _packed(self) -> Tensor:
        weight = self.weight
        if weight.nbytes > _MAX_PACKED_BYTES:
            return weight
        return self._fused_weights.get("linear", [weight], lambda: onednn.pack_linear(weight))


def run_as_one(weights: PackedWeights, x: Tensor, layers: list[nn.Module]) -> list[Tensor] | None:
    """Run linear layers, or 1x1 convolutions, that read the same input as one.

    Args:
        weights: Takes the joined weights.
        x: [R, D_in], or [N, C_in, H, W] for convolutions.
        layers: ``FusedLinear``, or pointwise ``FusedConv2d`` of stride 1; all with bias.

    Returns:
        The output of each layer, views of one tensor; None if the layers have to run one by one.
    """
    parameters: list[Any] = [p for layer in layers for p in (layer.weight, layer.bias)]
    is_map = x.dim() == 4
    if not computes_packed(x, *parameters) or (not is_map and x.shape[0] < _MIN_ROWS):
        return None
    matrices, biases = parameters[::2], parameters[1::2]
    packed = weights.get(
        "joined",
        matrices,
        lambda: onednn.pack_linear(torch.cat([matrix.flatten(1) for matrix in matrices])),
    )
    bias = weights.get("bias", biases, lambda: torch.cat(biases))
    rows = x
    if is_map:
        rows = _rows_of(x.contiguous(memory_format=torch.channels_last))
    y = onednn.linear_layer(rows, packed, bias, NO_EPILOGUE)
    if is_map:
        y = _map_of(y, x.shape[0], *x.shape[2:])
    return list(y.split([len(b) for b in biases], dim=1))


def computes_packed(x: Tensor, *parameters: Tensor | None) -> bool:
    """Return whether packed weights can compute with ``x`` here and now, and record no gradient."""
    if not onednn.is_eager(x) or x.numel() == 0 or x.dtype not in onednn.usable_dtypes():
        return False
    tensors = [x, *(parameter for parameter in parameters if parameter is not None)]
    if any(t.dtype != x.dtype or t.device.type != "cpu" for t in tensors):
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def why_not_packed(layer: nn.Module) -> str | None:
    """Return why a convolution or linear layer has to compute as it does, or None."""
    base = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    methods = ("forward", "_conv_forward") if base is nn.Conv2d else ("forward",)
    if any(getattr(type(layer), name) is not getattr(base, name) for name in methods):
        return f"{type(layer).__name__} computes in its own way"
    if "forward" in vars(layer):
        return "its forward was replaced"
    if not isinstance(getattr(layer, "weight", None), nn.Parameter):
        return "its weight is not a parameter"
    if "weight" not in layer._parameters:
        return "its weight is computed anew in each call (parametrized)"
    weight: Any = layer.weight
    if weight.device.type != "cpu":
        return f"it is on {weight.device.type}; only a CPU computes with packed weights"
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            return f"oneDNN does not pad in the mode {layer.padding_mode!r}"
        if _padding(layer) is None:
            return "it pads one side more than the other"
    return onednn.why_not_dtype(weight.dtype)


def _padding(layer: nn.Conv2d) -> Any:
    """Return the padding of height and width; None if it differs between two sides."""
    if layer.padding == "valid":
        return [0, 0]
    if layer.padding == "same":
        both = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return None if any(total % 2 for total in both) else [total // 2 for total in both]
    return list(layer.padding)


def _is_large(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return math.prod(shape) * dtype.itemsize >= MapBuffers.MIN_BYTES


def _rows_of(x: Tensor) -> Tensor:
    """Return the pixels of a map [N, C, H, W] as rows [N * H * W, C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _map_of(rows: Tensor, n: int, height: int, width: int) -> Tensor:
    """Return rows [N * H * W, C] as a map [N, C, H, W], channels last."""
    return rows.view(n, height, width, -1).permute(0, 3, 1, 2)
