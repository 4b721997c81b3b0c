"""Time a detector's layers in int8 against bfloat16: the most that int8 could gain.

Usage: python benchmarks/int8_layers.py [--threads N] [--seconds S] [--json FILE]

Rows are the convolutions and linear layers of a Faster R-CNN with a ResNet-50 FPN on an image of
640 x 480, which it resizes to 1066 x 800, each shape once. In bfloat16 a layer runs as
``prepare_for_inference`` runs it; in int8 it is oneDNN's operator of PyTorch, with unsigned 8-bit
maps, one scale per output channel, and bias, residual sum, ReLU and the rounding of the result in
one pass; 1x1 convolutions without a sum run as a convolution or as a linear layer, whichever is
faster. All run channels-last in one process and in turns; a figure is the CPU time of the fastest
run. Before a row is timed its int8 result is compared with the float32 one of equal operands.

The last line puts the sum of all layers in int8 in the place of that in bfloat16 within the time of
the whole detector, and adds one pass each for the conversion of the pyramid to bfloat16 for
RoIAlign and of the pooled features to int8. It is a bound: layers that have to stay in bfloat16 for
the sake of accuracy, and the conversions around them, would come on top. The exit code is 1 where a
result is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from rcnn_ext import models
from rcnn_ext._environment import describe
from rcnn_ext.bench.memory import keep_freed_memory
from rcnn_ext.bench.timing import least_cpu_time
from rcnn_ext.files import write_json
from rcnn_ext.models.fusion import fuse_model

# Times that int8 would have to be faster than bfloat16 to be worth calibration and its errors.
_TARGET = 1.5
# Relative root mean square of the rounding of the result, and no more.
_TOLERANCE = 1e-2
_MIN_RUNS = 3
_HEIGHT, _WIDTH = 480, 640
_X_SCALE = 1 / 255
_NUM_ANCHORS = 3  # per position

Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Layer:
    """The shape of a convolution, or of a linear layer, and of its input."""

    shape: tuple[int, ...]
    out_channels: int
    kernel: int = 0  # 0 means a linear layer
    stride: int = 1
    padding: int = 0
    adds: bool = False  # the sum at the end of a residual block

    @property
    def name(self) -> str:
        """Return sizes of input and kernel."""
        if self.kernel == 0:
            return f"linear {'x'.join(map(str, self.shape))} -> {self.out_channels}"
        stride = f"/{self.stride}" if self.stride > 1 else ""
        sizes = "x".join(map(str, self.shape[1:]))
        added = " + sum" if self.adds else ""
        return f"{self.kernel}x{self.kernel}{stride} {sizes} -> {self.out_channels}{added}"

    def make(self) -> nn.Module:
        """Return the layer in float32, with its bias."""
        if self.kernel == 0:
            return nn.Linear(self.shape[1], self.out_channels)
        options = {"stride": self.stride, "padding": self.padding}
        return nn.Conv2d(self.shape[1], self.out_channels, self.kernel, **options)


def build_detector() -> models.FasterRCNN:
    """Return the detector in float32, with random weights."""
    return models.faster_rcnn("resnet50", num_classes=91, norm_layer="frozen").eval()


def find_layers(model: models.FasterRCNN, image: Tensor) -> Counter[Layer]:
    """Return the layers that a detector runs for an image, and how often each.

    Predictors that read the same input count as one layer, as they run in a prepared model.
    """
    head: Any = model.rpn.head
    predictor: Any = model.roi_heads.box_predictor
    joined = {head.cls_logits: head.bbox_pred, predictor.cls_score: predictor.bbox_pred}
    adding = {block.conv3 for block in model.modules() if isinstance(block, Bottleneck)}
    found: Counter[Layer] = Counter()

    def note(layer: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        outputs = sum(one.weight.shape[0] for one in (layer, joined.get(layer)) if one is not None)
        shape = tuple(inputs[0].shape)
        if isinstance(layer, nn.Linear):
            found[Layer(shape, outputs)] += 1
        else:
            sizes = layer.kernel_size[0], layer.stride[0], layer.padding[0]
            found[Layer(shape, outputs, *sizes, layer in adding)] += 1

    hooks = [
        layer.register_forward_hook(note)
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer not in joined.values()
    ]
    model([image])
    for hook in hooks:
        hook.remove()
    return found


def measure(layer: Layer, count: int, seconds: float) -> dict[str, Any]:
    """Compare and time a layer.

    Args:
        layer: The layer.
        count: How often the detector runs it.
        seconds: CPU time to spend on timing, as far as the minimum number of runs allows.

    Returns:
        Name, count, CPU seconds per call in either type, ratio, error and tolerance.
    """
    torch.manual_seed(23)
    plain: Any = layer.make()
    quantized = torch.randint(0, 256, layer.shape, dtype=torch.uint8)
    integers, scales = _quantize(plain.weight.detach())
    with torch.no_grad():
        plain.weight.copy_(integers.float() * scales.view(-1, *[1] * (integers.dim() - 1)))
    x = quantized.float() * _X_SCALE
    if layer.kernel:
        x, quantized = (t.contiguous(memory_format=torch.channels_last) for t in (x, quantized))
    exact = plain(x)
    other = torch.rand_like(exact) if layer.adds else None
    if other is not None:
        exact = exact + other
    exact = exact.relu()
    y_scale = float(exact.max()) / 255
    calls = _int8_calls(layer, quantized, integers, scales, plain.bias.detach(), y_scale, other)
    error = max(
        float((call().float() * y_scale - exact).norm() / exact.norm()) for call in calls.values()
    )
    half: Any = plain.bfloat16()
    fuse_model(half)
    x_half, relu = x.bfloat16(), nn.ReLU()
    if other is None:
        calls["bfloat16"] = lambda: half.run(x_half, activation=relu)
    else:
        other_half = other.bfloat16()
        calls["bfloat16"] = lambda: half.run(x_half, other_half, relu, overwrite=True)
    best = least_cpu_time(calls, seconds, _MIN_RUNS)
    fastest = min(best[name] for name in calls if name != "bfloat16")
    return {
        "name": layer.name,
        "count": count,
        "cpu_s": {"int8": fastest, **best},
        "ratio": best["bfloat16"] / fastest,
        "error": error,
        "tolerance": _TOLERANCE,
    }


def time_conversions(layers: Iterable[Layer], seconds: float) -> float:
    """Return the CPU seconds of the conversions that RoIAlign needs in any case."""
    (pooled,) = {layer.shape for layer in layers if layer.kernel == 0 and layer.shape[1] > 10_000}
    # The maps of the predictors of the RPN are those of the pyramid; RoIs read all but the last.
    predicted = [layer.shape for layer in layers if layer.out_channels == 5 * _NUM_ANCHORS]
    calls: dict[str, Call] = {}
    for shape in sorted(predicted)[1:]:
        level = torch.ones(shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        calls[str(shape)] = functools.partial(level.to, torch.bfloat16)
    calls["pooled"] = functools.partial(torch.ones(pooled, dtype=torch.bfloat16).to, torch.uint8)
    return sum(least_cpu_time(calls, seconds, _MIN_RUNS).values())


def _quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights as int8 and the scale of each output channel [C_out]."""
    scales = weight.flatten(1).abs().amax(dim=1) / 127
    shape = (-1, *[1] * (weight.dim() - 1))
    return (weight / scales.view(shape)).round().to(torch.int8), scales


