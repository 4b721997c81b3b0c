"""Files that are compiled once per instruction set parse alone, as an editor parses them."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from torch.utils import cpp_extension

CSRC = Path(__file__).resolve().parents[1] / "csrc"
FILES = sorted(str(path.relative_to(CSRC)) for path in CSRC.glob("*/*-inl.h"))

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def test_files_are_found():
    assert "cpu/simd-inl.h" in FILES


@pytest.mark.parametrize("name", FILES)
def test_parses_alone(name):
    folders = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    finished = subprocess.run(
        [
            *("g++", "-fsyntax-only", "-x", "c++", "-std=c++17"),
            "-DTORCH_TARGET_VERSION=0x020b000000000000",
            *(f"-isystem{folder}" for folder in folders),
            str(CSRC / name),
        ],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
