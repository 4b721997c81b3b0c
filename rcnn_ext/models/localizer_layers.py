"""Layers of the localizer: its own small backbone, and its heads."""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
_CNN_CHANNELS = (32, 64, 128, 256)


class ConvBackbone(nn.Sequential):
    """Four blocks of convolution, batch norm, activation and pooling, from scratch: stride 16.

    Args:
        activation: "relu" or "silu".
        in_channels: Channels of the images.
    """

    def __init__(self, activation: str = "relu", in_channels: int = 3) -> None:
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        before = in_channels
        for index, channels in enumerate(_CNN_CHANNELS, start=1):
            blocks[f"block{index}"] = nn.Sequential(
                nn.Conv2d(before, channels, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                ACTIVATIONS[activation](inplace=True),
                nn.MaxPool2d(2),
            )
            before = channels
        super().__init__(blocks)
        self.in_channels = in_channels
        self.out_channels = before
        self.apply(_he_init)


class LocalizerHead(nn.Sequential):
    """A hidden layer with batch norm, activation and dropout, and a linear one.

    Args:
        in_channels: Length of the input.
        hidden_channels: Length of the hidden layer.
        out_channels: Length of the output.
        activation: "relu" or "silu".
        dropout: Probability of dropping a hidden value in training.
        batch_norm: Whether hidden values are normalized over the batch.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        activation: str,
        dropout: float,
        batch_norm: bool,
    ) -> None:
        last = nn.Linear(hidden_channels, out_channels)
        super().__init__(
            nn.Linear(in_channels, hidden_channels, bias=not batch_norm),
            nn.BatchNorm1d(hidden_channels) if batch_norm else nn.Identity(),
            ACTIVATIONS[activation](),
            nn.Dropout(dropout),
            last,
        )
        self.apply(_he_init)
        # The initial output hardly depends on the image, and is near the bias.
        nn.init.normal_(last.weight, std=0.01)

    @property
    def last(self) -> nn.Linear:
        """Return the linear layer that makes the output."""
        return cast(nn.Linear, self[-1])


def check_activation(activation: str) -> None:
    """Raise a ValueError unless ``activation`` is one of ``ACTIVATIONS``."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def _he_init(layer: nn.Module) -> None:
    """Initialize as He et al., "Delving Deep into Rectifiers", 2015."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
