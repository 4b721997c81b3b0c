"""Detectors from checkpoints of detectron2: Faster and Fast R-CNN with ResNet-50, C4 or FPN.

What differs from torchvision's detectors, and is brought over here:

- names of the layers, and the background class, which detectron2 has last;
- channels in the order BGR and pixels in 0-255, which go into the first convolution and the
  normalization: the model takes RGB images in [0, 1], as all models here do;
- the place of the stride: in the 1x1 convolution of a block in the "caffe" ResNets (MSRA weights);
- anchors that are not rounded to whole pixels, and the order of anchors on a single map;
- RoIAlign with half-pixel offset and an adaptive number of samples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcnn_ext.config.model import ANCHOR_SIZES
from rcnn_ext.errors import UserError
from rcnn_ext.models.builder import fast_rcnn, faster_rcnn
from rcnn_ext.models.fast_rcnn import FastRCNN
from rcnn_ext.models.faster_rcnn import FasterRCNN
from rcnn_ext.models.pickles import read_arrays
from rcnn_ext.models.torch_files import read_torch_file

# Of the "caffe" ResNet-50, detectron2's default: blue, green, red.
PIXEL_MEAN = (103.53, 116.28, 123.675)
PIXEL_STD = (1.0, 1.0, 1.0)

# Not weights, or constants of the model: old checkpoints hold them, newer ones do not.
_IGNORED = re.compile(
    r"pixel_(mean|std)|proposal_generator\.anchor_generator\..*|.*\.num_batches_tracked"
)

_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"backbone\.fpn_lateral(\d)\.", r"backbone.fpn.inner_blocks.<\1>.0."),
        (r"backbone\.fpn_output(\d)\.", r"backbone.fpn.layer_blocks.<\1>.0."),
        (r"backbone\.(?:bottom_up\.)?stem\.conv1\.norm\.", r"backbone.body.bn1."),
        (r"backbone\.(?:bottom_up\.)?stem\.conv1\.", r"backbone.body.conv1."),
        (r"backbone\.(?:bottom_up\.)?res(\d)\.", r"backbone.body.layer<\1>."),
        (r"roi_heads\.res5\.", r"roi_heads.box_head.stage.layer4."),
        (r"(layer\S+\.\d+)\.shortcut\.norm\.", r"\1.downsample.1."),
        (r"(layer\S+\.\d+)\.shortcut\.", r"\1.downsample.0."),
        (r"(layer\S+\.\d+)\.conv(\d)\.norm\.", r"\1.bn\2."),
        (r"proposal_generator\.rpn_head\.conv\.(?=weight|bias)", r"rpn.head.conv.0.0."),
        (r"proposal_generator\.rpn_head\.objectness_logits\.", r"rpn.head.cls_logits."),
        (r"proposal_generator\.rpn_head\.anchor_deltas\.", r"rpn.head.bbox_pred."),
        (r"roi_heads\.box_head\.fc1\.", r"roi_heads.box_head.fc6."),
        (r"roi_heads\.box_head\.fc2\.", r"roi_heads.box_head.fc7."),
    )
]


def load_detectron2(
    checkpoint: str | Path | Mapping[str, Any],
    *,
    pixel_mean: Sequence[float] | None = None,
    pixel_std: Sequence[float] | None = None,
    input_format: str = "BGR",
    stride_in_1x1: bool | None = None,
    **options: Any,
) -> FasterRCNN | FastRCNN:
    """Build the detector that a checkpoint of detectron2 holds.

    Which one it is (C4 or FPN, with an RPN or without, class-agnostic boxes, number of classes) is
    read off the weights. Class k of detectron2 becomes label k + 1; label 0 is the background.

    Args:
        checkpoint: A state dict by detectron2's names, or a ``.pth`` file with one, alone or under
            "model", or a ``.pkl`` file of its model zoo. Of a pickle, which may run code when it is
            opened, only arrays, numbers, text and containers are read; others are refused.
        pixel_mean: ``MODEL.PIXEL_MEAN``, in the order of ``input_format``; None means the values
            in the checkpoint, else (103.53, 116.28, 123.675).
        pixel_std: ``MODEL.PIXEL_STD``; None means the values in the checkpoint, else (1, 1, 1).
        input_format: ``INPUT.FORMAT``, "BGR" or "RGB".
        stride_in_1x1: ``MODEL.RESNETS.STRIDE_IN_1X1``. None means True for pixels that are not
            scaled, as in the "caffe" ResNets, and False otherwise.
        **options: Further options of ``faster_rcnn`` or ``fast_rcnn``, such as ``min_size``.

    Returns:
        The detector, in evaluation mode.

    Raises:
        UserError: The file cannot be read, or is no Faster or Fast R-CNN with ResNet-50.
        ValueError: An argument out of range.

    Example:
        >>> model = load_detectron2("model_final.pth")
        >>> model([image])[0]["labels"]  # 1 + detectron2's class
    """
    if input_format not in ("BGR", "RGB"):
        raise ValueError(f"input_format must be 'BGR' or 'RGB', got {input_format!r}")
    state = _state_dict(checkpoint)
    mean, std, usual = pixel_statistics(state, pixel_mean, pixel_std)
    stride_in_1x1 = usual if stride_in_1x1 is None else stride_in_1x1

    weights = convert_detectron2(state, input_format=input_format)
    if input_format == "BGR":
        mean, std = mean[::-1], std[::-1]
    # Without memory: all that a detector consists of is in the checkpoint.
    with torch.device("meta"):
        model = _build(weights, mean, std, options, stride_in_1x1)
    try:
        model.load_state_dict(
            {name: value.to(torch.float32, copy=True) for name, value in weights.items()},
            assign=True,
        )
    except RuntimeError as error:
        raise UserError(
            "the checkpoint is no Faster or Fast R-CNN with ResNet-50 of detectron2: "
            + " ".join(str(error).split())
        ) from error
    return model.eval()


def is_detectron2(state: Mapping[str, Any]) -> bool:
    """Return whether the names in a state dict are detectron2's."""
    return any(
        name.startswith(("backbone.bottom_up.", "backbone.fpn_lateral", "proposal_generator."))
        or ".stem.conv1." in name
        for name in state
    )


