"""Functions exported to ONNX, and run by ONNX Runtime or OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rcnn_ext.onnx

DYNAMIC = torch.export.Dim.DYNAMIC


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def _flat(args: Sequence[Tensor | Sequence[Tensor]]) -> list[np.ndarray]:
    tensors = [t for a in args for t in (a if isinstance(a, list | tuple) else [a])]
    return [t.numpy() for t in tensors]


class OnnxFunction:
    """A function of tensors and lists of tensors, exported with the sizes that are named dynamic.

    Args:
        function: The function.
        args: Arguments to export it with.
        dynamic: For each argument its dynamic axes; for a list those of each of its tensors.
        path: The file to write.
        opset: Version of the operators.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        dynamic: Sequence[Sequence[int]],
        path: Path,
        opset: int = rcnn_ext.onnx.OPSET,
    ) -> None:
        shapes = [
            [dict.fromkeys(axes, DYNAMIC)] * len(a)
            if isinstance(a, list)
            else dict.fromkeys(axes, DYNAMIC)
            for a, axes in zip(args, dynamic, strict=True)
        ]
        with torch.no_grad():
            program = torch.export.export(
                _Function(function), args, dynamic_shapes=(tuple(shapes),), strict=False
            )
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                custom_translation_table=rcnn_ext.onnx.translations(),
            )
        assert exported is not None
        exported.save(str(path))
        self.path = path
        self._session: Any = None
        self._compiled: Any = None

    def __call__(self, *args: Any) -> list[np.ndarray]:
        """Run it in ONNX Runtime."""
        import onnxruntime

        if self._session is None:
            self._session = onnxruntime.InferenceSession(
                str(self.path), providers=["CPUExecutionProvider"]
            )
        names = [i.name for i in self._session.get_inputs()]
        return self._session.run(None, dict(zip(names, _flat(args), strict=True)))

    def openvino(self, *args: Any) -> list[np.ndarray]:
        """Run it in OpenVINO, in float32."""
        from rcnn_ext.predict.exported.openvino import openvino_core

        if self._compiled is None:
            self._compiled = openvino_core().compile_model(
                str(self.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
            )
        return list(self._compiled(_flat(args)).to_tuple())