def _int8_calls(
    layer: Layer,
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor,
    y_scale: float,
    other: Tensor | None,
) -> dict[str, Call]:
    """Return the ways to run the layer in int8, by name."""
    ops: Any = torch.ops.onednn
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    last = (y_scale, 0, torch.uint8)
    places = ([layer.stride] * 2, [layer.padding] * 2, [1, 1], 1)
    calls: dict[str, Call] = {}
    if layer.kernel:
        packed = ops.qconv_prepack(weight, scales, _X_SCALE, 0, *places, list(layer.shape))
        first = (x, _X_SCALE, 0, packed, scales, zeros)
        if other is not None:
            sums = (other / y_scale).round().clamp(0, 255).to(torch.uint8)
            calls["int8_convolution"] = lambda: ops.qconv2d_pointwise.binary(
                *first, sums, bias, *places, *last, y_scale, 0, "sum", 1.0, "relu", [], ""
            )
            return calls
        calls["int8_convolution"] = lambda: ops.qconv2d_pointwise(
            *first, bias, *places, *last, "relu", [], ""
        )
    if layer.kernel == 0 or (layer.kernel == 1 and layer.stride == 1):
        rows = x.permute(0, 2, 3, 1).flatten(0, 2) if layer.kernel else x
        matrix = ops.qlinear_prepack(weight.flatten(1), list(rows.shape))

        def linear() -> Tensor:
            y = ops.qlinear_pointwise(
                rows, _X_SCALE, 0, matrix, scales, zeros, bias, *last, "relu", [], ""
            )
            return y.view(1, *layer.shape[2:], -1).permute(0, 3, 1, 2) if layer.kernel else y

        calls["int8_linear"] = linear
    return calls


