"""Libraries that call torchvision's operators, each with and without acceleration.

Those that are no dependency are run by ``make test-clients``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rcnn_ext
from rcnn_ext.accelerate import operators

# A client that has to be there, though others may be missing.
_REQUIRED = os.environ.get("RCNN_EXT_CLIENTS", "").split(",")


def _client(name: str) -> Any:
    if name in _REQUIRED:
        return __import__(name, fromlist=["_"])
    return pytest.importorskip(name)


def _boxes(count: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=random) * 100
    sides = 5 + 40 * torch.rand(count, 2, generator=random)
    return torch.cat((corners, corners + sides), dim=1), torch.rand(count, generator=random)


def _assert_accelerated(
    call: Callable[[], Any], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Expect equal results, and that our kernels ran for those operators; return the result."""
    ran: set[str] = set()

    def noted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (ran.add(name), kernel(*args))[1]

    plain = call()
    with monkeypatch.context() as patch:
        for name, kernel in operators.KERNELS.items():
            patch.setitem(operators.KERNELS, name, noted(name, kernel))
        with rcnn_ext.accelerate():
            ours = call()
    with rcnn_ext.accelerate(level="models"):
        on_models = call()
    assert ran == set(expected)
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(on_models, plain, atol=1e-4, rtol=1e-4)
    return ours


# Imports and calls as in detectron2 (layers/nms.py, layers/roi_align.py, modeling/poolers.py).
_DETECTRON2 = """
import torch
from torch import nn
from torchvision.ops import boxes as box_ops
from torchvision.ops import RoIPool, nms  # noqa
from torchvision.ops import roi_align

def batched_nms(boxes, scores, idxs, iou_threshold):
    return box_ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)

class ROIAlign(nn.Module):
    def __init__(self, output_size, spatial_scale, sampling_ratio, aligned=True):
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, input, rois):
        assert rois.dim() == 2 and rois.size(1) == 5
        if input.is_quantized:
            input = input.dequantize()
        return roi_align(input, rois.to(dtype=input.dtype), self.output_size, self.spatial_scale,
                         self.sampling_ratio, self.aligned)
"""

# As in mmcv and mmdet: the functions by name, wrapped in classes of their own.
_MMDET = """
from torch import nn
from torchvision.ops import nms as tv_nms, roi_align as tv_roi_align, roi_pool as tv_roi_pool

class RoIAlign(nn.Module):
    def __init__(self, output_size, spatial_scale=1.0, sampling_ratio=0, aligned=True):
        super().__init__()
        self.options = (output_size, spatial_scale, sampling_ratio, aligned)

    def forward(self, input, rois):
        return tv_roi_align(input, rois, *self.options)

class RoIPool(nn.Module):
    def forward(self, input, rois):
        return tv_roi_pool(input, rois, (7, 7), 0.25)

def multiclass_nms(bboxes, scores, iou_thr, max_num):
    offsets = (bboxes.max() + 1) * (scores.argmax(1).to(bboxes))
    best = scores.max(1).values
    keep = tv_nms(bboxes + offsets[:, None], best, iou_thr)[:max_num]
    return bboxes[keep], best[keep]
"""


def _module(source: str) -> Any:
    module = ModuleType("client")
    exec(source, vars(module))
    return module


def _map_and_rois() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    features = torch.randn(2, 8, 32, 32, generator=random)
    index = torch.randint(0, 2, (120, 1), generator=random)
    return features, torch.cat((index, _boxes(120)[0]), dim=1)


@pytest.mark.parametrize("imported_while_on", [False, True])
def test_detectron2_style(imported_while_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with rcnn_ext.accelerate(level="models") as handle:
        if not imported_while_on:
            handle.undo()
        client = _module(_DETECTRON2)
    boxes, scores = _boxes()
    classes = torch.arange(len(boxes)) % 4
    features, rois = _map_and_rois()
    pool = client.ROIAlign(7, 0.25, 0)

    def call() -> tuple[Tensor, ...]:
        input = features.clone().requires_grad_()
        pooled = pool(input, rois)
        pooled.square().sum().backward()
        keep = client.batched_nms(boxes, scores, classes, 0.5)
        return pooled.detach(), input.grad, keep, client.nms(boxes, scores, 0.5)

    _assert_accelerated(call, ["roi_align", "_roi_align_backward", "nms"], monkeypatch)


def test_mmdet_style(monkeypatch: pytest.MonkeyPatch) -> None:
    client = _module(_MMDET)
    boxes, _ = _boxes()
    scores = torch.rand(300, 5, generator=torch.Generator().manual_seed(4))
    features, rois = _map_and_rois()

    def call() -> tuple[Tensor, ...]:
        input = features.clone().requires_grad_()
        pooled = client.RoIAlign(7, 0.25)(input, rois) + client.RoIPool()(input, rois)
        pooled.square().sum().backward()
        return pooled.detach(), input.grad, *client.multiclass_nms(boxes, scores, 0.5, 100)

    expected = ["roi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward", "nms"]
    _assert_accelerated(call, expected, monkeypatch)


def test_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    supervision = _client("supervision")
    import torchvision

    boxes, scores = _boxes()
    result = {"boxes": boxes, "scores": scores, "labels": torch.arange(300) % 3}

    def call() -> tuple[np.ndarray, ...]:
        keep = torchvision.ops.nms(result["boxes"], result["scores"], 0.5)
        found = supervision.Detections.from_transformers(
            {name: value[keep] for name, value in result.items()}
        ).with_nms(0.3, class_agnostic=True)
        return found.xyxy, found.confidence, found.class_id

    # supervision's own suppression is NumPy; that of the detections that it is given is not.
    found = _assert_accelerated(call, ["nms"], monkeypatch)
    assert 0 < len(found[0]) < 300


@pytest.mark.parametrize("multi_label", [False, True])
def test_ultralytics(multi_label: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _client("ultralytics")
    try:
        from ultralytics.utils.nms import non_max_suppression
    except ImportError:  # before 8.3.200
        from ultralytics.utils.ops import non_max_suppression

    random = torch.Generator().manual_seed(5)
    boxes, _ = _boxes(600)
    centers = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), dim=1)
    prediction = torch.cat((centers, torch.rand(600, 6, generator=random)), dim=1)  # 6 classes
    batch = torch.stack((prediction, prediction.flip(0))).transpose(1, 2)  # [2, 10, 600]

    def call() -> tuple[Tensor, ...]:
        found = non_max_suppression(batch.clone(), 0.3, 0.5, multi_label=multi_label, nc=6)
        return tuple(found)

    found = _assert_accelerated(call, ["nms"], monkeypatch)
    assert all(len(image) > 0 for image in found)


def test_effdet(monkeypatch: pytest.MonkeyPatch) -> None:
    _client("effdet")
    from effdet.anchors import Anchors, generate_detections

    anchors = Anchors(3, 7, 3, [(1.0, 1.0), (1.4, 0.7), (0.7, 1.4)], 4.0, (128, 128)).boxes
    random = torch.Generator().manual_seed(6)
    count = 500
    logits = torch.randn(count, 1, generator=random) * 2
    deltas = torch.randn(count, 4, generator=random) * 0.2
    indices = torch.randperm(len(anchors), generator=random)[:count]
    classes = torch.randint(0, 5, (count,), generator=random)

    def call() -> Tensor:
        return generate_detections(
            logits, deltas, anchors, indices, classes, None, None, max_det_per_image=100
        )

    found = _assert_accelerated(call, ["nms"], monkeypatch)
    assert found.shape == (100, 6)
