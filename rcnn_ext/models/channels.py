"""Images of other than three channels: the first convolution and the normalization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RGB = 3


def in_channels_of(backbone: nn.Module) -> int | None:
    """Return the channels of images that a backbone says it takes (``in_channels``), or None."""
    channels = getattr(backbone, "in_channels", None)
    return channels if isinstance(channels, int) else None


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Return the weight of a first convolution on RGB for images of other channels, as timm does.

    For one channel it is the sum over red, green and blue, so that a gray image gives what the RGB
    image of three equal channels gave. For others, red, green and blue take turns, times 3 /
    ``channels``, so that features keep their magnitude.

    Args:
        weight: [C_out, 3, h, w].
        channels: Number of channels of the images.

    Returns:
        [C_out, ``channels``, h, w].

    Raises:
        ValueError: ``weight`` is not of RGB, and has not as many channels as wanted.
    """
    if weight.shape[1] == channels:
        return weight
    if weight.shape[1] != _RGB:
        raise ValueError(f"a convolution on {weight.shape[1]} channels is not one on RGB")
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, torch.arange(channels, device=weight.device) % _RGB] * (_RGB / channels)


def imagenet_statistics(channels: int) -> tuple[list[float], list[float]]:
    """Return ImageNet's mean and standard deviation for images of so many channels.

    For one channel they are averaged; for others red, green and blue take turns, as in
    :func:`adapt_channels`.
    """
    if channels == 1:
        return [sum(IMAGENET_MEAN) / _RGB], [sum(IMAGENET_STD) / _RGB]
    turns = [index % _RGB for index in range(channels)]
    return [IMAGENET_MEAN[turn] for turn in turns], [IMAGENET_STD[turn] for turn in turns]


@torch.no_grad()
def replace_first_convolution(network: nn.Module, channels: int, *, pretrained: bool) -> None:
    """Let a network on RGB take images of other channels, in place.

    Args:
        network: A network whose first convolution, in the order of definition, takes the images.
        channels: Number of channels of the images.
        pretrained: Whether to adapt the weights by :func:`adapt_channels`, rather than draw new
            ones.
    """
    name, old = next(
        (name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)
    )
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    if pretrained:
        new.weight.copy_(adapt_channels(old.weight, channels))
    else:
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if old.bias is not None and new.bias is not None:
        new.bias.copy_(old.bias)
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)