def pixel_statistics(
    state: Mapping[str, Tensor],
    pixel_mean: Sequence[float] | None = None,
    pixel_std: Sequence[float] | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Return how detectron2 normalizes the pixels for a checkpoint.

    Args:
        state: Weights by detectron2's names; old ones hold mean and standard deviation.
        pixel_mean: ``MODEL.PIXEL_MEAN``; None means that of the checkpoint, else the default.
        pixel_std: ``MODEL.PIXEL_STD``, likewise.

    Returns:
        Mean and standard deviation of each channel, of pixels in 0-255 and in the order of the
        checkpoint, and whether a ResNet trained with these has its strides in the 1x1 convolutions.

    Raises:
        ValueError: Not one number for each of three channels.
    """
    mean = _pixel_values(pixel_mean, state.get("pixel_mean"), PIXEL_MEAN, "pixel_mean")
    std = _pixel_values(pixel_std, state.get("pixel_std"), PIXEL_STD, "pixel_std")
    return mean, std, std == (1.0, 1.0, 1.0)


def convert_detectron2(
    state: Mapping[str, Tensor], *, input_format: str = "BGR"
) -> dict[str, Tensor]:
    """Rename and reorder detectron2's weights to those of the models here.

    Args:
        state: Weights by detectron2's names.
        input_format: The order of the channels that the first convolution expects.

    Returns:
        Weights by torchvision's names, for RGB images and with the background as class 0. Anchors
        of a single map, with several sizes, are in torchvision's order.
    """
    pyramid = any(name.startswith("backbone.fpn_") for name in state)
    converted = {}
    for old, value in state.items():
        if _IGNORED.fullmatch(old):
            continue
        name = old
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)
        # Levels 2 to 5 of a pyramid are numbered from 0, stages res2 to res5 from 1.
        name = re.sub(r"layer<(\d)>", lambda found: f"layer{int(found[1]) - 1}", name)
        name = re.sub(r"<(\d)>", lambda found: f"{int(found[1]) - 2}", name)
        if name == "backbone.body.conv1.weight" and input_format == "BGR":
            value = value.flip(1)  # [64, BGR, 7, 7] -> [64, RGB, 7, 7]
        elif name.startswith("roi_heads.box_predictor.cls_score."):
            value = value.roll(1, dims=0)  # the background comes first
        elif name.startswith("roi_heads.box_predictor.bbox_pred.") and len(value) > 4:
            # [K * 4, ...] -> [(1 + K) * 4, ...]: torchvision has a box for the background too.
            value = torch.cat((torch.zeros_like(value[:4]), value))
        elif name.startswith("rpn.head.cls_logits.") and not pyramid:
            value = _ratio_major(value, 1)
        elif name.startswith("rpn.head.bbox_pred.") and not pyramid:
            value = _ratio_major(value, 4)
        converted[name] = value
    return converted


def _ratio_major(value: Tensor, per_anchor: int) -> Tensor:
    """Bring rows [sizes * ratios * per_anchor, ...] into the order ratio, size, number."""
    by_size = value.unflatten(0, (len(ANCHOR_SIZES), -1, per_anchor))
    return by_size.transpose(0, 1).flatten(0, 2)


def _build(
    weights: dict[str, Tensor],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    options: dict[str, Any],
    stride_in_1x1: bool,
) -> FasterRCNN | FastRCNN:
    """Build the detector that converted weights belong to."""
    scores = weights.get("roi_heads.box_predictor.cls_score.weight")
    boxes = weights.get("roi_heads.box_predictor.bbox_pred.weight")
    if scores is None or boxes is None:
        raise UserError(
            "the checkpoint is no Faster or Fast R-CNN of detectron2: it has no "
            "roi_heads.box_predictor.cls_score and bbox_pred"
        )
    pyramid = "backbone.fpn.inner_blocks.0.0.weight" in weights
    has_rpn = any(name.startswith("rpn.") for name in weights)
    common: dict[str, Any] = {
        "num_classes": len(scores),
        "class_agnostic": len(boxes) == 4,
        "neck": "fpn" if pyramid else "c4",
        "pool_size": 7 if pyramid else 14,
        "conventions": "detectron2",
        "stride_in_1x1": stride_in_1x1,
        "norm_layer": "frozen",
        "image_mean": [value / 255 for value in mean],
        "image_std": [value / 255 for value in std],
        "min_size": 800,
        "max_size": 1333,
        "box_nms_thresh": 0.5,
    }
    if not has_rpn:
        return fast_rcnn("resnet50", **{**common, **options})
    if not pyramid:
        common |= {
            "rpn_pre_nms_top_n_train": 12000,
            "rpn_pre_nms_top_n_test": 6000,
            "rpn_post_nms_top_n_train": 2000,
            "rpn_post_nms_top_n_test": 1000,
        }
    return faster_rcnn("resnet50", **{**common, **options})


def _state_dict(checkpoint: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    if isinstance(checkpoint, str | Path):
        path = Path(checkpoint)
        content = read_arrays(path) if path.suffix == ".pkl" else read_torch_file(path)
    else:
        content = checkpoint
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor | np.ndarray) for value in content.values()
    ):
        raise UserError("the checkpoint holds no state dict of tensors")
    return {name: torch.as_tensor(value) for name, value in content.items()}


def _pixel_values(
    given: Sequence[float] | None, saved: Tensor | None, default: tuple[float, ...], name: str
) -> tuple[float, ...]:
    values = given if given is not None else default if saved is None else saved.flatten().tolist()
    if len(values) != 3:
        raise ValueError(f"{name} must have one number for each of three channels, got {values}")
    # A file holds them in float32; 103.53 was meant.
    return tuple(round(float(value), 4) for value in values)
