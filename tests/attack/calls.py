"""Right calls of every operator, from which wrong ones are made by their schemas."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rcnn_ext import ops
from rcnn_ext.ops import conv_winograd

RAW = torch.ops.rcnn_ext
PUBLIC = (
    *("nms", "batched_nms", "nms_padded", "batched_nms_padded", "soft_nms", "batched_soft_nms"),
    *("box_iou", "box_ios", "generalized_box_iou", "distance_box_iou", "complete_box_iou"),
    *("match_boxes", "batched_match_boxes", "roi_align", "roi_pool", "multiscale_roi_align"),
    *("generate_proposals", "postprocess_detections", "non_max_merging"),
)
# Whose results are those of torchvision's operator of the same name.
TORCHVISION = (
    *("nms", "batched_nms", "box_iou", "generalized_box_iou", "distance_box_iou"),
    *("complete_box_iou", "roi_align", "roi_pool"),
)


@dataclass(frozen=True)
class Operator:
    """An operator and a right call of it.

    Attributes:
        name: Its name; that of a raw operator begins with ``rcnn_ext::``.
        function: The operator.
        kinds: The type of each argument, as schemas have it.
        arguments: The arguments of a right call, by name.
    """

    name: str
    function: Callable[..., Any]
    kinds: dict[str, str]
    arguments: dict[str, Any]

    @property
    def plain_name(self) -> str:
        """The name without its namespace."""
        return self.name.rpartition("::")[2]


def _boxes(count: int = 7) -> Tensor:
    corners = torch.rand(count, 2) * 20
    return torch.cat([corners, corners + 1 + torch.rand(count, 2) * 12], dim=1)


def _rois(count: int = 5) -> Tensor:
    return torch.cat([torch.randint(2, (count, 1)).float(), _boxes(count)], dim=1)


def _arguments() -> dict[str, Any]:
    """Return a right value for each name of an argument that several operators share."""
    torch.manual_seed(0)
    boxes, features = _boxes(), torch.randn(2, 3, 9, 11)
    return {
        "boxes": boxes,
        "boxes1": _boxes(5),
        "boxes2": _boxes(6),
        "gt_boxes": _boxes(3),
        "scores": torch.rand(7),
        "labels": torch.tensor([1, 2, 1, 1, 2, 3, 1]),
        "idxs": torch.tensor([0, 1, 0, 0, 1, 1, 0]),
        "input": features,
        "inputs": [features, torch.randn(2, 3, 5, 6)],
        "rois": _rois(),
        "gt_counts": [3],
        "box_counts": [],
        "logits": [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 2, 2)],
        "deltas": [torch.randn(2, 12, 4, 5), torch.randn(2, 12, 2, 2)],
        "anchors": _boxes(72),
        "image_sizes": torch.tensor([[32, 40], [30, 24]]),
        "image_ids": torch.tensor([0, 1, 0, 1, 1, 0, 0]),
        "weights": [1.0, 1.0, 1.0, 1.0],
        "means": [0.0, 0.0, 0.0, 0.0],
        "spatial_scales": [0.5, 0.25],
        "spatial_scale": 0.5,
        "heights": [9, 5],
        "widths": [11, 6],
        "pooled_height": 3,
        "pooled_width": 2,
        "output_size": 3,
        "batch_size": 2,
        "channels": 3,
        "height": 9,
        "width": 11,
        "sampling_ratio": 2,
        "aligned": False,
        "channels_last": False,
        "canonical_scale": 224.0,
        "canonical_level": 4,
        "iou_threshold": 0.5,
        "high_threshold": 0.5,
        "low_threshold": 0.3,
        "threshold": 0.5,
        "score_threshold": 0.01,
        "sigma": 0.5,
        "eps": 1e-7,
        "max_log_ratio": 4.0,
        "min_size": 0.01,
        "pre_nms_top_n": 20,
        "post_nms_top_n": 9,
        "detections_per_image": 5,
        "max_output": 5,
        "measure": 1,
        "metric": 0,
        "method": 0,
        "allow_low_quality_matches": True,
        "class_agnostic": False,
        "fmt": "xyxy",
    }


def _convolution() -> dict[str, Any]:
    weight = torch.randn(5, 3, 3, 3) / 5
    return {
        "x": torch.randn(2, 3, 6, 7).contiguous(memory_format=torch.channels_last),
        "packed": conv_winograd.pack(weight),
        "bias": torch.randn(5),
        "other": torch.randn(2, 5, 6, 7).contiguous(memory_format=torch.channels_last),
        "relu": True,
        "tile": 4,
        "out_channels": 5,
    }


_PER_OPERATOR: dict[str, Callable[[], dict[str, Any]]] = {
    "conv3x3_winograd": _convolution,
    "conv3x3_winograd_out": lambda: (
        _convolution()
        | {"out": torch.empty(2, 5, 6, 7).contiguous(memory_format=torch.channels_last)}
    ),
    "box_iou": lambda: {"boxes1": _boxes(5)[None], "boxes2": _boxes(6)[None]},
    "box_iou_backward": lambda: {
        "grad": torch.randn(1, 5, 6),
        "boxes1": _boxes(5)[None],
        "boxes2": _boxes(6)[None],
    },
    "roi_align_backward": lambda: {"grad": torch.randn(5, 3, 3, 2)},
    "roi_pool_backward": lambda: {
        "grad": torch.randn(5, 3, 3, 2),
        "argmax": torch.randint(-1, 99, (5, 3, 3, 2)).int(),
    },
    "multiscale_roi_align_backward": lambda: {"grad": torch.randn(5, 3, 3, 2)},
    "postprocess_detections": lambda: {
        "logits": torch.randn(7, 4),
        "deltas": torch.randn(7, 16),
        "rois": _boxes(7),
    },
}
_PER_FUNCTION: dict[str, Callable[[], dict[str, Any]]] = {
    "batched_match_boxes": lambda: {"gt_boxes": [_boxes(3), _boxes(2)]},
    "roi_align": lambda: {"boxes": _rois()},
    "roi_pool": lambda: {"boxes": _rois()},
    "multiscale_roi_align": lambda: {"boxes": _rois()},
    "postprocess_detections": _PER_OPERATOR["postprocess_detections"],
    "soft_nms": lambda: {"method": "linear"},
    "batched_soft_nms": lambda: {"method": "gaussian"},
    "non_max_merging": lambda: {"metric": "ios"},
}


def raw_operators() -> list[Operator]:
    """Return all operators of the namespace ``rcnn_ext``, as they are registered."""
    found = []
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        if not name.startswith("rcnn_ext::"):
            continue
        plain = name.partition("::")[2]
        function = getattr(RAW, plain).default
        values = _arguments() | _PER_OPERATOR.get(plain, dict)()
        schema = function._schema.arguments
        arguments = {argument.name: values[argument.name] for argument in schema}
        kinds = {
            argument.name: str(argument.type).replace("Optional[Tensor]", "Tensor?")
            for argument in schema
        }
        found.append(Operator(name, function, kinds, arguments))
    return found


_KINDS = {
    "Tensor": "Tensor",
    "Tensor | None": "Tensor",
    "Tensor | Sequence[Tensor]": "Tensor",
    "Sequence[Tensor]": "List[Tensor]",
    "Sequence[float]": "List[float]",
    "int | Sequence[int]": "int",
    "float": "float",
    "int": "int",
    "bool": "bool",
}


def public_operators() -> list[Operator]:
    """Return the functions of ``rcnn_ext.ops``."""
    found = []
    for name in PUBLIC:
        function = getattr(ops, name)
        values = _arguments() | _PER_FUNCTION.get(name, dict)()
        parameters = inspect.signature(function).parameters
        kinds = {
            parameter: _KINDS.get(str(about.annotation), "str")
            for parameter, about in parameters.items()
        }
        found.append(Operator(name, function, kinds, {key: values[key] for key in parameters}))
    return found
