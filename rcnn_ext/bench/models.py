"""Faster R-CNN against torchvision's, with equal weights: ``rcnn-ext bench --models``.

Detections and losses are compared before anything is timed.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rcnn_ext import _environment, ops
from rcnn_ext.bench import memory
from rcnn_ext.bench.contenders import OURS, TORCHVISION
from rcnn_ext.bench.model_pair import SMALL, Scale, make_image, make_pair, make_target
from rcnn_ext.bench.report import SCHEMA, format_seconds, format_table
from rcnn_ext.bench.timing import (
    MIN_RUNS,
    Contender,
    Timing,
    TimingConfig,
    clock_for,
    time_interleaved,
)
from rcnn_ext.progress import Progress

AS_BUILT = "rcnn_ext-as-built"

# Scores, 1 - IoU of the boxes, and losses may differ by this between libraries in float32.
_TOLERANCE = 1e-3
# Folded norms and another layout round otherwise; one proposal more or less then draws another
# random sample, which moves a loss by some hundredths.
_OTHER_SAMPLE = 0.1
# A detection this near to the score threshold, or to the last one kept, may go either way.
_MARGIN = 0.02

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
    """

    name: str
    work: str
    target: float | None
    calls: dict[str, Call]
    error: Callable[[Any, Any], float]
    error_measure: str
    gradients: bool = False
    tolerances: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class ModelRow:
    """The result of a case with one number of threads."""

    case: ModelCase
    threads: int
    timings: dict[str, Timing]
    errors: dict[str, float]
    extra_bytes: dict[str, int | None]
    failures: list[str]

    def ratio(self, name: str) -> float | None:
        """Return how many times faster a contender is than torchvision."""
        if name not in self.timings or TORCHVISION not in self.timings:
            return None
        return self.timings[TORCHVISION].median / self.timings[name].median

    def as_json(self, device: torch.device) -> dict[str, Any]:
        """Return the row in the format of the operators' results."""
        ratio = self.ratio(OURS)
        target = self.case.target if device.type == "cpu" else None
        return {
            "case": self.case.name,
            "operator": "faster_rcnn",
            "work": self.case.work,
            "size": None,
            "dtype": "float32",
            "threads": self.threads,
            "error_measure": self.case.error_measure,
            "contenders": {
                name: {
                    **(self.timings[name].as_json() if name in self.timings else {}),
                    "error": error if math.isfinite(error) else None,
                    "problem": None if name in self.timings else "wrong result",
                    "kernels": None,
                    "extra_bytes": self.extra_bytes.get(name),
                    "ratio_torchvision": self.ratio(name),
                }
                for name, error in self.errors.items()
            },
            "ratio_torchvision": ratio,
            "ratio_reference": None,
            "target": target,
            "target_reached": None if None in (ratio, target) else ratio >= target,  # type: ignore[operator]
            "failures": self.failures,
        }


def run_models(
    device: torch.device, threads: tuple[int, ...], quick: bool
) -> tuple[dict[str, Any], str]:
    """Compare the detectors.

    Args:
        device: The device that they run on.
        threads: Numbers of CPU threads, with rows for each.
        quick: Small detectors and images, half a minute; for tests of the comparison itself.

    Returns:
        The report for JSON and the text to print. The report's ``failures`` are empty if all went
        well.
    """
    scale = SMALL if quick else Scale()
    config = TimingConfig(min_run_time=0.0, budget=1.0 if quick else 10.0, max_runs=15)
    rows = []
    before = torch.get_num_threads()
    try:
        with Progress("Comparing", len(_MAKERS) * len(threads), "row") as progress:
            for make in _MAKERS:
                case = make(scale, device)
                for count in threads:
                    torch.set_num_threads(count)
                    rows.append(run_case(case, count, device, config))
                    progress.advance(note=case.name)
                del case  # the detectors of a case are large
    finally:
        torch.set_num_threads(before)
    description = _environment.describe(device)
    failures = [f"{row.case.name}: {failure}" for row in rows for failure in row.failures]
    report = {
        "schema": SCHEMA,
        "suite": "models",
        "environment": description,
        "settings": {
            "threads": list(threads),
            "min_run_s": config.min_run_time,
            "min_runs": MIN_RUNS,
            **dataclasses.asdict(scale),
        },
        "backends": _environment.operator_backends(device.type),
        "results": [row.as_json(device) for row in rows],
        "skipped": [],
        "failures": failures,
    }
    return report, _format(report, rows)


