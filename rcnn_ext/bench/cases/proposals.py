"""Cases of ``generate_proposals`` and ``postprocess_detections``.

torchvision's counterparts are methods of its models.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from rcnn_ext.bench import inputs as draw
from rcnn_ext.bench.cases.base import Call, Case, Check, double_reference

# Size of the padded batch: a multiple of 32, as torchvision pads.
_HEIGHT, _WIDTH = 800, 1216
_STRIDES = (4, 8, 16, 32, 64)
_ASPECTS = 3
# Boxes of a result and of the truth are equal within this distance, image pixels.
_SAME = 0.05

# The boxes of each image, and for detections their labels.
Found = list[tuple[Tensor, ...]]


@dataclasses.dataclass(frozen=True)
class PyramidPredictions:
    """The outputs of a region proposal network's head."""

    logits: list[Tensor]  # [N, 3, H_l, W_l] for each level l
    deltas: list[Tensor]  # [N, 12, H_l, W_l] for each level l
    anchors: Tensor  # [A, 4] (x1, y1, x2, y2), image pixels
    sizes: Tensor  # [N, 2] (height, width), image pixels


@dataclasses.dataclass(frozen=True)
class RoiPredictions:
    """The outputs of the predictor in a detector's second stage."""

    logits: Tensor  # [R, K]
    deltas: Tensor  # [R, 4 K]
    rois: Tensor  # [R, 4] (x1, y1, x2, y2), image pixels
    image_ids: Tensor  # [R] int64
    sizes: Tensor  # [N, 2] (height, width), image pixels


@dataclasses.dataclass(frozen=True)
class _PredictionCase(Case):
    """Base class of the two cases.

    Attributes:
        images: Number of images in the batch.
    """

    images: int = 1

    @property
    def measure(self) -> str:
        """Name of the error measure."""
        return "fraction of boxes without a partner"

    def tolerance(self, dtype: torch.dtype, other_library: bool) -> float:
        """Return the fraction of boxes that rounding may decide: an IoU or score at its limit."""
        return 0.01

    def run(self, ops: Any, inputs: Any) -> Any:
        """Call the operator; the same module and inputs as for ``bind``."""
        raise NotImplementedError

    def check(self, inputs: Any) -> Check:
        """Run the reference in float64."""
        wide = dataclasses.replace(
            inputs,
            **{
                field.name: _double(getattr(inputs, field.name))
                for field in dataclasses.fields(inputs)
            },
        )
        with double_reference() as ops:
            truth = _cut(self.run(ops, wide))

        def check(result: Any) -> float:
            found = _cut(result) if hasattr(result, "counts") else _by_image(result, len(truth))
            return _unpaired_fraction(found, truth)

        return check


