"""A detector in ONNX Runtime and OpenVINO, where they are installed: other ways to deploy it."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes

from rcnn_ext.bench.contenders import ONNXRUNTIME, OPENVINO, OPENVINO_BFLOAT16
from rcnn_ext.export.trace import trace_detector
from rcnn_ext.models.detector import Detector
from rcnn_ext.onnx import OPSET, translations
from rcnn_ext.predict.exported.openvino import openvino_core

# From images [1, 3, H, W] and their sizes [1, 2] to boxes, scores, labels and counts.
_Run = Callable[[Tensor, Tensor], list[Any]]
Call = Callable[[], list[dict[str, Tensor]]]


def runtime_calls(detector: Detector, image: Tensor, *, bfloat16: bool) -> dict[str, Call]:
    """Return calls that detect in an image through other runtimes, resizing included.

    They compute with as many threads as PyTorch does when they are called.

    Args:
        detector: The detector as built, on a CPU; it is copied.
        image: [3, H, W] in [0, 1].
        bfloat16: Whether OpenVINO is to compute in bfloat16 too, as a contender of its own.

    Returns:
        A call by name of the contender, for the runtimes that are installed.
    """
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        return {}
    makers: dict[str, Callable[[bytes, int], _Run]] = {}
    if importlib.util.find_spec("onnxruntime"):
        makers[ONNXRUNTIME] = _onnxruntime
    if importlib.util.find_spec("openvino"):
        makers[OPENVINO] = partial(_openvino, precision="f32")
        if bfloat16:
            makers[OPENVINO_BFLOAT16] = partial(_openvino, precision="bf16")
    if not makers:
        return {}
    graph = export_graph(detector)
    return {name: _Detection(detector, image, graph, make) for name, make in makers.items()}


def export_graph(detector: Detector) -> bytes:
    """Return a detector as ONNX, for any size of batch and images."""
    program = trace_detector(copy.deepcopy(detector).eval())
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=translations(),
            verbose=False,
        )
        assert exported is not None
        path = Path(folder) / "detector.onnx"
        exported.save(str(path), external_data=False)
        return path.read_bytes()


class _Detection:
    """A call that detects in one image through a runtime."""

    def __init__(
        self,
        detector: Detector,
        image: Tensor,
        graph: bytes,
        make: Callable[[bytes, int], _Run],
    ) -> None:
        self._transform = detector.transform
        self._image = image
        self._graph = graph
        self._make = make
        # The runtimes fix the number of threads when they load a graph.
        self._runs: dict[int, _Run] = {}

    def __call__(self) -> list[dict[str, Tensor]]:
        threads = torch.get_num_threads()
        if threads not in self._runs:
            self._runs = {threads: self._make(self._graph, threads)}
        resized, _ = self._transform.resize(self._image, None)
        size = (resized.shape[1], resized.shape[2])
        outputs = self._runs[threads](resized[None], torch.tensor([size], dtype=torch.float32))
        boxes, scores, labels, counts = (torch.from_numpy(output) for output in outputs)
        count = int(counts[0])
        original = (self._image.shape[1], self._image.shape[2])
        return [
            {
                "boxes": resize_boxes(boxes[0, :count], size, original),
                "scores": scores[0, :count],
                "labels": labels[0, :count],
            }
        ]


def _onnxruntime(graph: bytes, threads: int) -> _Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while they wait would count as work, and slow the next contender down.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(images: Tensor, sizes: Tensor) -> list[Any]:
        return session.run(None, dict(zip(names, (images.numpy(), sizes.numpy()), strict=True)))

    return run


def _openvino(graph: bytes, threads: int, precision: str) -> _Run:
    core = openvino_core()
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()

    def run(images: Tensor, sizes: Tensor) -> list[Any]:
        results = request.infer([images.numpy(), sizes.numpy()])
        return [results[index] for index in range(len(results))]

    return run
