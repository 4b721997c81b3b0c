"""Python in a clone where nothing was compiled, and how often the first commands compile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_COMPILED = ("*.so", "*.pyd", "__pycache__", "_build_info.json")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A source checkout in which nothing is compiled, beside an installed package."""
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(
        ROOT / "rcnn_ext", clone / "rcnn_ext", ignore=shutil.ignore_patterns(*_COMPILED)
    )
    (clone / "csrc" / "core").mkdir(parents=True)
    installed = clone / "site-packages" / "rcnn_ext"
    installed.mkdir(parents=True)
    for name in ("__init__.py", "_C.abi3.so", "_selective_search.abi3.so"):
        (installed / name).touch()
    return clone


def run_in(folder: Path, script: str, *import_from: Path) -> tuple[str, str]:
    """Run a script as ``python script.py`` in a folder, and return standard output and error."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(path) for path in import_from),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


_OPERATORS = """
import sys, torch
from rcnn_ext import ops
boxes, scores = torch.tensor([[0.0, 0, 9, 9], [1, 1, 9, 9]]), torch.tensor([0.9, 0.8])
with ops.use_backend("reference"):
    ops.nms(boxes, scores, 0.5)
print("asked for", file=sys.stderr)
for _ in range(3):
    ops.nms(boxes, scores, 0.5)
    ops.box_iou(boxes, boxes)
print("fallen back to", file=sys.stderr)
try:
    with ops.use_backend("native"):
        pass
except RuntimeError as error:
    print(error)

import argparse
from rcnn_ext.cli import doctor
doctor.self_test = lambda device: {}
parser = argparse.ArgumentParser()
doctor.add_arguments(parser)
assert doctor.run(parser.parse_args([])) == 0
"""


def test_python_in_the_clone_says_that_the_installed_kernels_are_hidden(clone) -> None:
    out, err = run_in(clone, _OPERATORS, clone / "site-packages")
    where = (
        f"not built in the source checkout {clone}, which Python imports in place of the compiled "
        f"{clone / 'site-packages' / 'rcnn_ext'}; start Python in another folder, or run "
        "`pip install -e .` in the checkout"
    )
    before, _, after = err.partition("asked for")
    assert "RuntimeWarning" not in before, "the reference was asked for"
    warned, _, rest = after.partition("fallen back to")
    assert warned.count("RuntimeWarning") == 1
    assert f"rcnn_ext._C is {where}" in warned
    assert "RuntimeWarning" not in rest
    assert f"use_backend('native'): _C is {where}" in out
    # The doctor: not what the user has just done.
    for name in ("_C (CPU kernels)", "_selective_search (selective search)"):
        assert f"{name}: {where}" in out
    assert "pip install ." not in out


_ALONE = """
import os, sys
sys.meta_path = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
sys.path = [p for p in sys.path if not p or not os.path.isdir(os.path.join(p, "rcnn_ext"))]
import torch, warnings
warnings.simplefilter("error")
from rcnn_ext import _extension, ops
from rcnn_ext.cli import doctor
ops.box_iou(torch.zeros(1, 4), torch.zeros(1, 4))
print(doctor.judge_module(_extension.status()["_C"], False)[1])
"""


def test_a_clone_alone_is_silent_and_told_to_compile_in_place(clone) -> None:
    out, _ = run_in(clone, _ALONE)
    assert out == (f"not built; with a C++17 compiler at hand, run `pip install -e .` in {clone}\n")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_commands_of_the_readme_compile_once(tmp_path) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "demo", "test", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    installs = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert [line for line in installs if "rcnn-ext[train]" in line]
    assert [line for line in installs if "rcnn-ext[dev]" in line]
    from_sources = [line for line in installs if line.rstrip(' "')[-1] == "."]
    assert len(from_sources) == 1
    # And by hand: each block of the README that is for a shell has one line to install.
    text = (ROOT / "README.md").read_text()
    assert text.count("\npip install ") == 1
