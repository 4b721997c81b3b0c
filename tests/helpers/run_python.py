"""Python in a process of its own: to survive a crash, or to import another copy of the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rcnn_ext

# Where the package under test was imported from.
PACKAGE = Path(rcnn_ext.__file__).parent
# From where ``tests`` is imported, beside which no package is when an installed one is tested.
ROOT = Path(__file__).resolve().parents[2]


def run_python(
    script: str | Path, *arguments: str, path: Path | None = None, timeout: float = 240
) -> str:
    """Run a script and return its standard output; a failure shows its messages.

    Args:
        script: the source, or its file.
        arguments: its ``sys.argv[1:]``.
        path: a folder to import from before any other, instead of that of the package under test.
        timeout: seconds.
    """
    program = [str(script)] if isinstance(script, Path) else ["-c", script]
    import_path = [str(path or PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    import_path.append(str(ROOT))
    finished = subprocess.run(
        [sys.executable, *program, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(import_path), "OMP_NUM_THREADS": "1"},
        # Not the folder of the repository, from which "import rcnn_ext" would find the sources.
        cwd=path or Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if finished.returncode != 0:
        # PyTorch prints C++ stack frames after the error message; they are left out.
        messages = [line for line in finished.stderr.splitlines() if not line.startswith("frame #")]
        pytest.fail(
            f"exit status {finished.returncode} (negative: a signal)\n"
            f"{finished.stdout[-300:]}\n" + "\n".join(messages[-25:]),
            pytrace=False,
        )
    return finished.stdout
