"""Small detectors of torchvision with random weights, that find many objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision.models.detection as tv
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

NUM_CLASSES = 4


class _Pyramid(nn.Module):
    """A backbone of some maps of 32 channels, each with twice the stride of the one before."""

    out_channels = 32

    def __init__(self, stride: int, levels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 5, stride=stride, padding=2)
        self.levels = nn.ModuleList(
            nn.Conv2d(32, 32, 3, stride=2, padding=1) for _ in range(levels - 1)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = [self.stem(images).relu()]
        for level in self.levels:
            maps.append(level(maps[-1]).relu())
        names = [*map(str, range(4)), "pool"][: len(maps)]  # those of torchvision's pyramids
        return dict(zip(names, maps, strict=True))


_SIZES = {"min_size": 96, "max_size": 128}
_RPN = {
    f"rpn_{which}_nms_top_n_{mode}": count
    for which, count in (("pre", 300), ("post", 100))
    for mode in ("train", "test")
}


def _mask_rcnn() -> Any:
    return tv.MaskRCNN(
        _Pyramid(4, 5),
        box_predictor=tv.faster_rcnn.FastRCNNPredictor(1024, NUM_CLASSES),
        mask_head=tv.mask_rcnn.MaskRCNNHeads(32, (16,), 1),
        mask_predictor=tv.mask_rcnn.MaskRCNNPredictor(16, 16, NUM_CLASSES),
        box_detections_per_img=20,
        **_SIZES,
        **_RPN,
    )


def _ssd() -> Any:
    backbone = _Pyramid(8, 2)
    backbone.out_channels = [32, 32]
    anchors = DefaultBoxGenerator([[2], [2]], scales=[0.2, 0.5, 0.9], steps=[8, 16])
    return tv.ssd.SSD(backbone, anchors, (96, 128), NUM_CLASSES, score_thresh=0.01)


MAKERS: dict[str, Callable[[], Any]] = {
    "faster_rcnn": lambda: tv.FasterRCNN(_Pyramid(4, 5), NUM_CLASSES, **_SIZES, **_RPN),
    "mask_rcnn": _mask_rcnn,
    "retinanet": lambda: tv.RetinaNet(_Pyramid(8, 5), NUM_CLASSES, **_SIZES, score_thresh=0.001),
    "fcos": lambda: tv.FCOS(_Pyramid(8, 5), NUM_CLASSES, **_SIZES, score_thresh=0.001),
    "ssd": _ssd,
}


def make(name: str, seed: int = 0) -> Any:
    """Make a detector in evaluation mode, its weights drawn from a seed."""
    torch.manual_seed(seed)
    return MAKERS[name]().eval()


def images() -> list[Tensor]:
    """Return two images of different sizes."""
    random = torch.Generator().manual_seed(1)
    return [torch.rand(3, 96, 128, generator=random), torch.rand(3, 80, 112, generator=random)]


def targets() -> list[dict[str, Tensor]]:
    """Return objects for each image, with masks."""
    boxes = [torch.tensor([[5.0, 5, 40, 50], [30, 20, 90, 80]]), torch.tensor([[10.0, 8, 60, 70]])]
    masks = [torch.zeros(2, 96, 128, dtype=torch.uint8), torch.zeros(1, 80, 112, dtype=torch.uint8)]
    for of_image, image_boxes in zip(masks, boxes, strict=True):
        for mask, (x1, y1, x2, y2) in zip(of_image, image_boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
    labels = [torch.tensor([1, 3]), torch.tensor([2])]
    return [
        {"boxes": box, "labels": label, "masks": mask}
        for box, label, mask in zip(boxes, labels, masks, strict=True)
    ]


@torch.no_grad()
def detect(model: Any) -> list[dict[str, Tensor]]:
    """Return the detections in the two images."""
    return model.eval()(images())


def losses_and_gradients(model: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Take a training step of a fixed random sample: its losses, and gradients by parameter."""
    model.train()
    model.zero_grad()
    torch.manual_seed(7)
    losses = model(images(), targets())
    torch.stack(list(losses.values())).sum().backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {name: float(value.detach()) for name, value in losses.items()}, gradients
