"""Time RoIAlign and RoIPool against torchvision over a grid of 200 shapes, on one thread.

Usage: python benchmarks/roi_grid.py [--only PATTERN] [--seconds S] [--json FILE]

Rows go from 1 to 2,048 channels, from 1 x 1 to 28 x 28 bins and from 1 to 10,000 RoIs, in both
memory layouts, in float32, float64 and float16 (the half type that torchvision has on the CPU),
forward and backward. Before a row is timed, both results are compared with torchvision's of the
same numbers in float32 or wider. Contenders take turns in one process; a row's figure is the CPU
time of the fastest of its runs, so that other work on the machine counts little.

The exit code is 1 where a result is wrong, or where a row is slower than its target: 1.5 times as
fast as torchvision with up to 16 channels, as fast with more.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor

from rcnn_ext import _extension, ops
from rcnn_ext._environment import describe
from rcnn_ext.bench import inputs as draw
from rcnn_ext.bench.memory import extra_bytes, keep_freed_memory
from rcnn_ext.bench.timing import least_cpu_time
from rcnn_ext.files import write_json

_CHANNELS = (1, 2, 3, 4, 8, 12, 16, 32, 64, 256, 1024, 2048)
_BINS = (1, 2, 3, 7, 14, 28)
_ROIS = (1, 4, 32, 128, 512, 2000, 10_000)
_DTYPES = (torch.float32, torch.float32, torch.float32, torch.float16, torch.float64)
_ROWS = 200
_SEED = 21
# Limits of a row, so that the grid takes minutes: elements of the map and of the result, and for
# RoIPool and RoIAlign with adaptive sampling the pixels that all bins read together.
_MAX_MAP = 12_000_000
_MAX_RESULT = 3_000_000
_MAX_READ = 40_000_000
_MAX_FEW_CHANNELS = 16
_TARGETS = {"few": 1.5, "many": 1.0}  # by number of channels
_MIN_RUN = 2e-4  # seconds of CPU time that one run lasts at least
_MIN_RUNS = 5


@dataclasses.dataclass(frozen=True)
class Shape:
    """A row of the grid.

    Attributes:
        operator: ``roi_align`` or ``roi_pool``.
        backward: Whether the gradient is timed, on a graph that was recorded before.
        channels: Depth of the map, C.
        map_size: Height and width of the map.
        rois: Number of RoIs, K.
        side: Largest side of a RoI, in pixels of the map; the smallest is a quarter of it.
        bins: Bins along each side of a pooled map.
        sampling_ratio: RoIAlign's samples along each side of a bin; 0 lets the RoI's size choose.
        channels_last: Whether map and gradient are in channels-last layout.
        dtype: Of the map; RoIs are float32 or wider where the operator takes them.
    """

    operator: str
    backward: bool
    channels: int
    map_size: tuple[int, int]
    rois: int
    side: float
    bins: int
    sampling_ratio: int = 2
    channels_last: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """Return the shape in one word, for the table and ``--only``."""
        height, width = self.map_size
        sampling = f"/s{self.sampling_ratio}" if self.operator == "roi_align" else ""
        return (
            f"{self.operator}{'/bwd' * self.backward}/{self.channels}x{height}x{width}"
            f"/k{self.rois}/{self.bins}x{self.bins}/r{self.side:g}{sampling}"
            f"{'/nhwc' * self.channels_last}/{str(self.dtype).removeprefix('torch.')}"
        )

    @property
    def target(self) -> float:
        """Return how many times as fast as torchvision the row should be."""
        return _TARGETS["few" if self.channels <= _MAX_FEW_CHANNELS else "many"]

    def is_small_enough(self) -> bool:
        """Return whether the row keeps within the limits of the grid."""
        read = self.rois * self.channels * self.side**2 / 2
        adaptive = self.operator == "roi_pool" or self.sampling_ratio == 0
        return (
            self.channels * math.prod(self.map_size) <= _MAX_MAP
            and self.rois * self.channels * self.bins**2 <= _MAX_RESULT
            and (not adaptive or self.backward or read <= _MAX_READ)
            and self.side <= min(self.map_size)
        )


def named_shapes() -> Iterator[Shape]:
    """Yield the shapes that were once slower than torchvision."""
    image = (800, 1216)
    for channels in (1, 3, 4, 8, 10):
        yield Shape("roi_pool", False, channels, image, 128, 200, 28)
        yield Shape("roi_align", False, channels, image, 128, 200, 28)
    yield Shape("roi_pool", False, 8, (1000, 1000), 1, 100, 7)
    for channels in (1, 4, 16):
        for bins in (1, 2):
            yield Shape("roi_align", False, channels, (200, 304), 64, 40, bins)
            yield Shape("roi_pool", False, channels, (200, 304), 64, 40, bins)
    for channels in (3, 4):
        for operator in ("roi_align", "roi_pool"):
            for backward in (False, True):
                shape = Shape(operator, backward, channels, image, 128, 200, 14)
                yield dataclasses.replace(shape, channels_last=True)


def grid() -> list[Shape]:
    """Return the rows: those that were once slow, and others drawn from all combinations."""
    shapes = dict.fromkeys(named_shapes())
    source = random.Random(_SEED)
    turn = 0
    while len(shapes) < _ROWS:
        # In turns, so that each operator, direction and depth has its share.
        channels = _CHANNELS[turn // 4 % len(_CHANNELS)]
        shape = Shape(
            operator="roi_pool" if turn % 2 else "roi_align",
            backward=turn // 2 % 2 == 1,
            channels=channels,
            map_size=source.choice(((25, 38), (50, 76), (100, 152), (200, 304), (800, 1216))),
            rois=source.choice(_ROIS),
            side=source.choice((8.0, 24.0, 50.0, 150.0, 600.0)),
            bins=source.choice(_BINS),
            sampling_ratio=source.choice((2, 2, 0)),
            channels_last=channels > 1 and source.random() < 0.4,
            dtype=source.choice(_DTYPES),
        )
        if shape.is_small_enough() and shape not in shapes:
            shapes[shape] = None
            turn += 1
    return list(shapes)


@dataclasses.dataclass
class _Inputs:
    features: Tensor  # [1, C, H, W]
    rois: Tensor  # [K, 5] (batch index, x1, y1, x2, y2), pixels of the map
    gradient: Tensor | None  # [K, C, B, B]


def _make(shape: Shape) -> _Inputs:
    source = draw.generator(_SEED)
    device = torch.device("cpu")
    features = draw.features(
        (1, shape.channels, *shape.map_size), source, device, shape.dtype, shape.channels_last
    )
    boxes = draw.random_rois(shape.rois, source, shape.map_size, 1.0, (shape.side / 4, shape.side))
    rois = torch.cat([torch.zeros(shape.rois, 1), boxes], dim=1).to(shape.dtype)
    size = (shape.rois, shape.channels, shape.bins, shape.bins)
    gradient = (
        draw.features(size, source, device, shape.dtype, shape.channels_last)
        if shape.backward
        else None
    )
    return _Inputs(features, rois, gradient)


def _bind(library: Any, shape: Shape, inputs: _Inputs) -> Callable[[], Tensor]:
    """Return the call of an operator, or of its backward pass on a graph recorded here."""
    options: tuple[Any, ...] = (shape.bins, 1.0)
    if shape.operator == "roi_align":
        options = (*options, shape.sampling_ratio, True)
    pool = getattr(library, shape.operator)
    features, rois, gradient = inputs.features, inputs.rois, inputs.gradient
    if gradient is None:
        return lambda: pool(features, rois, *options)
    features = features.detach().requires_grad_()
    pooled = pool(features, rois, *options)
    return lambda: torch.autograd.grad(pooled, features, gradient, retain_graph=True)[0]


def _error(shape: Shape, inputs: _Inputs, result: Tensor) -> float:
    """Return the largest error relative to the largest value of torchvision's exact result."""
    wide = torch.promote_types(shape.dtype, torch.float32)
    gradient = None if inputs.gradient is None else inputs.gradient.to(wide)
    exact = _Inputs(inputs.features.to(wide), inputs.rois.to(wide), gradient)
    truth = _bind(torchvision.ops, shape, exact)()
    scale = max(1.0, float(truth.abs().max())) if truth.numel() else 1.0
    return float((result.to(wide) - truth).abs().max()) / scale if truth.numel() else 0.0


