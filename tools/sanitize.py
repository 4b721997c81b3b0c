"""Run the tests of the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

Builds ``_C`` and ``_selective_search`` with the sanitizers in a copy of the package under
``build/sanitize``, and runs ``tests/ops`` and ``tests/proposals`` against them. CUDA kernels are
left out: the emulator has a sanitized build of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "sanitize"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1"


def main() -> int:
    """Copy, build, test."""
    WORK.mkdir(parents=True, exist_ok=True)
    for name in ("csrc", "rcnn_ext", "tests"):
        shutil.rmtree(WORK / name, ignore_errors=True)
        ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build_info.json")
        shutil.copytree(ROOT / name, WORK / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, WORK / name)
    environment = {**os.environ, "RCNN_EXT_NO_CUDA": "1", "RCNN_EXT_CXX_FLAGS": FLAGS}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=WORK, env=environment, check=True)
    # The sanitizer looks for what throws exceptions when it is loaded, before Python loads that.
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    environment |= {
        "LD_PRELOAD": " ".join(libraries),
        # Python and torch hold memory for good, on purpose.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "PYTHONPATH": str(WORK),
    }
    failed = 0
    for selection in (
        # torch.compile starts compilers, which do not care to be preloaded.
        ["tests/ops", "-k", "cpu and not compile"],
        # What runs in processes of its own and through the command line is the same code again.
        ["tests/selective_search", "--ignore=tests/selective_search/test_cache.py"],
    ):
        tests = [sys.executable, "-m", "pytest", *selection, "-q", "-x", "-p", "no:cacheprovider"]
        failed |= subprocess.run(tests, cwd=WORK, env=environment).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
