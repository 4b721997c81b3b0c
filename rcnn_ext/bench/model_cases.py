"""Tasks of a detector, and the contenders that do them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rcnn_ext import ops
from rcnn_ext.bench.contenders import (
    ONNXRUNTIME,
    OPENVINO,
    OPENVINO_BFLOAT16,
    OURS,
    OURS_BFLOAT16,
    TORCHVISION,
)
from rcnn_ext.bench.floor import Work, count_work
from rcnn_ext.bench.model_pair import Scale, make_image, make_pair, make_target
from rcnn_ext.bench.runtimes import runtime_calls
from rcnn_ext.models.detector import fast_dtype

AS_BUILT = "rcnn_ext-as-built"

# Folded norms and another layout round otherwise; one proposal more or less then draws another
# random sample, which moves a loss by some hundredths.
_OTHER_SAMPLE = 0.1
_OTHER_LIBRARY = 0.01
# A detection this near to the score threshold, or to the last one kept, may go either way.
_MARGIN = 0.02
# Two boxes without an area are the same up to this distance of their coordinates.
_MAX_PIXELS = 1e-2

Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class ModelCase:
    """A task of a detector, and the contenders that do it.

    Attributes:
        name: Unique name in the suite.
        work: Short description for the table.
        target: Target speed-up over torchvision on the CPU.
        calls: Calls by contender; torchvision's is the first.
        error: Measures a result against torchvision's.
        error_measure: Name of the error.
        gradients: Whether the calls record and run gradients.
        tolerances: Tolerances by contender, where above ``_TOLERANCE``.
        count: Counts what any contender has to do; None where it is not known.
    """

    name: str
    work: str
    target: float | None
    calls: dict[str, Call]
    error: Callable[[Any, Any], float]
    error_measure: str
    gradients: bool = False
    tolerances: dict[str, float] = dataclasses.field(default_factory=dict)
    count: Callable[[], Work] | None = None


def inference_case(scale: Scale, device: torch.device, *, runtimes: bool = False) -> ModelCase:
    """Make the case of images to detections, batch 1.

    Args:
        scale: Size of the detectors and their images.
        device: The device that they run on.
        runtimes: Whether ONNX Runtime and OpenVINO take part where they are installed.
    """
    ours, theirs = make_pair(scale, device, trainable_layers=3)
    image = make_image(scale, device)
    detectors: dict[str, Any] = {
        TORCHVISION: theirs,
        AS_BUILT: ours,
        OURS: copy.deepcopy(ours).prepare_for_inference(dtype=None),
    }
    half = device.type == "cpu" and fast_dtype(device) is torch.bfloat16
    if half:
        detectors[OURS_BFLOAT16] = copy.deepcopy(ours).prepare_for_inference(dtype=torch.bfloat16)
    calls: dict[str, Call] = {name: partial(model, [image]) for name, model in detectors.items()}
    if device.type == "cpu" and runtimes:
        calls |= runtime_calls(ours, image, bfloat16=half)
    return ModelCase(
        "inference" if scale.backbone == Scale.backbone else f"inference_{scale.backbone}",
        f"Faster R-CNN {scale.backbone} FPN, {scale.width}x{scale.height}, inference",
        1.4,
        calls,
        detection_error,
        "score or 1 - IoU",
        tolerances={
            # Thousandths of a pixel are more of a small box.
            ONNXRUNTIME: _OTHER_LIBRARY,
            OPENVINO: _OTHER_LIBRARY,
            # Rounding to bfloat16 reorders the proposals of an untrained network.
            OURS_BFLOAT16: math.inf,
            OPENVINO_BFLOAT16: math.inf,
        },
        count=_counter(calls[TORCHVISION], theirs),
    )


def outside_case(scale: Scale, device: torch.device) -> ModelCase:
    """Make the case of inference without its networks.

    What remains is the transform, proposals, RoI pooling and post-processing.
    """
    ours, theirs = make_pair(scale, device, trainable_layers=3)
    image = make_image(scale, device)
    detectors = {TORCHVISION: theirs, OURS: ours.prepare_for_inference(dtype=None)}
    for model in detectors.values():
        _replay_networks(model, image)
    return ModelCase(
        "outside_networks",
        "inference without backbone, RPN head, box head and predictor",
        6.0,
        {name: partial(model, [image]) for name, model in detectors.items()},
        detection_error,
        "score or 1 - IoU",
    )


def training_case(scale: Scale, device: torch.device) -> ModelCase:
    """Make the case of a training step with frozen body, batch 1: losses, gradients, optimizer."""
    ours, theirs = make_pair(scale, device, trainable_layers=0)
    last = copy.deepcopy(ours).to(memory_format=torch.channels_last)
    image, target = make_image(scale, device), make_target(scale, device)
    calls: dict[str, Call] = {
        name: _training_step(model.train(), image, target)
        for name, model in ((TORCHVISION, theirs), (OURS, last), (AS_BUILT, ours))
    }
    return ModelCase(
        "training_step",
        f"Faster R-CNN {scale.backbone} FPN, {scale.width}x{scale.height}, step, frozen body",
        1.3,
        calls,
        loss_error,
        "relative error of the losses",
        gradients=True,
        tolerances={OURS: _OTHER_SAMPLE, AS_BUILT: _OTHER_SAMPLE},
        count=_counter(calls[TORCHVISION], theirs),
    )


def dtype_of(contender: str) -> torch.dtype:
    """Return the type that a contender computes in, by its name."""
    return torch.bfloat16 if contender in (OURS_BFLOAT16, OPENVINO_BFLOAT16) else torch.float32


def _counter(call: Call, model: nn.Module) -> Callable[[], Work]:
    """Return the function that counts the work of a call when it is first asked."""
    return functools.cache(lambda: count_work(call, model))


def detection_error(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> float:
    """Return the largest difference between detections and their partners in another result.

    Detections that may fall either side of the score threshold, or of the limit on their number,
    are left out.

    Returns:
        The largest of 1 - IoU and the difference of scores, in both directions.
    """
    pairs = list(_partners(found, expected))
    return max((max(1 - overlap, score) for overlap, score in pairs), default=0.0)


def _partners(
    found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]
) -> Iterator[tuple[float, float]]:
    """Yield IoU and score difference to the nearest detection of the class in the other result."""
    for mine, other in zip(found, expected, strict=True):
        for one, two in ((mine, other), (other, mine)):
            if len(one["scores"]) == 0:
                continue
            for i in (one["scores"] > one["scores"].min() + _MARGIN).nonzero()[:, 0].tolist():
                same = two["labels"] == one["labels"][i]
                if not bool(same.any()):
                    yield 0.0, float(one["scores"][i])
                    continue
                box, others = one["boxes"][i], two["boxes"][same]
                iou = ops.box_iou(box[None], others)[0]  # [same]
                # Boxes without an area have no IoU, but may be the same.
                equal = (box - others).abs().amax(dim=1) < _MAX_PIXELS
                iou = torch.where(iou.isnan(), equal.to(iou.dtype), iou)
                overlap, nearest = iou.max(dim=0)
                yield float(overlap), float((one["scores"][i] - two["scores"][same][nearest]).abs())


def loss_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest relative difference of losses; NaN where their names differ."""
    if found.keys() != expected.keys():
        return math.nan
    return max(
        abs(float(found[name]) - float(value)) / max(abs(float(value)), 1e-6)
        for name, value in expected.items()
    )


def _training_step(model: nn.Module, image: Tensor, target: dict[str, Tensor]) -> Call:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A rate of zero: the same work, and every step starts from equal weights.
    optimizer = torch.optim.SGD(learning, lr=0.0, momentum=0.9)

    def step() -> dict[str, Tensor]:
        torch.manual_seed(0)
        losses = model([image], [target])
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    return step


class _Replay(nn.Module):
    """Return the recorded output of a module, whatever it is called with."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output
        # A detector reads device and dtype off the parameters of its backbone.
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, *_: Any) -> Any:
        return self.output


@torch.no_grad()
def _replay_networks(model: Any, image: Tensor) -> None:
    """Replace the networks of a detector by their recorded outputs for an image."""
    names = ("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor")
    outputs: dict[str, Any] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: outputs.update({name: output})
        )
        for name in names
    ]
    model([image])
    for hook in hooks:
        hook.remove()
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _Replay(outputs[name]))
