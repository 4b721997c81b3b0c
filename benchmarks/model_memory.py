"""Measure the memory of whole detectors: ours, in ONNX Runtime and in OpenVINO.

Usage: python benchmarks/model_memory.py [--threads N] [--json FILE]

Faster R-CNN on ResNet-18 and ResNet-50 FPN of equal weights, an image of 640x480 resized to
1066x800. Each contender is built and called in a fresh process of its own; a figure is the growth
of the process beyond its libraries: when the model is ready, and at most during five calls. The
time of the first call is that after preparation. Linux only.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from rcnn_ext._environment import describe
from rcnn_ext.files import write_json

_BACKBONES = ("resnet18", "resnet50")
_CONTENDERS = (
    *("rcnn_ext", "onnxruntime", "openvino"),
    *("rcnn_ext-bfloat16", "openvino-bfloat16"),
)
_CALLS = 5
_MB = 1e6


def main() -> int:
    """Measure the contenders, print a line for each and write the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", metavar="N", type=int, default=2, help="threads (2)")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="where to write the rows")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        contender, backbone, path = options.one
        print(json.dumps(_measure(contender, backbone, path, options.threads)))
        return 0
    rows = []
    print(f"{'row':<28}{'ready MB':>10}{'peak MB':>10}{'first call ms':>15}{'next ms':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for backbone in _BACKBONES:
            path = pathlib.Path(folder) / f"{backbone}.onnx"
            _export(backbone, path)
            for contender in _CONTENDERS:
                command = [sys.executable, __file__, "--threads", str(options.threads)]
                done = subprocess.run(
                    [*command, "--one", contender, backbone, str(path)],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                row = {
                    "name": f"{backbone}/{contender}",
                    **json.loads(done.stdout.splitlines()[-1]),
                }
                rows.append(row)
                print(
                    f"{row['name']:<28}{row['ready_bytes'] / _MB:>10.0f}"
                    f"{row['peak_bytes'] / _MB:>10.0f}{row['first_s'] * 1e3:>15.0f}"
                    f"{row['next_s'] * 1e3:>9.0f}",
                    flush=True,
                )
    if options.json is not None:
        report = {
            "suite": "model-memory",
            "environment": describe(torch.device("cpu")),
            "threads": options.threads,
            "results": rows,
        }
        write_json(options.json, report)
    return 0


def _export(backbone: str, path: pathlib.Path) -> None:
    from rcnn_ext.bench.model_pair import Scale, make_pair
    from rcnn_ext.bench.runtimes import export_graph

    ours, _ = make_pair(Scale(backbone), torch.device("cpu"), trainable_layers=0)
    path.write_bytes(export_graph(ours))


def _measure(contender: str, backbone: str, path: str, threads: int) -> dict[str, Any]:
    """Build and call one contender; this process must not have built a model before."""
    torch.set_num_threads(threads)
    name, _, bfloat16 = contender.partition("-")
    make = {"rcnn_ext": _ours, "onnxruntime": _onnxruntime, "openvino": _openvino}[name]
    libraries, call = make(backbone, path, threads, bool(bfloat16))
    ready = _memory("VmRSS")
    _reset_peak()
    seconds = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {
        "ready_bytes": ready - libraries,
        "peak_bytes": _memory("VmHWM") - libraries,
        "first_s": seconds[0],
        "next_s": sorted(seconds[1:])[len(seconds[1:]) // 2],
    }


# The memory of the process before the model is built, and a call of the model.
_Made = tuple[int, Callable[[], Any]]


def _ours(backbone: str, path: str, threads: int, bfloat16: bool) -> _Made:
    from rcnn_ext.bench.model_pair import Scale, make_image
    from rcnn_ext.models import faster_rcnn

    scale = Scale(backbone)
    image = make_image(scale, torch.device("cpu"), 0)
    libraries = _memory("VmRSS")
    model = faster_rcnn(
        backbone=backbone,
        num_classes=scale.num_classes,
        min_size=scale.min_size,
        max_size=scale.max_size,
    )
    model.prepare_for_inference(dtype=torch.bfloat16 if bfloat16 else None)

    @torch.inference_mode()
    def call() -> None:
        model([image])

    return libraries, call


def _inputs() -> tuple[Any, Any]:
    return torch.rand(1, 3, 800, 1088).numpy(), torch.tensor([[800.0, 1066.0]]).numpy()


def _onnxruntime(backbone: str, path: str, threads: int, bfloat16: bool) -> _Made:
    import onnxruntime

    inputs = _inputs()
    libraries = _memory("VmRSS")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return libraries, lambda: session.run(None, dict(zip(names, inputs, strict=False)))


def _openvino(backbone: str, path: str, threads: int, bfloat16: bool) -> _Made:
    import openvino

    inputs = _inputs()
    libraries = _memory("VmRSS")
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    request = compiled.create_infer_request()
    count = len(compiled.inputs)
    return libraries, lambda: request.infer(list(inputs[:count]))


def _memory(kind: str) -> int:
    """Return a figure of the process in bytes: VmRSS or, at most so far, VmHWM."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"{kind}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def _reset_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    sys.exit(main())
