"""Every source file that a module names, such as the kernels of an operator, exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.run_python import PACKAGE, ROOT

# Modules under torchvision's names, which hold no operators of their own.
NAMESPACES = {"boxes", "poolers"}
OPERATORS = sorted(
    path.stem
    for path in (PACKAGE / "ops").glob("*.py")
    if not path.stem.startswith("_") and path.stem not in NAMESPACES
)
# Operators without kernels for CUDA: the reference runs there.
CPU_ONLY = {"conv_winograd"}

pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc").is_dir(), reason="an installed package has no sources of its kernels"
)


def _paths(text: str, root: str) -> set[str]:
    return set(re.findall(rf"\b{root}/[\w./-]*\w", text))


@pytest.mark.parametrize(
    ("folder", "suffixes", "root"),
    [(PACKAGE, (".py",), "csrc"), (ROOT / "csrc", (".h", ".cpp", ".cu", ".cuh"), "rcnn_ext")],
    ids=["csrc in Python", "rcnn_ext in C++"],
)
def test_paths_exist(folder: Path, suffixes: tuple[str, ...], root: str) -> None:
    base = ROOT if root == "csrc" else PACKAGE.parent
    named = {
        (path.relative_to(folder).as_posix(), name)
        for path in folder.rglob("*")
        if path.suffix in suffixes
        for name in _paths(path.read_text(), root)
    }
    assert named
    assert not [(file, name) for file, name in sorted(named) if not (base / name).exists()]


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_names_its_kernels(operator: str) -> None:
    docstring = (PACKAGE / "ops" / f"{operator}.py").read_text().split('"""')[1]
    stem = f"csrc/{operator}/{operator}"
    devices = ("cpu.cpp",) if operator in CPU_ONLY else ("cpu.cpp", "cuda.cu")
    assert {f"{stem}_{device}" for device in devices} <= _paths(docstring, "csrc")
    assert (PACKAGE / "reference" / f"{operator}.py").exists()
