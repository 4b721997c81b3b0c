"""``model.weights``: find the weights of a detector, whatever holds them, and load what fits."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models._api import WeightsEnum

from rcnn_ext.config import ModelConfig
from rcnn_ext.errors import UserError
from rcnn_ext.hub import fetch_hub_file, is_hub_id
from rcnn_ext.models.channels import IMAGENET_MEAN, IMAGENET_STD, imagenet_statistics
from rcnn_ext.models.detectron2 import convert_detectron2, is_detectron2, pixel_statistics
from rcnn_ext.models.pickles import read_arrays
from rcnn_ext.models.torch_files import read_torch_file
from rcnn_ext.models.transfer import SourceWeights, Transfer, load_fitting
from rcnn_ext.models.weights import fetch_state_dict
from rcnn_ext.predict.checkpoint import BEST, ENTRY, LAST, SavedDetector, find_checkpoint
from rcnn_ext.predict.load import load_saved

WEIGHTS_TABLE = "weights.txt"

_COCO_V1 = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
# 91 rows, with gaps where COCO has no category of that number.
_COCO_ROWS = tuple(_COCO_V1.meta["categories"])
_GAP, _BACKGROUND = "N/A", "__background__"
# Trained with frozen batch norms without an epsilon: the beginnings of the files' names.
_WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn_coco", "maskrcnn_resnet50_fpn_coco")
_EPSILON = 1e-5

# Names of layers before torchvision 0.13, which its published files still have.
_OLD_NAMES = (
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)"), r"\1.0.0.\2"),
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), r"\1.0.\2"),
)
_HUB_NAMES = ("model.safetensors", BEST, LAST, "model.pth")


def open_weights(config: ModelConfig) -> SourceWeights | None:
    """Read the weights that ``model.weights`` names.

    Args:
        config: The model section of a recipe.

    Returns:
        The weights by the names of the models here; None where the recipe names none.

    Raises:
        UserError: There are none by this name, they cannot be fetched, or the file is not one of
            weights.
    """
    name = config.weights
    if name is None:
        return None
    if is_hub_id(name):
        return _from_file(fetch_hub_file(name, _HUB_NAMES), name)
    path = Path(name)
    if path.exists():
        return _from_file(find_checkpoint(path), name)
    published = _published(name, config)
    state = fetch_state_dict(published, progress=True, instead="model.weights=FILE with that file")
    return _from_torchvision(state, str(published), _file_name(published), published)


def with_options_of(config: ModelConfig, source: SourceWeights) -> ModelConfig:
    """Return the model section with the options of the weights in place of null."""
    if config.detector == "localizer":
        return config
    changes = {
        name: value for name, value in source.options.items() if getattr(config, name) is None
    }
    return dataclasses.replace(config, **changes)


def load_weights(model: nn.Module, source: SourceWeights, class_names: tuple[str, ...]) -> Transfer:
    """Load what fits into a new model.

    Args:
        model: The model.
        source: The weights.
        class_names: The classes of the model, without the background.

    Raises:
        UserError: Nothing fits, or layers that are frozen would stay random.
    """
    report = load_fitting(model, source, class_names)
    if not report.loaded:
        raise UserError(
            f"model.weights: no tensor of {source.name} fits this model; it has "
            f"{_some(report.unused)} and the model {_some(report.new)}"
        )
    frozen = [
        name
        for name, parameter in model.named_parameters()
        if name in report.new and not parameter.requires_grad
    ]
    if frozen:
        raise UserError(
            f"model.weights: {source.name} has no weights for {', '.join(frozen[:3])}"
            f"{' and others' if len(frozen) > 3 else ''}, which this recipe freezes: they would "
            "stay random. Take the backbone of those weights, or train all stages: "
            "model.trainable_layers=5, or 6 of MobileNetV3"
        )
    return report


def _some(texts: Mapping[str, str]) -> str:
    first = list(texts.values())[:2]
    return ", ".join(first) + (", ..." if len(texts) > 2 else "") if first else "none"


def _published(name: str, config: ModelConfig) -> WeightsEnum:
    """Return the member of torchvision's enumerations that a name means for a model.

    Raises:
        UserError: There is none.
    """
    if name in torchvision.models.list_models(module=detection):
        return torchvision.models.get_model_weights(name).DEFAULT
    kind, dot, member = name.rpartition(".")
    try:
        if dot and hasattr(detection, kind):
            return getattr(detection, kind)[member]
    except KeyError:
        raise UserError(
            f"model.weights={name}: {kind} has {', '.join(getattr(detection, kind).__members__)}"
        ) from None
    matching = _matching_weights(config)
    if matching is not None and name in matching.__members__:
        return matching[name]
    full = "FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1"
    if name in ("DEFAULT", "COCO_V1"):
        raise UserError(
            f"model.weights={name}: torchvision publishes detectors with resnet50 and "
            f"mobilenet_v3_large under a pyramid, and this one is {config.backbone} with neck "
            f"{config.neck}; the full name, such as {full}, takes what fits"
        )
    names = "" if matching is None else f"{', '.join(matching.__members__)}, "
    raise UserError(
        f"model.weights={name}: there is no such file or folder, and it is no name of published "
        f"weights ({names}{full}, fasterrcnn_resnet50_fpn_v2, ...) and no hub:owner/name"
    )


def _matching_weights(config: ModelConfig) -> type[WeightsEnum] | None:
    """Return torchvision's enumeration of weights for the layers of a recipe's model."""
    pyramid = config.neck == "fpn" or (config.neck is None and config.detector == "faster_rcnn")
    if not pyramid or config.detector == "localizer":
        return None
    if config.backbone == "mobilenet_v3_large":
        if config.max_size <= 640:
            return detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights
        return detection.FasterRCNN_MobileNet_V3_Large_FPN_Weights
    if config.backbone == "resnet50":
        second = config.head == "conv" or config.fpn_batch_norm or config.rpn_conv_depth > 1
        if second:
            return detection.FasterRCNN_ResNet50_FPN_V2_Weights
        return detection.FasterRCNN_ResNet50_FPN_Weights
    return None


def _file_name(weights: WeightsEnum) -> str:
    return str(weights.url).rpartition("/")[2]


def _from_file(path: Path, name: str) -> SourceWeights:
    """Read weights from a file of any kind; ``name`` is what the recipe calls it."""
    if path.suffix == ".pt2":
        raise UserError(
            f"model.weights={name}: {path} is a program, which cannot be trained; take the run or "
            "the .safetensors that it was exported from"
        )
    if path.suffix == ".safetensors":
        content: Any = _read_safetensors(path)
    elif path.suffix == ".pkl":
        content = read_arrays(path)
    else:
        # Training scripts, torchvision's among them, store their arguments beside the weights.
        content = read_torch_file(path, allowed=[argparse.Namespace])
    if isinstance(content, Mapping) and ENTRY in content:
        return _from_saved(load_saved(path), name)
    state = _state_dict(content, path)
    if is_detectron2(state):
        return _from_detectron2(state, name, path)
    return _from_torchvision(state, name, path.name, None)


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return {ENTRY: metadata} if ENTRY in metadata else load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a .safetensors file, or is damaged") from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file, which may be nested and may come from wrapped models.

    Raises:
        UserError: There is none.
    """
    for key in ("model", "state_dict", "model_state_dict", "model_ema"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state: dict[str, Tensor] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if hasattr(value, "__array__") and not isinstance(value, Tensor):
            value = torch.as_tensor(value)
        if isinstance(name, str) and isinstance(value, Tensor):
            state[name] = value
    if not state:
        raise UserError(f"{path} holds no state dict: no tensors by name")
    for prefix in ("_orig_mod.", "module.", "model."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _from_saved(saved: SavedDetector, name: str) -> SourceWeights:
    """Return the weights of a run of this package."""
    config = saved.recipe.model
    mean, std = imagenet_statistics(config.in_channels)
    return SourceWeights(
        name=name,
        tensors=saved.weights,
        class_names=(_BACKGROUND, *saved.classes.names),
        image_mean=config.image_mean or mean,
        image_std=config.image_std or std,
        options={
            option: getattr(config, option)
            for option in ("stride_in_1x1", "conventions")
            if getattr(config, option) is not None
        },
    )


def _from_torchvision(
    state: Mapping[str, Tensor], name: str, file_name: str, weights: WeightsEnum | None
) -> SourceWeights:
    """Return weights by torchvision's names."""
    tensors = {}
    for key, value in state.items():
        for pattern, replacement in _OLD_NAMES:
            if pattern.fullmatch(key):
                key = pattern.sub(replacement, key)
        tensors[key] = value
    if file_name.startswith(_WITHOUT_EPSILON):
        _give_epsilon(tensors)
    rows = len(tensors.get("roi_heads.box_predictor.cls_score.bias", ()))
    categories = None if weights is None else weights.meta.get("categories")
    if categories is None and rows == len(_COCO_ROWS):
        categories = _COCO_ROWS
    names = None
    if categories is not None and len(categories) == rows:
        names = tuple("" if category == _GAP else category for category in categories)
    return SourceWeights(name, tensors, names, IMAGENET_MEAN, IMAGENET_STD)


def _give_epsilon(tensors: dict[str, Tensor]) -> None:
    """Scale the weights of batch norms so that with an epsilon they do what they did without."""
    for name in [one for one in tensors if one.endswith(".running_var")]:
        weight = name.removesuffix("running_var") + "weight"
        variance = tensors[name].double()
        factor = ((variance + _EPSILON) / variance).sqrt()
        scaled = tensors[weight].double() * torch.where(variance > 0, factor, 1.0)
        tensors[weight] = scaled.to(tensors[weight].dtype)


def _from_detectron2(state: Mapping[str, Tensor], name: str, path: Path) -> SourceWeights:
    mean, std, stride_in_1x1 = pixel_statistics(state)
    try:
        tensors = convert_detectron2(state)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            f"{path} is no Faster or Fast R-CNN with a ResNet of detectron2: {error}"
        ) from error
    rows = len(tensors.get("roi_heads.box_predictor.cls_score.bias", ()))
    coco = tuple(one for one in _COCO_ROWS if one != _GAP)
    return SourceWeights(
        name,
        tensors,
        # detectron2 numbers COCO's 80 categories without gaps.
        coco if rows == len(coco) else None,
        [value / 255 for value in reversed(mean)],
        [value / 255 for value in reversed(std)],
        {"stride_in_1x1": stride_in_1x1, "conventions": "detectron2"},
    )
