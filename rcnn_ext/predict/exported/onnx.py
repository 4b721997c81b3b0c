"""Models exported to ONNX, read back and run by ONNX Runtime. Needs the extra ``onnx``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcnn_ext.errors import UserError
from rcnn_ext.models.core import PaddedDetections
from rcnn_ext.predict.checkpoint import ENTRY, ModelFormatError, read_entry
from rcnn_ext.predict.exported.model import ExportedModel, ModelFacts
from rcnn_ext.predict.exported.program import SavedProgram

# Names of inputs and outputs, and of their axes where those are dynamic.
INPUTS = {
    "images": ("batch", "channels", "height", "width"),
    "image_sizes": ("batch", "height_width"),
    "proposals": ("batch", "proposals", "corners"),
    "proposal_counts": ("batch",),
}
OUTPUTS = {
    "boxes": ("batch", "detections", "corners"),
    "scores": ("batch", "detections"),
    "labels": ("batch", "detections"),
    "counts": ("batch",),
}


@dataclass(frozen=True)
class SavedOnnx(SavedProgram):
    """A detector in an ONNX file.

    Attributes:
        content: The file.
    """

    content: bytes = b""

    def build(self, device: torch.device) -> nn.Module:
        """Return the model, run by ONNX Runtime: on a GPU where its package has it, else on a CPU.

        Raises:
            ModelFormatError: Its graph is damaged.
        """
        assert self.facts is not None
        try:
            program = OnnxProgram(self.content, device, self.facts.inputs)
        except Exception as error:  # each kind of damage has its own
            raise ModelFormatError(cannot_run(self.path, "ONNX Runtime", error)) from error
        return ExportedModel(program, self.facts, self.path)


class OnnxProgram:
    """Call a graph with tensors.

    Args:
        content: The ONNX file.
        device: The device to run it on.
        inputs: Names of its inputs.
    """

    def __init__(self, content: bytes, device: torch.device, inputs: Sequence[str]) -> None:
        import onnxruntime

        self._inputs = inputs

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; warnings are about the graph's make-up
        providers: list[Any] = ["CPUExecutionProvider"]
        gpu = "CUDAExecutionProvider"
        if device.type == "cuda" and gpu in onnxruntime.get_available_providers():
            providers.insert(0, (gpu, {"device_id": device.index or 0}))
        self.runtime = ("ONNX Runtime", onnxruntime.__version__)
        self._session = onnxruntime.InferenceSession(content, options, providers=providers)

    def __call__(self, *tensors: Tensor) -> PaddedDetections:
        """Run the graph: the call of ``rcnn_ext.models.core.DeployedDetector``."""
        arrays = (tensor.detach().cpu().contiguous().numpy() for tensor in tensors)
        found = self._session.run(list(OUTPUTS), dict(zip(self._inputs, arrays, strict=True)))
        boxes, scores, labels, counts = (
            torch.from_numpy(array).to(tensors[0].device) for array in found
        )
        return boxes, scores, labels, counts


def require_onnxruntime() -> None:
    """Check that the extra is there.

    Raises:
        UserError: It is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX models need {error.name}, which is not installed: pip install 'rcnn-ext[onnx]'"
        ) from error


def cannot_run(path: Path, runtime: str, error: Exception) -> str:
    """Return the message about a graph that a runtime does not take."""
    reason = " ".join(str(error).split())[:300]
    return f"the graph in {path} cannot be run by {runtime}, since it is damaged: {reason}"


def load_onnx(path: Path) -> SavedOnnx:
    """Read an ONNX file that ``rcnn-ext export`` wrote.

    Raises:
        ModelFormatError: It was written by something else, is damaged, or refers to other files.
        UserError: The extra ``onnx`` is not installed.
    """
    require_onnxruntime()
    import onnx

    content = path.read_bytes()
    model = onnx.load_model_from_string(content)
    metadata = {item.key: item.value for item in model.metadata_props}
    facts, entry = parse_metadata(path, metadata)
    if any(tensor.data_location != onnx.TensorProto.DEFAULT for tensor in _tensors(model.graph)):
        raise ModelFormatError(
            f"{path} keeps weights in other files, which rcnn-ext export does not write: it was "
            "edited"
        )
    return SavedOnnx(path=path, weights={}, content=content, facts=facts, **entry)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of an ONNX file."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    return {item.key: item.value for item in model.metadata_props}


def parse_metadata(path: Path, metadata: dict[str, str]) -> tuple[ModelFacts, dict[str, Any]]:
    """Return what metadata say of a model: facts, and arguments of ``SavedDetector``.

    Raises:
        ModelFormatError: They are not those of ``rcnn-ext export``.
    """
    if ENTRY not in metadata or "recipe" not in metadata:
        raise ModelFormatError(
            f"{path} was not written by rcnn-ext export: its metadata have no recipe and no class "
            "names, without which labels have no meaning"
        )
    content = json.loads(metadata[ENTRY])
    entry = content.get("entry") if isinstance(content, dict) else None
    if not isinstance(entry, dict):
        raise ModelFormatError(f"the metadata of {path} are damaged, or edited")
    facts = ModelFacts.from_dict(path, content.get("facts"))
    return facts, read_entry(path, entry | {"recipe": json.loads(metadata["recipe"])})


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield all constants of a graph, also those of the graphs in it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)
