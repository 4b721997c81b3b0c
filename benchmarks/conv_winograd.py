"""Time Winograd's 3x3 convolution against PyTorch's direct one, over the layers of a detector.

Usage: python benchmarks/conv_winograd.py [--threads N] [--seconds S] [--json FILE]

Rows are the 3x3 convolutions of stride 1 of a ResNet-50 FPN on a map of 800 x 1088, with bias and
ReLU, in float32 (tiles of 4 and 2) and, where the processor has products for it, in bfloat16 (tiles
of 2). Both run channels-last in one process and in turns; a figure is the CPU time of the fastest
run. Before a row is timed its result is compared with the direct one in float64. The exit code is 1
where a result is wrong.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import torch
from torch.nn import functional

from rcnn_ext import _extension
from rcnn_ext._environment import describe
from rcnn_ext.bench.memory import keep_freed_memory
from rcnn_ext.bench.timing import least_cpu_time
from rcnn_ext.files import write_json
from rcnn_ext.ops import conv_winograd

# Channels, height and width.
_SHAPES = (
    (256, 200, 272),
    (256, 100, 136),
    (256, 50, 68),
    (128, 100, 136),
    (64, 200, 272),
    (512, 25, 34),
)
# dtype, tile, and the relative root mean square error that is allowed.
_KINDS = ((torch.float32, 4, 1e-5), (torch.float32, 2, 2e-6), (torch.bfloat16, 2, 1e-2))
_MIN_RUNS = 3
_MAX_CHECKED_ROWS = 50  # of a map, since convolutions in float64 are slow


def measure(
    shape: tuple[int, int, int], dtype: torch.dtype, tile: int, tolerance: float, seconds: float
) -> dict[str, Any]:
    """Compare and time a row.

    Args:
        shape: Channels (in and out), height and width of the map.
        dtype: float32 or bfloat16.
        tile: Outputs per side of a tile.
        tolerance: Relative root mean square error that is allowed.
        seconds: CPU time to spend on timing, as far as the minimum number of runs allows.

    Returns:
        Name, CPU seconds per call of either convolution, ratio, error and tolerance.
    """
    channels, height, width = shape
    source = torch.Generator().manual_seed(23)
    x = torch.randn(1, channels, height, width, generator=source).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, generator=source) / (9 * channels) ** 0.5
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    bias = torch.randn(channels, generator=source).to(dtype)
    packed = conv_winograd.pack(weight, tile)
    calls = {
        "rcnn_ext": lambda: conv_winograd.conv(x, packed, bias, None, True, tile),
        "torch": lambda: functional.conv2d(x, weight, bias, padding=1).relu_(),
    }
    # The last row of the part sees the padding in place of the next row of the map.
    part = x[:, :, :_MAX_CHECKED_ROWS]
    exact = functional.conv2d(part.double(), weight.double(), bias.double(), padding=1).relu()
    ours = conv_winograd.conv(part, packed, bias, None, True, tile)
    error = float((ours.double() - exact).norm() / exact.norm())
    best = least_cpu_time(calls, seconds, _MIN_RUNS)
    return {
        "name": f"{channels}x{height}x{width}/{str(dtype).removeprefix('torch.')}/tile{tile}",
        "cpu_s": best,
        "ratio": best["torch"] / best["rcnn_ext"],
        "error": error,
        "tolerance": tolerance,
    }


def main() -> int:
    """Measure the rows, print a line for each and write the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads (1)")
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=2.0, help="CPU time per row (2)"
    )
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="where to write the rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    rows = []
    print(f"{'row':<36}{'rcnn_ext ms':>12}{'torch ms':>12}{'ratio':>8}{'error':>10}")
    with torch.inference_mode():
        for dtype, tile, tolerance in _KINDS:
            if dtype == torch.bfloat16 and not _extension.has_bf16_products():
                continue
            for shape in _SHAPES:
                row = measure(shape, dtype, tile, tolerance, options.seconds)
                rows.append(row)
                ours, theirs = (row["cpu_s"][name] * 1e3 for name in ("rcnn_ext", "torch"))
                note = " WRONG" if row["error"] > tolerance else ""
                print(
                    f"{row['name']:<36}{ours:>12.2f}{theirs:>12.2f}{row['ratio']:>7.2f}x"
                    f"{row['error']:>10.1e}{note}",
                    flush=True,
                )
    if options.json is not None:
        report = {
            "suite": "conv-winograd",
            "environment": describe(torch.device("cpu")),
            "instruction_set": _extension.instruction_set(),
            "threads": options.threads,
            "results": rows,
        }
        write_json(options.json, report)
    return 1 if any(row["error"] > row["tolerance"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