def measure(shape: Shape, seconds: float) -> dict[str, Any]:
    """Compare and time a row.

    Args:
        shape: The row.
        seconds: CPU time to spend on timing, as far as the minimum number of runs allows.

    Returns:
        Name, fields of the shape, CPU seconds per call of either library, ratio, target, error
        and memory beyond the result in bytes.
    """
    inputs = _make(shape)
    calls = {
        "rcnn_ext": _bind(ops, shape, inputs),
        "torchvision": _bind(torchvision.ops, shape, inputs),
    }
    error = _error(shape, inputs, calls["rcnn_ext"]())
    calls["torchvision"]()
    counts = {}
    for name, call in calls.items():
        start = time.process_time()
        call()
        counts[name] = max(1, round(_MIN_RUN / max(time.process_time() - start, 1e-6)))
    best = least_cpu_time(calls, seconds, _MIN_RUNS, counts)
    memory = {
        name: extra_bytes(call, torch.device("cpu")) if shape.rois >= 32 else None
        for name, call in calls.items()
    }
    fields = {**dataclasses.asdict(shape), "dtype": str(shape.dtype).removeprefix("torch.")}
    return {
        "name": shape.name,
        **fields,
        "cpu_s": best,
        "ratio": best["torchvision"] / best["rcnn_ext"],
        "target": shape.target,
        "error": error,
        "tolerance": 4 * torch.finfo(shape.dtype).eps
        if not shape.backward
        else 1e-4
        if shape.dtype != torch.float16
        else 2e-3,
        "extra_bytes": memory,
    }


