"""Build one wheel against the newest torch and run the operator tests under other torches.

The native modules use the LibTorch stable ABI, so the wheel must load under torch 2.11, the oldest
that it supports, and under a torch without CUDA; and the source must compile with the headers of
torch 2.11, which declare less. Each torch gets a virtual environment under
``build/compat``; the package is installed from the wheel, and the tests run outside the source.
A third environment has the CPU-only torch and torchvision from PyPI, whose binary does not load
there: ``rcnn_ext.torchvision_compat`` has to make it run.

A CPU-only torch comes from an index or a folder of its own, which pip has to be told:

    python tools/test_compat.py --cpu-torch "torch==2.13.0+cpu --find-links FOLDER"
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "compat"


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command, and stop with its exit code where it fails."""
    print("+", shlex.join(map(str, command)), flush=True)
    subprocess.run(list(map(str, command)), cwd=cwd, check=True)


def build_wheel(name: str, python: str | Path = sys.executable) -> Path:
    """Build a wheel of the source tree against the torch of an interpreter, in its own folder."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    pip = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_environment(name: str, requirements: list[list[str]]) -> Path:
    """Make a virtual environment with some requirements, and return its Python."""
    folder = WORK / name
    python = folder / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", folder)
    for requirement in requirements:
        run(python, "-m", "pip", "install", "--quiet", *requirement)
    return python


def copy_tests(folder: Path) -> None:
    """Copy the operator tests, what they import and pytest's settings, away from the source.

    Args:
        folder: The folder that gets ``tests`` and ``pyproject.toml``.
    """
    tests = folder / "tests"
    shutil.rmtree(tests, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("helpers", "ops", "attack", "fuzz"):
        shutil.copytree(ROOT / "tests" / name, tests / name, ignore=ignored)
    for name in ("__init__.py", "conftest.py"):
        shutil.copy(ROOT / "tests" / name, tests / name)
    shutil.copy(ROOT / "pyproject.toml", folder / "pyproject.toml")


def test(python: Path, wheel: Path) -> None:
    """Run the operator tests on an installed wheel, away from the source so that it is imported."""
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
    folder = python.parents[1]
    copy_tests(folder)
    show = "import torch, rcnn_ext._extension as e; print(torch.__version__, e.status())"
    run(python, "-c", show, cwd=folder)
    # The emulator compiles sources, which are not part of an installation.
    subset = ["-m", "not slow", "-k", "not emulated", "-q", "-x", "--rootdir", folder]
    run(python, "-m", "pytest", *subset, "tests/ops", cwd=folder)


def test_torchvision(python: Path, wheel: Path) -> None:
    """Run torchvision, whose binary does not load, on the operators of an installed wheel."""
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
    fails = "import subprocess, sys\nfailed = subprocess.run([sys.executable, '-c', "
    fails += "'import torchvision'], capture_output=True).returncode\n"
    fails += "sys.exit(0 if failed else 'torchvision loads here: nothing to test')"
    run(python, "-c", fails)
    run(python, ROOT / "tests" / "helpers" / "without_binary.py", cwd=python.parents[1])


def main() -> int:
    """Build the wheel, make the environments and test in each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--cpu-torch",
        default=os.environ.get("RCNN_EXT_CPU_TORCH", "torch==2.13.0+cpu"),
        help="what pip installs as CPU-only torch, with options",
    )
    parser.add_argument(
        "--torchvision", default="torchvision==0.28.*", help="what does not load beside that torch"
    )
    parser.add_argument(
        "--only", choices=["oldest", "cpu", "torchvision"], help="one environment of the three"
    )
    parser.add_argument("--wheel", type=Path, help="test this wheel instead of building one")
    arguments = parser.parse_args()
    tools = ["pytest", "numpy", "setuptools>=77", "wheel", "ninja", "pybind11"]
    environments = {
        "oldest": [["torch==2.11.*", "torchvision==0.26.*", *tools]],
        "cpu": [[*shlex.split(arguments.cpu_torch), *tools]],
        "torchvision": [
            [*shlex.split(arguments.cpu_torch), "numpy", "pillow", "pydantic>=2"],
            ["--no-deps", arguments.torchvision],
        ],
    }
    start = time.monotonic()
    try:
        wheel = arguments.wheel or build_wheel("wheel")
        for name, requirements in environments.items():
            if arguments.only in (None, name):
                python = make_environment(name, requirements)
                (test_torchvision if name == "torchvision" else test)(python, wheel)
                if name == "oldest":
                    test(python, build_wheel("oldest-wheel", python))
    except subprocess.CalledProcessError as error:
        print(f"test-compat: failed: {shlex.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    print(f"test-compat: {wheel.name} passes under every torch ({time.monotonic() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
