"""What is packed: all that a build needs, and nothing of another build."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from rcnn_ext.cli.doctor import covers

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_sdist_has_the_native_sources_and_no_tests(tmp_path):
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path]
        + ["sdist", "--dist-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "RCNN_EXT_NO_CUDA": "1"},
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as contents:
        names = {name.partition("/")[2] for name in contents.getnames()}
    native = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")}
    native = {name for name in native if not pathlib.PurePath(name).name.startswith(".")}
    assert native <= names
    assert {"setup.py", "pyproject.toml", "rcnn_ext/_source_hash.py", "LICENSE"} <= names
    assert "rcnn_ext/recipes/faster_rcnn_coco.yaml" in names
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {"tests", "benchmarks", "tools", "docs"}
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


# Runs setup.py with other commands than its caller's, and writes empty files for compiling.
_SETUP = """
import pathlib, runpy, sys
import torch
from torch.utils import cpp_extension

def build_extensions(self):
    for extension in self.extensions:
        path = pathlib.Path(self.get_ext_fullpath(extension.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"new")

def setup(*commands):
    sys.argv = ["setup.py", "-q", *commands]
    return runpy.run_path("setup.py", run_name="__main__")

cpp_extension.BuildExtension.build_extensions = build_extensions
"""


def _run_setup(script: str, folder: pathlib.Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _SETUP + script],
        cwd=folder,
        env={**os.environ, "RCNN_EXT_NO_CUDA": "1", "PYTHONPATH": ""},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_nothing_of_an_earlier_build_is_packed_or_loaded(tmp_path):
    """As after a build with CUDA kernels and a renamed Python module."""
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    package = tmp_path / "rcnn_ext"
    native = ("*.so", "*.pyd", "__pycache__", "_build_info.json")
    shutil.copytree(ROOT / "rcnn_ext", package, ignore=shutil.ignore_patterns(*native))
    of_other_python = package / "_selective_search.cpython-399-x86_64-linux-gnu.so"
    stale = [
        tmp_path / "build-lib" / "rcnn_ext" / "_C_cuda.abi3.so",
        tmp_path / "build-lib" / "rcnn_ext" / "old" / "name.py",
        tmp_path / "build-lib" / "benchmarks" / "cuda" / "_atomic.abi3.so",
        package / "_C_cuda.abi3.so",
    ]
    for path in (*stale, of_other_python):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")
    script = (
        "setup('build', '--build-lib', 'build-lib', 'bdist_wheel')\n"
        "setup('build', '--build-lib', 'build-lib', 'build_ext', '--inplace')\n"
    )
    _run_setup(script, tmp_path)

    assert [path for path in stale if path.exists()] == []
    assert of_other_python.exists()
    assert (package / "_build_info.json").exists()
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as contents:
        names = {name for name in contents.namelist() if ".dist-info/" not in name}
    modules = {name.partition(".")[0] for name in names if name.endswith((".so", ".pyd"))}
    assert modules == {"rcnn_ext/_C", "rcnn_ext/_selective_search"}
    assert {"rcnn_ext/__init__.py", "rcnn_ext/_build_info.json", "rcnn_ext/py.typed"} <= names
    assert "rcnn_ext/recipes/faster_rcnn_coco.yaml" in names
    assert {name.partition("/")[0] for name in names} == {"rcnn_ext"}
    assert "rcnn_ext/old/name.py" not in names


_NVCC = """#!/bin/sh
printf 'compute_%s\\n' 75 80 86 89 90 100 103 120
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the nvcc of the test is a shell script")
def test_default_architectures_are_few_and_run_on_all_gpus(tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(_NVCC)
    nvcc.chmod(0o755)
    script = (
        "import os\n"
        "os.environ.pop('TORCH_CUDA_ARCH_LIST', None)\n"
        "torch.cuda.is_available = lambda: False\n"
        f"cpp_extension.CUDA_HOME = {str(tmp_path)!r}\n"
        "print(setup('--version')['choose_architectures']())\n"
    )
    architectures = _run_setup(script, ROOT).splitlines()[-1]
    assert len(architectures.split(";")) <= 3
    for capability in ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)):
        assert covers(architectures, capability), capability
