"""Build the CUDA kernels for the CPU emulator: the same `.cu` files, as plain C++.

Needs g++ and the headers of torch, no CUDA toolkit. Every object is kept in ``build/emulation``
under a hash of all that went into it, so a second call compiles only what has changed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
CACHE = REPOSITORY / "build" / "emulation"
EMULATOR = REPOSITORY / "tests" / "emulation" / "csrc"

# As setup.py builds the kernels: no contraction into fused multiply-adds.
_FLAGS = [
    *("-std=c++17", "-O1", "-g0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"),
    "-fno-ipa-icf",  # two kernels of one machine code would share their static variables' name
    *("-DRCNN_EMULATION", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
    *("-Wall", "-Wextra", "-Wno-unused-parameter"),
    *("-Wno-sign-compare", "-Wno-unknown-pragmas"),  # nvcc has no opinion on these
]
# Kernels only; tests/emulation/csrc/undefined_behavior.cpp answers.
_CHECKS = (
    "-fsanitize=alignment,bounds,bool,null,shift,integer-divide-by-zero,"
    "signed-integer-overflow,float-cast-overflow"
)
# The program goes on after a report, which becomes an exception at the end of the launch.
_ADDRESS = ["-fsanitize=address", "-fsanitize-recover=address"]


class BuildError(RuntimeError):
    """A compiler failed; holds its message."""


def why_not() -> str | None:
    """Return why the emulator can't be built on this machine, or None if it can."""
    if not sys.platform.startswith("linux"):
        return "the emulator reads ELF symbol tables: Linux only"
    if shutil.which("g++") is None:
        return "no g++ found"
    return None


def address_sanitizer_environment() -> dict[str, str]:
    """Return the environment of a process that loads a build under AddressSanitizer.

    Raises:
        BuildError: This g++ has no AddressSanitizer.
    """
    # The C++ library too: AddressSanitizer looks for its functions when the process starts.
    libraries = [_compiler_library("libasan.so"), _compiler_library("libstdc++.so")]
    # Python and torch keep what they allocate until they exit, and their own mismatches are not
    # what is looked for here.
    options = "detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0"
    # Every error of every kernel becomes an exception, also a second one at the same place.
    options += ":halt_on_error=0:suppress_equal_pcs=0"
    return {**os.environ, "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": options}


def _compiler_library(name: str) -> str:
    command = ["g++", f"-print-file-name={name}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(answer):
        raise BuildError(f"g++ has no {name}")
    return os.path.realpath(answer)


def kernel_sources(csrc: Path) -> list[Path]:
    """Return every operator's CUDA file."""
    return sorted(csrc.glob("*/*_cuda.cu"))


def benchmark_sources() -> list[Path]:
    """Return the CUDA files of kernels that those of the package are compared with."""
    return sorted((REPOSITORY / "benchmarks" / "cuda").glob("*.cu"))


def build(
    name: str = "kernels",
    *,
    csrc: Path = REPOSITORY / "csrc",
    kernels: Sequence[Path] | None = None,
    address_sanitizer: bool = False,
    flags: Iterable[str] = (),
) -> Path:
    """Compile and link kernels with the emulator, and return the path of the library.

    Args:
        name: Stem of the library's name.
        csrc: Folder of the native sources.
        kernels: CUDA files; by default those of the operators.
        address_sanitizer: Build for AddressSanitizer; such a library is loaded only under
            ``address_sanitizer_environment()``.
        flags: Additional flags for the compiler.

    Raises:
        BuildError: The compiler failed, or there is none.
    """
    reason = why_not()
    if reason is not None:
        raise BuildError(reason)
    kernels = kernel_sources(csrc) if kernels is None else kernels
    if not kernels:
        raise BuildError(f"no CUDA sources in {csrc}")
    with _one_at_a_time():
        return _build(name, csrc, kernels, address_sanitizer, flags)


def _build(
    name: str, csrc: Path, kernels: Sequence[Path], address_sanitizer: bool, flags: Iterable[str]
) -> Path:
    common = [*_FLAGS, *flags, *(_ADDRESS if address_sanitizer else [])]
    common += ["-isystem", str(_torch_root() / "include"), "-I", str(EMULATOR)]
    headers = _hash(
        p
        for folder in (csrc, EMULATOR)
        for p in sorted(folder.rglob("*"))
        if p.suffix in (".h", ".cuh") and p.is_file()
    )
    # No toolkit is needed, and none is used where there is one: tests/emulation/csrc comes first.
    jobs = [([*common, _CHECKS, "-x", "c++"], source) for source in kernels]
    jobs += [(common, source) for source in sorted(EMULATOR.glob("*.cpp"))]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: _compile(*job, headers), jobs))

    digest = hashlib.sha256("\n".join(o.name for o in objects).encode()).hexdigest()[:16]
    library = CACHE / f"{name}-{digest}.so"
    if not library.exists():
        lib = str(_torch_root() / "lib")
        link = ["g++", "-shared", *(_ADDRESS[:1] if address_sanitizer else [])]
        link += [*map(str, objects), "-L", lib, f"-Wl,-rpath,{lib}", "-Wl,-z,defs"]
        _write_by(library, [*link, "-ltorch_cpu", "-lc10", "-ldl"])
    return library


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold a lock, so that parallel test processes wait for a build and do not repeat it."""
    import fcntl  # not on Windows, which why_not() turns away

    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
        yield


@functools.cache
def _torch_root() -> Path:
    import torch

    return Path(torch.__file__).parent


@functools.cache
def _versions() -> str:
    import torch

    compiler = subprocess.run(["g++", "-v"], capture_output=True, text=True, check=True).stderr
    return f"{compiler} torch {torch.__version__}"


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _compile(flags: list[str], source: Path, headers: str) -> Path:
    # The folder of the sources is left out, so that a copy of them shares the objects.
    relevant = [f for f in flags if not f.startswith(os.sep)]
    key = "\n".join([_versions(), *relevant, headers, _hash([source])])
    target = CACHE / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.o"
    if not target.exists():
        _write_by(target, ["g++", *flags, "-c", str(source)])
    return target


def _write_by(target: Path, command: list[str]) -> None:
    """Run ``command -o target`` so that others see the whole file or none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        done = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
        os.replace(temporary, target)


if __name__ == "__main__":
    print(build())
    if "--address-sanitizer" in sys.argv:
        print(build(address_sanitizer=True))
