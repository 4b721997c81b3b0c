"""Backbones of timm, by name: ``timm:convnext_tiny``."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from rcnn_ext.errors import UserError
from rcnn_ext.hub import cache_only_without_network
from rcnn_ext.models.weights import DownloadError

PREFIX = "timm:"

# Of networks that otherwise take one size of image only: the windowed ones, and ViTs.
_SIZE_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"strict_img_size": False},
    {"dynamic_img_size": True},
)
# A multiple of every stride and of most windows.
_TRIAL_SIDE = 256


class TimmBackbone(nn.Module):
    """Some feature maps of a network of timm, with a pyramid on them or without.

    Args:
        body: A network made with ``features_only=True``.
        levels: The maps to take, by index in ``body.feature_info``.
        in_channels: Channels of the images.
        pyramid_channels: Channels of the pyramid; None takes the map of the one level as it is.
        norm_layer: Function from channels to a layer after each convolution of the pyramid.

    Attributes:
        out_channels: Channels of each map.
        in_channels: Channels of the images.
    """

    def __init__(
        self,
        body: nn.Module,
        levels: Sequence[int],
        in_channels: int,
        pyramid_channels: int | None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.levels = tuple(levels)
        info: Any = body.feature_info
        self.channels = tuple(info.channels()[level] for level in self.levels)
        self.in_channels = in_channels
        self.fpn: nn.Module | None = None
        if pyramid_channels is not None:
            self.fpn = FeaturePyramidNetwork(
                list(self.channels),
                pyramid_channels,
                extra_blocks=LastLevelMaxPool(),
                norm_layer=norm_layer,
            )
        self.out_channels = pyramid_channels or self.channels[-1]

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the maps [N, C, H_l, W_l] of images [N, in_channels, H, W].

        They are a dict with the levels "0", "1", ... and "pool" where there is a pyramid, else one
        tensor.
        """
        maps = self.body(images)
        chosen = [
            # Windowed transformers keep channels last: [N, H, W, C].
            found.permute(0, 3, 1, 2) if found.shape[1] != channels else found
            for found, channels in (
                (maps[level], channels)
                for level, channels in zip(self.levels, self.channels, strict=True)
            )
        ]
        if self.fpn is None:
            return chosen[0]
        return self.fpn(OrderedDict((str(level), found) for level, found in enumerate(chosen)))


def build_timm_backbone(
    name: str,
    neck: str,
    *,
    weights: Any = None,
    norm_layer: Any = "auto",
    trainable_layers: int | None = None,
    returned_layers: Sequence[int] | None = None,
    pyramid_norm_layer: Callable[..., nn.Module] | None = None,
    in_channels: int = 3,
    pyramid_channels: int = 256,
) -> TimmBackbone:
    """Make a backbone from a network of timm.

    Args:
        name: ``timm:`` and the name of a network that timm can cut into features.
        neck: ``fpn``, a pyramid; ``c4`` or ``c5``, the last map of stride 16 or 32.
        weights: ``DEFAULT`` for the published weights that timm prefers, the tag of others, such as
            ``in12k_ft_in1k``; None for random ones. Their first convolution is adapted to
            ``in_channels`` by timm.
        norm_layer: ``frozen`` freezes the batch norms of the network, where it has any; ``auto``
            does so with weights; ``batch`` leaves them.
        trainable_layers: Number of trainable stages, counted from the last; None means all. A stage
            ends with each of the network's feature maps.
        returned_layers: The maps that the pyramid is built on, by index; None takes the last of
            each stride from 4 to 32.
        pyramid_norm_layer: Function from channels to a layer after each convolution of the pyramid.
        in_channels: Channels of the images.
        pyramid_channels: Channels of the pyramid.

    Raises:
        ValueError: There is no such network, map or stage.
        UserError: timm is missing, or the weights cannot be downloaded.
    """
    network = _create(name.removeprefix(PREFIX), weights, in_channels)
    info: Any = network.feature_info
    strides = list(info.reduction())
    levels = _levels(name, neck, strides, returned_layers)
    if trainable_layers is not None:
        _freeze_stages(name, network, trainable_layers)
    if norm_layer == "frozen" or (norm_layer == "auto" and weights is not None):
        from timm.utils.model import freeze_batch_norm_2d

        network = freeze_batch_norm_2d(network)
    return TimmBackbone(
        network,
        levels,
        in_channels,
        pyramid_channels if neck == "fpn" else None,
        pyramid_norm_layer,
    )


