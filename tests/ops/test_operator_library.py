"""The compiled operator library by itself: in processes that never import this package."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rcnn_ext import _extension, _operator_library
from rcnn_ext.ops import _library


@pytest.fixture(scope="module")
def library() -> Path:
    """The file of the CPU kernels."""
    status = _extension.status()["_C"]
    if not status.loaded or status.path is None:
        pytest.skip(f"_C is {status.reason}")
    return status.path


def _run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_OPERATORS = """
import json, sys, torch
torch.ops.load_library(sys.argv[1])
names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("rcnn_ext::")]
boxes, scores = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]]), torch.rand(3)
assert sorted(torch.ops.rcnn_ext.nms(boxes, scores.sort(descending=True)[0], 0.5)) == [0, 2]
assert "rcnn_ext" not in sys.modules
operators = {n: getattr(torch.ops.rcnn_ext, n.split("::")[1]).default for n in names}
tag = torch.Tag.pt2_compliant_tag
print(json.dumps({n: [str(o._schema), int(tag in o.tags)] for n, o in operators.items()}))
"""


def test_both_define_the_operators_alike(library: Path) -> None:
    compiled = json.loads(_run(_OPERATORS, str(library)))
    stated = {
        f"{_library.NAMESPACE}::{name}": str(
            torch._C.parse_schema(f"{_library.NAMESPACE}::{name}{schema}")
        )
        for name, schema in _library.schemas.items()
    }
    # One that is missing here was added in rcnn_ext/ops and not in csrc/core/schemas_cpu.cpp.
    assert {name: schema for name, (schema, _) in compiled.items()} == stated
    # Older ones can't be told the tag from outside of Python.
    if torch.torch_version.TorchVersion(torch.__version__) >= "2.12":
        assert {tags for _, tags in compiled.values()} == {1}


def test_the_library_needs_nothing_of_python(library: Path) -> None:
    nm = shutil.which("nm")
    if nm is None or library.suffix != ".so":
        pytest.skip("needs nm, which lists the symbols of a library of Linux")
    for path in library.parent.glob("_C*.so"):
        listed = subprocess.run([nm, "-D", path], capture_output=True, text=True, check=True).stdout
        names = [line.split()[-1] for line in listed.splitlines()]
        assert [n for n in names if n.startswith(("Py", "_Py"))] == [], path


def test_a_library_of_other_sources_is_refused_by_name() -> None:
    other = ctypes.CDLL(None)
    with pytest.raises(OSError, match="built from other sources than those of this package"):
        _operator_library.InstructionSets(other)


def test_functions_of_c_choose_the_instruction_set(library: Path) -> None:
    sets = _operator_library.InstructionSets(_operator_library.load(library))
    before = sets.current()
    assert before in sets.available()
    with pytest.raises(ValueError, match="expected an instruction set.*'sse9'"):
        sets.use("sse9")
    assert sets.current() == before
    try:
        for name in sets.available():
            sets.use(name)
            assert sets.current() == name == _extension.instruction_set()
    finally:
        sets.use(before)
