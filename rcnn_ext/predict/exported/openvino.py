"""Models in OpenVINO's format, read back and run by it. Needs the extra ``openvino``."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcnn_ext.errors import UserError
from rcnn_ext.models.core import PaddedDetections
from rcnn_ext.predict.checkpoint import ModelFormatError
from rcnn_ext.predict.exported.model import ExportedModel
from rcnn_ext.predict.exported.onnx import OUTPUTS, cannot_run, load_onnx, parse_metadata
from rcnn_ext.predict.exported.program import SavedProgram

# The section of a file that holds what the metadata of ONNX files do.
METADATA = "rcnn_ext_model"


@dataclass(frozen=True)
class SavedOpenVino(SavedProgram):
    """A detector in OpenVINO's files; ``program`` is the model that they hold."""

    def build(self, device: torch.device) -> nn.Module:
        """Return the model, run by OpenVINO on a CPU.

        Raises:
            ModelFormatError: Its graph is damaged.
        """
        del device
        assert self.facts is not None
        try:
            program = OpenVinoProgram(self.program, self.facts.inputs)
        except Exception as error:  # each kind of damage has its own
            raise ModelFormatError(cannot_run(self.path, "OpenVINO", error)) from error
        return ExportedModel(program, self.facts, self.path)


class OpenVinoProgram:
    """Call a model of OpenVINO with tensors, in float32.

    Args:
        model: The model.
        inputs: Names of its inputs.
    """

    def __init__(self, model: Any, inputs: Sequence[str]) -> None:
        self._inputs = inputs
        # On processors with bfloat16 the default is that, which moves boxes by pixels.
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self.runtime = ("OpenVINO", openvino().__version__)
        self._compiled = openvino_core().compile_model(model, "CPU", options)

    def __call__(self, *tensors: Tensor) -> PaddedDetections:
        """Run the model: the call of ``rcnn_ext.models.core.DeployedDetector``."""
        arrays = (tensor.detach().cpu().contiguous().numpy() for tensor in tensors)
        found = self._compiled(dict(zip(self._inputs, arrays, strict=True)))
        boxes, scores, labels, counts = (
            torch.from_numpy(found[name].copy()).to(tensors[0].device) for name in OUTPUTS
        )
        return boxes, scores, labels, counts


def has_openvino() -> bool:
    """Return whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def openvino() -> Any:
    """Return the module ``openvino``.

    Raises:
        UserError: The extra is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise UserError(
            "OpenVINO models need openvino, which is not installed: "
            "pip install 'rcnn-ext[openvino]'"
        ) from error
    return openvino


def openvino_core() -> Any:
    """Return OpenVINO's core, one for the whole process.

    Each core with a compiled model lends the thread a stack for signals. When two of them go in
    the order that they came in, the thread keeps one that is gone, and the next signal with a
    handler of Python, such as Ctrl-C, ends the process (seen with OpenVINO 2026.4).

    Raises:
        UserError: The extra is not installed.
    """
    openvino()
    return _core()


@functools.cache
def _core() -> Any:
    return openvino().Core()


def compile_onnx(path: Path) -> ExportedModel:
    """Return the model in an ONNX file, run by OpenVINO.

    Raises:
        ModelFormatError: OpenVINO does not take it.
    """
    facts = load_onnx(path).facts
    assert facts is not None
    try:
        program = OpenVinoProgram(openvino_core().read_model(path), facts.inputs)
    except Exception as error:
        raise ModelFormatError(cannot_run(path, "OpenVINO", error)) from error
    return ExportedModel(program, facts, path)


def load_openvino(path: Path) -> SavedOpenVino:
    """Read a model that ``rcnn-ext export --format openvino`` wrote.

    Raises:
        ModelFormatError: It was written by something else, or is damaged, or ``.bin`` is missing.
        UserError: The extra ``openvino`` is not installed.
    """
    core = openvino_core()
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ModelFormatError(f"{weights}, which holds the weights of {path}, does not exist")
    model = core.read_model(path, weights)
    metadata: dict[str, str] = {}
    if model.has_rt_info([METADATA]):
        section = model.get_rt_info([METADATA])
        metadata = {str(key): str(value) for key, value in _items(section)}
    facts, entry = parse_metadata(path, metadata)
    return SavedOpenVino(path=path, weights={}, program=model, facts=facts, **entry)


def _items(section: Any) -> Any:
    content = getattr(section, "value", section)
    return content.items()
