"""TorchScript is refused by name, with the way to go instead; tracing works."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from rcnn_ext import models, ops

FUNCTIONS = ["nms", "batched_nms", "box_iou", "roi_align", "roi_pool", "multiscale_roi_align"]
FUNCTIONS += ["generate_proposals", "postprocess_detections", "soft_nms", "match_boxes"]


def script(target: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(target)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators(name: str) -> None:
    with pytest.raises(
        NotImplementedError, match=rf"^{name}: .*torch\.export\.export.*--format pt2"
    ):
        script(getattr(ops, name))


def test_modules_and_what_has_them() -> None:
    pooler = ops.RoIAlign(7, 0.25, 2)
    with pytest.raises(NotImplementedError, match="^RoIAlign: "):
        script(pooler)
    with pytest.raises(NotImplementedError, match="^RoIAlign: "):
        script(nn.ModuleDict({"pooler": pooler, "head": nn.Linear(3, 3)}))
    with pytest.raises(NotImplementedError, match="^MultiScaleRoIAlign: "):
        script(ops.MultiScaleRoIAlign(["0"], 7, 2))


def uses_nms(boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return ops.nms(boxes, scores, 0.5)


def test_a_function_that_calls_an_operator() -> None:
    with pytest.raises(NotImplementedError, match="^nms: "):
        script(uses_nms)


def test_detectors() -> None:
    detector = models.faster_rcnn("resnet18", num_classes=2)
    with pytest.raises(NotImplementedError, match="^FasterRCNN: .*rcnn-ext export"):
        script(detector.eval())


def test_tracing_works() -> None:
    features, rois = torch.rand(1, 2, 8, 8), torch.tensor([[0.0, 0, 0, 6, 6]])
    pooler = ops.RoIAlign(2, 1.0, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(pooler, (features, rois))
    assert torch.equal(traced(features, rois), pooler(features, rois))