def inference_case(scale: Scale, device: torch.device) -> ModelCase:
    """Make the case of images to detections, batch 1."""
    ours, theirs = make_pair(scale, device, trainable_layers=3)
    image = make_image(scale, device)
    detectors: dict[str, Any] = {
        TORCHVISION: theirs,
        AS_BUILT: ours,
        OURS: copy.deepcopy(ours).prepare_for_inference(dtype=None),
    }
    return ModelCase(
        "inference",
        f"Faster R-CNN {scale.backbone} FPN, {scale.width}x{scale.height}, inference",
        1.4,
        {name: partial(model, [image]) for name, model in detectors.items()},
        detection_error,
        "score or 1 - IoU",
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
    return ModelCase(
        "training_step",
        f"Faster R-CNN {scale.backbone} FPN, {scale.width}x{scale.height}, step, frozen body",
        1.3,
        {
            name: _training_step(model.train(), image, target)
            for name, model in ((TORCHVISION, theirs), (OURS, last), (AS_BUILT, ours))
        },
        loss_error,
        "relative error of the losses",
        gradients=True,
        tolerances={OURS: _OTHER_SAMPLE, AS_BUILT: _OTHER_SAMPLE},
    )


def run_case(case: ModelCase, threads: int, device: torch.device, config: TimingConfig) -> ModelRow:
    """Compare results, measure memory, then time the contenders in turns."""
    row = ModelRow(case, threads, {}, {}, {}, [])
    contenders = []

    def context() -> contextlib.AbstractContextManager[Any]:
        return torch.enable_grad() if case.gradients else torch.no_grad()

    with context():
        expected = case.calls[TORCHVISION]()
        for name, call in case.calls.items():
            error = row.errors[name] = case.error(call(), expected)
            tolerance = case.tolerances.get(name, _TOLERANCE)
            if not error <= tolerance:  # NaN is wrong too
                row.failures.append(
                    f"{name}: {case.error_measure} {error:.3g}, allowed {tolerance:.3g}"
                )
                continue

            def without_result(call: Call = call) -> tuple[()]:
                call()
                return ()

            row.extra_bytes[name] = memory.extra_bytes(without_result, device)
            contenders.append(Contender(name, [call], context))
    row.timings = time_interleaved(contenders, clock_for(device), config)
    return row


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
                iou = ops.box_iou(one["boxes"][i : i + 1], two["boxes"][same])[0]  # [same]
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


def _format(report: dict[str, Any], rows: list[ModelRow]) -> str:
    described = report["environment"]
    versions = described["versions"]
    head = ["work", "threads", "contender", "median", "min", "vs torchvision", "target"]
    head += ["error", "extra MiB"]
    lines = [
        f"Detectors of equal weights on {described['device_name']}, "
        + ", ".join(f"{name} {versions[name]}" for name in ("rcnn_ext", "torch", "torchvision")),
        "",
        format_table(head, list(_cells(rows, described["device"])), left=1),
        "",
        # Half types are no part of it: rounding reorders the proposals of an untrained network.
        f"Medians of at least {MIN_RUNS} interleaved runs, float32. {OURS}: prepared for",
        f"inference, or with channels last in training; {AS_BUILT}: as the builder gives it.",
    ]
    if report["failures"]:
        lines += ["", "FAILED:", *(f"  {failure}" for failure in report["failures"])]
    return "\n".join(lines) + "\n"


def _cells(rows: list[ModelRow], device: str) -> Iterator[list[str]]:
    for row in rows:
        for name, error in row.errors.items():
            timing, ratio, extra = row.timings.get(name), row.ratio(name), row.extra_bytes.get(name)
            has_target = name == OURS and row.case.target is not None and device == "cpu"
            reached = has_target and ratio is not None and ratio >= (row.case.target or 0)
            yield [
                row.case.work if name == TORCHVISION else "",
                str(row.threads),
                name,
                "-" if timing is None else format_seconds(timing.median),
                "-" if timing is None else format_seconds(min(timing.seconds)),
                "-" if ratio is None else f"{ratio:.2f}x",
                f"{row.case.target:g}x" + "*" * reached if has_target else "",
                f"{error:.1e}",
                "-" if extra is None else f"{extra / 2**20:.0f}",
            ]


_MAKERS = (inference_case, outside_case, training_case)
