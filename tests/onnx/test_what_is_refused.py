"""What the translation to ONNX refuses, and what it has no translation for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import rcnn_ext.onnx
from rcnn_ext import ops
from rcnn_ext.errors import UserError
from tests.helpers.onnx_programs import OnnxFunction

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")


def test_thresholds_below_zero_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="threshold below 0") as raised:
        OnnxFunction(
            lambda b, s: ops.nms(b, s, -0.1), (torch.rand(3, 4), torch.rand(3)), [[0], [0]],
            tmp_path / "made.onnx",
        )  # fmt: skip
    assert raised.value


def test_what_onnx_cannot_express_is_named() -> None:
    documented = rcnn_ext.onnx.translations.__doc__ or ""
    translated = {operator.name().split("::")[1] for operator in rcnn_ext.onnx.translations()}
    assert len(translated) == 10
    for name in dir(torch.ops.rcnn_ext):
        operator = getattr(torch.ops.rcnn_ext, name)
        if not isinstance(operator, torch._ops.OpOverloadPacket) or "backward" in name:
            continue
        assert name in translated or name.removeprefix("batched_") in documented, name


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'rcnn-ext\[onnx\]'"):
        rcnn_ext.onnx.translations()