def main() -> int:
    """Measure the rows, print a line for each and write the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads (1)")
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=1.0, help="CPU time per row (1)"
    )
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="where to write the rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    rows = []
    print(f"{'layer':<36}{'count':>6}{'int8 ms':>10}{'bfloat16 ms':>13}{'ratio':>8}{'error':>10}")
    image = torch.rand(3, _HEIGHT, _WIDTH)
    model = build_detector()
    with torch.no_grad():
        layers = find_layers(model, image)
        for layer, count in layers.items():
            row = measure(layer, count, options.seconds)
            rows.append(row)
            int8, half = (row["cpu_s"][name] * 1e3 for name in ("int8", "bfloat16"))
            note = " WRONG" if row["error"] > _TOLERANCE else ""
            print(
                f"{row['name']:<36}{count:>6}{int8:>10.2f}{half:>13.2f}{row['ratio']:>7.2f}x"
                f"{row['error']:>10.1e}{note}",
                flush=True,
            )
    total = {
        name: sum(row["count"] * row["cpu_s"][name] for row in rows)
        for name in ("int8", "bfloat16")
    }
    model.prepare_for_inference(dtype=torch.bfloat16)
    with torch.no_grad():
        model([image])
        detector = least_cpu_time(
            {"detector": lambda: model([image])}, 5 * options.seconds, _MIN_RUNS
        )
        total["int8_conversions"] = time_conversions(layers, options.seconds)
    half = total["detector_bfloat16"] = detector["detector"]
    total["detector_int8_bound"] = (
        half - total["bfloat16"] + total["int8"] + total["int8_conversions"]
    )
    ratios = {
        "layers": total["bfloat16"] / total["int8"],
        "detector_bound": half / total["detector_int8_bound"],
    }
    for name, ours, theirs in (
        ("all layers", "int8", "bfloat16"),
        ("whole detector, at the most", "detector_int8_bound", "detector_bfloat16"),
    ):
        print(
            f"{name:<42}{total[ours] * 1e3:>10.2f}{total[theirs] * 1e3:>13.2f}"
            f"{total[theirs] / total[ours]:>7.2f}x"
        )
    print(f"int8 is worth its calibration and its errors from {_TARGET:g}x on")
    if options.json is not None:
        report = {
            "suite": "int8-layers",
            "environment": describe(torch.device("cpu")),
            "threads": options.threads,
            "image": [_HEIGHT, _WIDTH],
            "total_cpu_s": total,
            "ratios": ratios,
            "target": _TARGET,
            "results": rows,
        }
        write_json(options.json, report)
    return 1 if any(row["error"] > row["tolerance"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