def _create(name: str, weights: Any, in_channels: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"the backbone {PREFIX}{name} needs timm: pip install 'rcnn-ext[timm]'"
        ) from error
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = (
            f"did you mean {' or '.join(PREFIX + one for one in near)}?"
            if near
            else ("timm.list_models() has those that exist")
        )
        raise ValueError(f"there is no backbone {PREFIX}{name}; {hint}")
    if weights is not None and weights != "DEFAULT":
        name = f"{name.partition('.')[0]}.{weights}"
    problem = ""
    for options in _SIZE_OPTIONS:
        try:
            network: nn.Module = timm.create_model(
                name, features_only=True, pretrained=False, in_chans=in_channels, **options
            )
            with torch.no_grad():
                trial = torch.zeros(1, in_channels, _TRIAL_SIDE, _TRIAL_SIDE)
                network.eval()(trial.to(next(network.parameters()).device))
        # Which exceptions a network raises that cannot do it is its own affair.
        except Exception as error:
            problem = problem or " ".join(str(error).split())
            continue
        if weights is not None:
            network = _create_pretrained(timm, name, in_channels, options)
        return network.train()
    raise ValueError(f"{PREFIX}{name} gives no feature maps of images of any size: {problem}")


def _create_pretrained(
    timm: Any, name: str, in_channels: int, options: dict[str, Any]
) -> nn.Module:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"timm has no published weights for {name}")
    # timm prefers the Hub.
    url = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
    fetching = cache_only_without_network() if config.hf_hub_id else nullcontext()
    try:
        with fetching:
            network: nn.Module = timm.create_model(
                name, features_only=True, pretrained=True, in_chans=in_channels, **options
            )
    # Of huggingface_hub, of urllib or of the file that came.
    except Exception as error:
        place = (
            f"run `hf download {config.hf_hub_id}` where there is one, and bring the folder "
            "models--" + str(config.hf_hub_id).replace("/", "--") + " into $HF_HOME/hub"
            if config.hf_hub_id
            else f"put the file from there into {torch.hub.get_dir()}/checkpoints"
        )
        raise DownloadError(
            f"the weights {name} of timm cannot be fetched from {url}. Check the network, or "
            f"{place}",
            "weights_backbone=None",
        ) from error
    return network


def _levels(
    name: str, neck: str, strides: list[int], returned_layers: Sequence[int] | None
) -> list[int]:
    last = {stride: level for level, stride in enumerate(strides)}
    if neck == "fpn":
        if returned_layers is None:
            chosen = [level for stride, level in sorted(last.items()) if 4 <= stride <= 32]
        else:
            chosen = list(returned_layers)
        if (
            not chosen
            or chosen != sorted(set(chosen))
            or not 0 <= chosen[0] <= chosen[-1] < len(strides)
        ):
            raise ValueError(
                f"returned_layers of {name} must be ascending numbers from 0 to "
                f"{len(strides) - 1} (strides {', '.join(map(str, strides))}), got {chosen}"
            )
        return chosen
    stride = 16 if neck == "c4" else 32
    if stride not in last:
        raise ValueError(
            f"neck={neck!r} takes the map of stride {stride}, and {name} has maps of strides "
            f"{', '.join(map(str, strides))}"
        )
    return [last[stride]]


def _freeze_stages(name: str, network: nn.Module, trainable_layers: int) -> None:
    """Freeze all but the last stages; parameters belong to the first map that follows them."""
    info: Any = network.feature_info
    modules = [module for module, _ in network.named_modules()]
    ends = []
    for feature in info.module_name():
        inside = [
            index
            for index, module in enumerate(modules)
            for prefix in {feature, feature.replace(".", "_")}
            if module == prefix or module.startswith(f"{prefix}.")
        ]
        if not inside:
            parts = ", ".join(child for child, _ in network.named_children())
            raise ValueError(
                f"the stages of {name} cannot be counted; freeze parts by name instead, "
                f"optimizer.freeze=[backbone.body.NAME] with NAME of {parts}"
            )
        ends.append(max(inside))
    if not 0 <= trainable_layers <= len(ends):
        raise ValueError(
            f"the number of trainable layers of {name} must lie in [0, {len(ends)}], got "
            f"{trainable_layers}"
        )
    frozen = ends[len(ends) - trainable_layers - 1] if trainable_layers < len(ends) else -1
    for index, module in enumerate(modules):
        if index <= frozen:
            for parameter in network.get_submodule(module).parameters(recurse=False):
                parameter.requires_grad_(False)
