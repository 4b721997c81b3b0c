"""The format ``onnx``: a graph of standard operators for pictures of any size.

The file says in its metadata what a program in any language needs around the graph:

- ``class_names``: JSON list; the name of label l is the one at l - 1.
- ``sizes``: JSON; pictures are brought to ``fixed_size`` (width, height) where that is not null,
  else so that the shorter side is ``min_size`` and the longer at most ``max_size``.
- ``preprocessing``: JSON; how the input comes from a picture, and what the graph does itself.
- ``recipe``: JSON; the recipe that the model was trained by.
- ``rcnn_ext``: JSON; what ``rcnn-ext detect`` and ``rcnn-ext eval`` need besides.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rcnn_ext import __version__
from rcnn_ext.errors import UserError
from rcnn_ext.export.format import ExportOptions, Format
from rcnn_ext.export.trace import trace_detector
from rcnn_ext.export.verify import verify
from rcnn_ext.files import replacing
from rcnn_ext.models.detector import Detector
from rcnn_ext.onnx import OPSET, translations
from rcnn_ext.predict.checkpoint import ENTRY, SavedDetector, describe
from rcnn_ext.predict.exported.model import ModelFacts
from rcnn_ext.predict.exported.onnx import INPUTS, OUTPUTS, load_onnx, require_onnxruntime
from rcnn_ext.predict.exported.openvino import compile_onnx, has_openvino


def _write(saved: SavedDetector, path: Path, options: ExportOptions) -> None:
    require_onnxruntime()
    with replacing(path) as temporary:
        write_graph(saved, temporary, options.size, takes_sizes=options.takes_sizes)
        if options.verify:
            verify(saved, load_onnx(temporary).build(torch.device("cpu")), "ONNX Runtime", options)
            if has_openvino():
                verify(saved, compile_onnx(temporary), "OpenVINO", options)


def write_graph(
    saved: SavedDetector,
    path: Path,
    size: tuple[int, int] | None,
    *,
    takes_sizes: bool = False,
) -> None:
    """Write a model as ONNX, without running it.

    Args:
        saved: The model.
        path: The file to write.
        size: (width, height) of the images, where the program is to be for one size only.
        takes_sizes: Whether the graph has the input ``image_sizes``.

    Raises:
        UserError: The model is a program, which has no modules to translate; or onnx or onnxscript
            is not installed.
    """
    table = translations()
    import onnx

    detector = saved.build(torch.device("cpu"))
    if not isinstance(detector, Detector):
        raise UserError(
            f"{saved.path} is a program, which can't be translated: export the training run or its "
            "weights (.ckpt, .safetensors)"
        )
    program = trace_detector(detector, size, takes_sizes=takes_sizes)
    with _quiet():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=table,
            verbose=False,
        )
    assert exported is not None
    graph = exported.model
    facts = ModelFacts.of(detector, size, takes_sizes)
    _name_axes(graph, {name: INPUTS[name] for name in facts.inputs})
    _drop_traces(graph)
    graph.producer_name, graph.producer_version = "rcnn_ext", __version__
    graph.metadata_props.update(_metadata(saved, detector, facts))
    exported.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own workings from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_axes(model: Any, inputs: dict[str, tuple[str, ...]]) -> None:
    """Name inputs, outputs and their dynamic axes; the exporter has formulas for them."""
    import onnx_ir as ir

    graph = model.graph
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.shape is not None:
                sizes = [size if isinstance(size, int) else None for size in value.shape]
                value.shape = ir.Shape(sizes)
    for values, named in ((graph.inputs, inputs), (graph.outputs, OUTPUTS)):
        for value, (name, axes) in zip(values, named.items(), strict=True):
            value.name = name
            value.shape = ir.Shape(
                [
                    size if isinstance(size, int) else axis
                    for size, axis in zip(value.shape, axes, strict=True)
                ]
            )


def _drop_traces(model: Any) -> None:
    """Drop what the exporter notes of every operator: code and folders of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = model.doc_string = None
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None


def _metadata(saved: SavedDetector, detector: Detector, facts: ModelFacts) -> dict[str, str]:
    entry = describe(saved.recipe, saved.classes, saved.step, saved.state)[ENTRY]
    recipe = entry.pop("recipe")
    transform = detector.transform
    channels = len(transform.image_mean)
    preprocessing = {
        "layout": "NCHW",
        "channels": "RGB" if channels == 3 else channels,
        "range": [0, 1],
        "resize": "bilinear, half-pixel centers, no antialiasing; see sizes",
        "batch": "images in the upper left corner of a common size; image_sizes is (height, width)"
        if facts.takes_sizes
        else "images of one size",
        "in_graph": {
            "normalize": {
                "mean": [float(value) for value in transform.image_mean],
                "std": [float(value) for value in transform.image_std],
            },
            "pad_to_multiple_of": int(transform.size_divisible),
        },
    }
    sizes = {
        "min_size": facts.min_size,
        "max_size": facts.max_size,
        "fixed_size": facts.fixed_size,
        "size_divisor": int(transform.size_divisible),
    }
    content = {
        "class_names": entry["class_names"],
        "sizes": sizes,
        "preprocessing": preprocessing,
        "recipe": recipe,
        ENTRY: {"entry": entry, "facts": facts.as_dict()},
    }
    return {name: json.dumps(value) for name, value in content.items()}


FORMAT = Format(
    "onnx",
    ".onnx",
    "a graph of standard ONNX operators for any size",
    _write,
    verifies=True,
    chooses_sizes=True,
)