def main() -> int:
    """Measure the rows, print a line for each and write the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="PATTERN", default="", help="rows whose name has this")
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=0.6, help="CPU time per row (0.6)"
    )
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="where to write the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    shapes = [shape for shape in grid() if options.only in shape.name]
    if not shapes:
        parser.error(f"no row has {options.only!r} in its name")
    rows = []
    print(f"{'row':<64}{'rcnn_ext us':>12}{'torchvision':>12}{'ratio':>8}{'target':>8}")
    for shape in shapes:
        row = measure(shape, options.seconds)
        rows.append(row)
        ours, theirs = (row["cpu_s"][name] * 1e6 for name in ("rcnn_ext", "torchvision"))
        note = " WRONG" if row["error"] > row["tolerance"] else ""
        note += " slow" if row["ratio"] < row["target"] else ""
        print(
            f"{shape.name:<64}{ours:>12.1f}{theirs:>12.1f}{row['ratio']:>7.2f}x"
            f"{row['target']:>7.1f}x{note}",
            flush=True,
        )
    wrong = [row for row in rows if row["error"] > row["tolerance"]]
    slow = [row for row in rows if row["ratio"] < row["target"]]
    print(f"{len(rows)} rows, {len(wrong)} wrong, {len(slow)} below their target")
    if options.json is not None:
        report = {
            "suite": "roi-grid",
            "environment": describe(torch.device("cpu")),
            "instruction_set": _extension.instruction_set(),
            "results": rows,
        }
        write_json(options.json, report)
    return 1 if wrong or slow else 0


if __name__ == "__main__":
    sys.exit(main())
