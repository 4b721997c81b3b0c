"""Run the CPU kernels under sanitizers: of addresses and undefined behavior, and of threads.

Builds ``_C`` and ``_selective_search`` with the sanitizers in a copy of the package under
``build/sanitize``. Under AddressSanitizer and UndefinedBehaviorSanitizer it runs ``tests/ops`` and
``tests/selective_search``; under ThreadSanitizer it calls all operators from eight threads, each of
which has one thread of OpenMP, since libgomp synchronizes its own in ways that the sanitizer does
not see. CUDA kernels are left out: the emulator has a sanitized build of its own.

Usage: sanitize.py [address | thread]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "sanitize"
FLAGS = {
    "address": "-fsanitize=address,undefined -fno-sanitize-recover=undefined "
    "-fno-omit-frame-pointer -O1",
    "thread": "-fsanitize=thread -fno-omit-frame-pointer -O1",
}
# The sanitizer looks for what throws exceptions when it is loaded, before Python loads that.
LIBRARIES = {
    "address": ("libasan.so", "libstdc++.so.6"),
    "thread": ("libtsan.so", "libstdc++.so.6"),
}
OPTIONS = {
    # Python and torch hold memory for good, on purpose.
    "address": {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"},
    # Python and torch are not compiled for it, and what they synchronize is not seen.
    "thread": {
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=0:exitcode=66",
        "OMP_THREAD_LIMIT": "1",
    },
}
_PYTEST = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider")
RUNS = {
    "address": (
        # torch.compile starts compilers, which do not care to be preloaded.
        (*_PYTEST, "tests/ops", "-k", "cpu and not compile"),
        # What runs in processes of its own and through the command line is the same code again.
        (*_PYTEST, "tests/selective_search", "--ignore=tests/selective_search/test_cache.py"),
    ),
    "thread": (("-m", "tests.attack", "--only", "threads", "--minutes", "2"),),
}


def build(kind: str) -> Path:
    """Copy the package and build it with a sanitizer; return the folder of the copy."""
    folder = WORK / kind
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("csrc", "rcnn_ext", "tests"):
        shutil.rmtree(folder / name, ignore_errors=True)
        ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build_info.json")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    environment = {**os.environ, "RCNN_EXT_NO_CUDA": "1", "RCNN_EXT_CXX_FLAGS": FLAGS[kind]}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return folder


def run(kind: str, folder: Path) -> int:
    """Run what a sanitizer looks at; return 0 if it found nothing."""
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in LIBRARIES[kind]
    ]
    environment = {
        **os.environ,
        **OPTIONS[kind],
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": str(folder),
    }
    failed = 0
    for arguments in RUNS[kind]:
        command = [sys.executable, *arguments]
        failed |= subprocess.run(command, cwd=folder, env=environment).returncode
    return failed


def main() -> int:
    """Build and run with the sanitizers that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kinds", nargs="*", choices=sorted(FLAGS), help="default: all")
    kinds = parser.parse_args().kinds or sorted(FLAGS)
    failed = 0
    for kind in kinds:
        print(f"sanitizer of {kind}", flush=True)
        failed |= run(kind, build(kind))
    return failed


if __name__ == "__main__":
    sys.exit(main())
