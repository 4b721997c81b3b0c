"""The table of docs/deployment.md: each "yes" is a test, and each "no" has a reason."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

import rcnn_ext.onnx
from rcnn_ext import models
from rcnn_ext.ops._library import schemas
from tests.helpers.operator_calls import OperatorCall, operator_calls

ROOT = Path(__file__).parents[2]
CALLS = operator_calls()


def _columns(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _read_table() -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the cells by row and column, and the notes by number."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    section = page.split("\n## What works where\n")[1].split("\n## ")[0]
    header, _, *lines = [line for line in section.splitlines() if line.startswith("|")]
    names = _columns(header)[1:]
    table = {}
    for line in lines:
        row, *cells = _columns(line)
        assert row not in table
        table[row.strip("`")] = dict(zip(names, cells, strict=True))
    notes = re.findall(r"^(\d+)\. (.+)$", section, re.MULTILINE)
    return table, dict(notes)


TABLE, NOTES = _read_table()
COLUMNS = (
    "compile",
    "export",
    "AOTI",
    "ONNX Runtime",
    "OpenVINO",
    "vmap",
    "grad",
    "jvp",
    "fx",
)

# Tests of what takes too long to be done here, by row and column.
_CORE, _ONNX = "tests/models/test_core.py", "tests/export/test_onnx.py"
_PROGRAM = "tests/export/test_export.py::test_live_batch_norm_on_each_roi_is_exported_for_any"
_ONNX_OPERATORS = "tests/onnx/test_operators.py"
_AOTI = "tests/export/test_aoti_operators.py::test_all_operators_are_compiled"
_RUNTIMES = {
    "nms": "test_nms",
    "batched_nms": "test_batched_nms",
    "nms_padded": "test_nms_padded",
    "batched_nms_padded": "test_nms_padded",
    "box_iou": "test_box_iou_family",
    "roi_align": "test_roi_pooling",
    "roi_pool": "test_roi_pooling",
    "multiscale_roi_align": "test_multiscale_roi_align",
    "generate_proposals": "test_generate_proposals",
    "postprocess_detections": "test_postprocess_detections",
}
_COMPILED, _EXPORTED = (
    f"{_CORE}::test_a_compiled_detector_has_no_break",
    f"{_PROGRAM}_number_of_rois",
)
_BOTH_RUNTIMES = f"{_ONNX}::test_both_runtimes_find_what_the_model_finds"
_PACKAGE = "tests/export/test_aoti_operators.py::test_models_are_compiled"
_TRAINED = f"{_CORE}::test_a_training_step_is_compiled_without_a_break"
ELSEWHERE: dict[tuple[str, str], str] = {
    **{(name, "AOTI"): _AOTI for name in CALLS if name != "match_boxes"},
    **{
        (name, runtime): f"{_ONNX_OPERATORS}::{test}"
        for name, test in _RUNTIMES.items()
        for runtime in ("ONNX Runtime", "OpenVINO")
    },
    ("faster_rcnn", "compile"): f"{_COMPILED}[c4]",
    ("fast_rcnn", "compile"): f"{_COMPILED}[fast]",
    ("localizer", "compile"): f"{_COMPILED}[localizer]",
    ("faster_rcnn", "export"): f"{_EXPORTED}[faster_rcnn]",
    ("fast_rcnn", "export"): f"{_EXPORTED}[fast_rcnn]",
    ("localizer", "export"): f"{_BOTH_RUNTIMES}[localizer]",
    ("localizer", "AOTI"): f"{_PACKAGE}[localizer]",
    ("fast_rcnn", "AOTI"): f"{_PACKAGE}[fast_rcnn]",
    ("faster_rcnn", "AOTI"): "tests/export/test_aoti.py::test_a_package_finds_what_the_model_finds",
    ("faster_rcnn", "grad"): f"{_TRAINED}[fpn]",
    ("fast_rcnn", "grad"): f"{_TRAINED}[fast]",
    ("localizer", "grad"): f"{_TRAINED}[localizer]",
    **{
        (model, runtime): f"{_BOTH_RUNTIMES}[{name}]"
        for model, name in (
            ("faster_rcnn", "fpn"),
            ("fast_rcnn", "fast_rcnn"),
            ("localizer", "localizer"),
        )
        for runtime in ("ONNX Runtime", "OpenVINO")
    },
}


def _operators() -> set[str]:
    return {name for name in schemas if not name.endswith(("_backward", "_out"))}


def _builders() -> set[str]:
    """Return the functions that build detectors, but for presets, which call them."""
    found = set()
    for name in models.__all__:
        value = getattr(models, name)
        if not inspect.isfunction(value) or value.__module__ == models.presets.__name__:
            continue
        kind = get_type_hints(value).get("return")
        if inspect.isclass(kind) and issubclass(kind, models.Detector):
            found.add(name)
    return found - {"load_detectron2", "convert_detectron2"}


def test_rows_are_the_operators_and_the_models() -> None:
    assert {*TABLE} == _operators() | _builders()
    assert {*CALLS} == _operators()
    assert all(tuple(cells) == COLUMNS for cells in TABLE.values())


def test_answers_are_yes_or_have_a_reason() -> None:
    used = set()
    for row, cells in TABLE.items():
        for column, cell in cells.items():
            match = re.fullmatch(r"yes|no \((\d+)\)", cell)
            assert match is not None, (row, column, cell)
            used.add(match[1])
    assert used - {None} == {*NOTES}


def test_what_is_tested_elsewhere_is_in_the_table_and_exists() -> None:
    for (row, column), node in ELSEWHERE.items():
        assert TABLE[row][column] == "yes", (row, column)
        file, _, name = node.partition("::")
        function, _, parameter = name.rstrip("]").partition("[")
        tree = ast.parse((ROOT / file).read_text())
        (found,) = [n for n in tree.body if getattr(n, "name", None) == function]
        if parameter:
            # In the decorator, or among the keys of the table that it or a fixture goes through.
            assert f"'{parameter}'" in ast.unparse(tree), node


class _Module(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def _assert_equal(found: Any, expected: Any) -> None:
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other)


def _compile(call: OperatorCall) -> bool:
    torch._dynamo.reset()
    compiled = torch.compile(call.function, fullgraph=True, backend="eager")
    _assert_equal(compiled(*call.args), call.function(*call.args))
    torch._dynamo.reset()
    return True


def _export(call: OperatorCall) -> bool:
    program = torch.export.export(_Module(call.function), call.args)
    _assert_equal(program.module()(*call.args), call.function(*call.args))
    return True


def _onnx(call: OperatorCall) -> bool:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    translated = {operator.name() for operator in rcnn_ext.onnx.translations()}
    return f"rcnn_ext::{_name_of(call)}" in translated


def _name_of(call: OperatorCall) -> str:
    return next(name for name, other in CALLS.items() if other is call)


def _refused(error: NotImplementedError, message: str) -> bool:
    """Return False, after a check that the refusal says what it is."""
    assert message in str(error)
    return False


def _vmap(call: OperatorCall) -> bool:
    stacked = [torch.stack([tensor, tensor.flip(0)]) for tensor in call.args]
    if any(tensor.dtype == torch.int64 for tensor in call.args):
        stacked = [torch.stack([tensor, tensor]) for tensor in call.args]
    try:
        found = torch.vmap(call.function)(*stacked)
    except NotImplementedError as error:
        return _refused(error, _name_of(call).removeprefix("batched_"))
    for index in range(2):
        expected = tree_leaves(call.function(*(tensor[index] for tensor in stacked)))
        _assert_equal([leaf[index] for leaf in tree_leaves(found)], expected)
    return True


def _loss(call: OperatorCall) -> Callable[[Tensor], Tensor]:
    def loss(first: Tensor) -> Tensor:
        results = tree_leaves(call.function(first, *call.args[1:]))
        return torch.stack(
            [r.double().square().sum() for r in results if r.is_floating_point()]
        ).sum()

    return loss


def _has_floats(call: OperatorCall) -> bool:
    return any(leaf.is_floating_point() for leaf in tree_leaves(call.function(*call.args)))


def _grad(call: OperatorCall) -> bool:
    first = call.args[0].clone().requires_grad_()
    if not _has_floats(call):
        return False
    loss = _loss(call)(first)
    if not loss.requires_grad:
        return False
    try:
        (expected,) = torch.autograd.grad(loss, first)
    except NotImplementedError as error:
        return _refused(error, f"{_name_of(call)}: has no derivative")
    assert expected.abs().max() > 0
    torch.testing.assert_close(torch.func.grad(_loss(call))(call.args[0]), expected)
    return True


def _jvp(call: OperatorCall) -> bool:
    if not _has_floats(call):
        return False
    first, along = call.args[0], torch.rand_like(call.args[0])
    try:
        _, found = torch.func.jvp(_loss(call), (first,), (along,))
    except NotImplementedError as error:
        return _refused(error, f"{_name_of(call)}: has no forward-mode derivative")
    if not _grad(call):
        # A constant, whose derivative is 0 in reverse mode too.
        assert found == 0
        return False
    expected = (torch.func.grad(_loss(call))(first) * along).sum()
    torch.testing.assert_close(found.to(expected.dtype), expected)
    with forward_ad.dual_level():
        dual = _loss(call)(forward_ad.make_dual(first, along))
        assert forward_ad.unpack_dual(dual).tangent is not None
    return True


def _fx(call: OperatorCall) -> bool:
    try:
        graph = torch.fx.symbolic_trace(call.function).graph
    except TypeError:
        return False
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    return targets.count(call.public) == 1


CHECKS: dict[str, Callable[[OperatorCall], bool]] = {
    "compile": _compile,
    "export": _export,
    "ONNX Runtime": _onnx,
    "OpenVINO": _onnx,
    "vmap": _vmap,
    "grad": _grad,
    "jvp": _jvp,
    "fx": _fx,
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("column", CHECKS)
@pytest.mark.parametrize("row", CALLS)
def test_operators(row: str, column: str) -> None:
    assert CHECKS[column](CALLS[row]) == (TABLE[row][column] == "yes")


@pytest.mark.parametrize("row", sorted(_builders()))
def test_models(row: str) -> None:
    """Check that every cell is tested somewhere or says no; to run models here takes too long."""
    unsupported = {column for column, cell in TABLE[row].items() if cell != "yes"}
    tested = {column for name, column in ELSEWHERE if name == row}
    assert tested | unsupported == {*COLUMNS}
    assert not tested & unsupported
