"""Functions exported to ONNX, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.onnx_programs import OnnxFunction


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., OnnxFunction]:
    """Return a function that exports another one, and checks the file."""
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    folder = tmp_path_factory.mktemp("onnx")
    made = 0

    def export(*args: Any) -> OnnxFunction:
        nonlocal made
        made += 1
        exported = OnnxFunction(*args, folder / f"{made}.onnx")
        model = onnx.load(exported.path)
        onnx.checker.check_model(model, full_check=True)
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.functions

        return exported

    return export
