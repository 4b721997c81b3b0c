"""The source distribution has what a build needs, and no tests."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tarfile

import pytest

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