@dataclasses.dataclass(frozen=True)
class ProposalCase(_PredictionCase):
    """Proposals of a feature pyramid over 800 x 1216 pixels: 1,000 per level, 1,000 per image.

    Attributes:
        scale: Divisor of height and width; for tests.
    """

    scale: int = 1

    @property
    def name(self) -> str:
        """Operator and size."""
        return f"{self.operator}/{self.images}x{_HEIGHT // self.scale}"

    @property
    def work(self) -> str:
        """Short description of the work."""
        images = "image" if self.images == 1 else "images"
        return f"5 levels, {self.images} {images} of {_HEIGHT // self.scale}x{_WIDTH // self.scale}"

    def make(self, seed: int, device: torch.device, dtype: torch.dtype) -> PyramidPredictions:
        """Draw logits and deltas."""
        random = draw.generator(seed)
        height, width = _HEIGHT // self.scale, _WIDTH // self.scale
        grids = [(-(-height // s), -(-width // s)) for s in _STRIDES]

        def maps(channels: int, mean: float, deviation: float) -> list[Tensor]:
            return [
                (mean + deviation * torch.randn(self.images, channels, h, w, generator=random)).to(
                    device, dtype
                )
                for h, w in grids
            ]

        sizes = torch.tensor([[height - 13 * n, width - 31 * n] for n in range(self.images)])
        logits = maps(_ASPECTS, -4.0, 2.0)
        deltas = maps(4 * _ASPECTS, 0.0, 0.3)
        anchors = _anchors(height, width, logits).to(device, dtype)
        return PyramidPredictions(logits, deltas, anchors, sizes.to(device, dtype))

    def run(self, ops: Any, inputs: PyramidPredictions) -> Any:
        """Call the operator."""
        return ops.generate_proposals(inputs.logits, inputs.deltas, inputs.anchors, inputs.sizes)

    def bind(self, ops: Any, inputs: PyramidPredictions) -> Call:
        """Return the call of the operator, or of torchvision's model from the head's maps on."""
        if getattr(ops, "generate_proposals", None) is not None:
            return lambda: self.run(ops, inputs)
        from torchvision.models.detection import rpn

        nothing = nn.Identity()
        top = {"training": 1000, "testing": 1000}
        model = rpn.RegionProposalNetwork(nothing, nothing, 0.7, 0.3, 256, 0.5, top, top, 0.7)
        model.eval()
        shapes = [(int(h), int(w)) for h, w in inputs.sizes.tolist()]
        counts = [level[0].numel() for level in inputs.logits]
        anchors = [inputs.anchors] * self.images

        def call() -> tuple[Tensor, ...]:
            logits, deltas = rpn.concat_box_prediction_layers(
                list(inputs.logits), list(inputs.deltas)
            )
            boxes = model.box_coder.decode(deltas, anchors).view(self.images, -1, 4)
            return tuple(model.filter_proposals(boxes, logits, shapes, counts)[0])

        return call


@dataclasses.dataclass(frozen=True)
class DetectionCase(_PredictionCase):
    """Detections from the predictions for RoIs, with one box per class.

    Attributes:
        rois: Number of RoIs per image.
        classes: Number of classes, background included.
    """

    rois: int = 1000
    classes: int = 91

    @property
    def name(self) -> str:
        """Operator and size."""
        return f"{self.operator}/{self.images}x{self.rois}x{self.classes}"

    @property
    def work(self) -> str:
        """Short description of the work."""
        images = f"{self.images} images, " if self.images > 1 else ""
        return f"{images}{self.rois:,} RoIs, {self.classes} classes"

    def make(self, seed: int, device: torch.device, dtype: torch.dtype) -> RoiPredictions:
        """Draw RoIs, logits (one or two classes of a RoI above the threshold) and deltas."""
        random = draw.generator(seed)
        count = self.images * self.rois
        logits = 2 * torch.randn(count, self.classes, generator=random)
        logits[:, 0] += 3
        deltas = 0.5 * torch.randn(count, 4 * self.classes, generator=random)
        rois = draw.random_boxes(count, random, (_WIDTH, _HEIGHT))
        ids = torch.arange(self.images).repeat_interleave(self.rois)
        sizes = torch.tensor([[_HEIGHT - 13 * n, _WIDTH - 31 * n] for n in range(self.images)])
        logits, deltas, rois = (tensor.to(device, dtype) for tensor in (logits, deltas, rois))
        return RoiPredictions(logits, deltas, rois, ids.to(device), sizes.to(device, dtype))

    def run(self, ops: Any, inputs: RoiPredictions) -> Any:
        """Call the operator."""
        return ops.postprocess_detections(
            inputs.logits, inputs.deltas, inputs.rois, inputs.image_ids, inputs.sizes
        )

    def bind(self, ops: Any, inputs: RoiPredictions) -> Call:
        """Return the call of the operator, or of torchvision's method of that name."""
        if getattr(ops, "postprocess_detections", None) is not None:
            return lambda: self.run(ops, inputs)
        from torchvision.models.detection.roi_heads import RoIHeads

        nothing = nn.Identity()
        model = RoIHeads(nothing, nothing, nothing, 0.5, 0.5, 512, 0.25, None, 0.05, 0.5, 100)
        model.eval()
        shapes = [(int(h), int(w)) for h, w in inputs.sizes.tolist()]
        rois = list(inputs.rois.split(self.rois))

        def call() -> tuple[Tensor, ...]:
            boxes, _, labels = model.postprocess_detections(
                inputs.logits, inputs.deltas, rois, shapes
            )
            return (*boxes, *labels)

        return call


def _anchors(height: int, width: int, maps: list[Tensor]) -> Tensor:
    """Return the anchors of the levels as Faster R-CNN has them: [A, 4]."""
    from torchvision.models.detection.image_list import ImageList

    from rcnn_ext.models.anchors import AnchorGenerator

    generator = AnchorGenerator([(8 * s,) for s in _STRIDES], (0.5, 1.0, 2.0))
    batch = ImageList(torch.empty(1, 3, height, width), [(height, width)])
    return generator(batch, maps)[0]


def _double(value: Any) -> Any:
    if isinstance(value, list):
        return [_double(element) for element in value]
    return value.double() if value.is_floating_point() else value


def _cut(result: Any) -> Found:
    """Return the results of each image, without the padding."""
    columns = [result.boxes, *([result.labels] if hasattr(result, "labels") else [])]
    return [
        tuple(column[image, :count] for column in columns)
        for image, count in enumerate(result.counts.tolist())
    ]


def _by_image(columns: tuple[Tensor, ...], images: int) -> Found:
    """Group boxes of all images and then, for detections, labels of all images, by image."""
    return [columns[image::images] for image in range(images)]


def _unpaired_fraction(found: Found, truth: Found) -> float:
    """Return the fraction of found and true boxes without a partner of their label."""
    if [len(columns) for columns in found] != [len(columns) for columns in truth]:
        return math.inf
    unpaired = total = 0
    for (boxes, *labels), (true_boxes, *true_labels) in zip(found, truth, strict=True):
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            return math.inf
        same = torch.cdist(boxes.double(), true_boxes.double(), p=math.inf) < _SAME
        if labels:
            same &= labels[0][:, None] == true_labels[0]
        unpaired += int((~same.any(dim=0)).sum()) + int((~same.any(dim=1)).sum())
        total += sum(same.shape)
    return unpaired / max(total, 1)
