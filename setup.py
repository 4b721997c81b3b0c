"""Build the native modules; everything else about the package is in pyproject.toml.

``_C`` (CPU kernels, and the schemas of all operators) and ``_C_cuda`` (CUDA kernels) use the
LibTorch stable ABI only, and nothing of Python: a build against one torch runs under every torch
from 2.11 on, and in programs without Python. ``_selective_search`` is pybind11, without torch.

Environment variables:
  FORCE_CUDA=1          fail rather than build without CUDA kernels
  RCNN_EXT_NO_CUDA=1    build no CUDA kernels even where nvcc is found
  TORCH_CUDA_ARCH_LIST  architectures to compile for, such as "8.0;9.0+PTX"
  RCNN_EXT_BENCHMARKS=1 also build benchmarks/cuda, the atomic variant that the CUDA kernels are
                        compared with (for a build in place)
  MAX_JOBS              maximum number of compilers at once
  RCNN_EXT_CXX_FLAGS    flags to add for C++ compiler and linker, such as "-fsanitize=address"
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from pybind11.setup_helpers import Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent
CSRC = Path("csrc")
# The choice of the instruction set at run time, shared by the CPU kernels and selective search.
INSTRUCTION_SETS = str(CSRC / "cpu" / "isa_cpu.cpp")
TORCH_TARGET_VERSION = "0x020b000000000000"  # torch 2.11
# Turing, Ampere and Ada (code for 8.0 also runs on 8.6 and 8.9), Hopper. The driver of a later GPU
# compiles the PTX of the last at its first use. Each takes its share of the build time.
DEFAULT_ARCHITECTURES = ["7.5", "8.0", "9.0"]
MSVC = sys.platform == "win32"

# Contraction into fused multiply-adds would change sampling positions and IoUs in the last bit, and
# with them the agreement between CPU, CUDA and the reference.
CXX_FLAGS = (
    ["/O2", "/fp:precise", "/std:c++17"]
    if MSVC
    else [
        "-O3",
        "-std=c++17",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fvisibility=hidden",
        "-g0",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
    ]
)
EXTRA_FLAGS = os.environ.get("RCNN_EXT_CXX_FLAGS", "").split()
CXX_FLAGS += EXTRA_FLAGS
NVCC_FLAGS = ["-O3", "-std=c++17", "--fmad=false", "--expt-relaxed-constexpr", "--extended-lambda"]
DEFINES = [
    ("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION),
]


def load_csrc_hash():
    """Load the hash function of the package without importing the package."""
    spec = importlib.util.spec_from_file_location(
        "_source_hash", ROOT / "rcnn_ext" / "_source_hash.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.csrc_hash


def wants(variable: str) -> bool:
    """Return whether an environment variable is set to something other than 0."""
    return os.environ.get(variable, "0") not in ("", "0")


def nvcc_version() -> tuple[int, int] | None:
    """Return major and minor version of the nvcc that torch would use, or None."""
    home = cpp_extension.CUDA_HOME
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None
    if nvcc is None:
        return None
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def cuda_library_directories() -> list[str]:
    """Find folders of the CUDA runtime: torch knows only ``lib64`` of its CUDA_HOME."""
    home = Path(cpp_extension.CUDA_HOME)
    # nvcc may be a link or a wrapper far from its toolkit; --dryrun prints the toolkit as TOP.
    plan = subprocess.run(
        [str(home / "bin" / "nvcc"), "--dryrun", "-x", "cu", os.devnull],
        capture_output=True,
        text=True,
    )
    roots = [home, *(Path(top) for top in re.findall(r"TOP=(\S+)", plan.stderr + plan.stdout))]
    found = [root / name for root in roots for name in ("lib64", "lib", "lib/x64")]
    return [str(path.resolve()) for path in found if any(path.glob("*cudart*"))]


def why_no_cuda() -> str | None:
    """Return the reason why the CUDA kernels can't be built, or None."""
    if wants("RCNN_EXT_NO_CUDA"):
        return "RCNN_EXT_NO_CUDA is set"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} of the build environment is CPU-only"
    found = nvcc_version()
    if found is None:
        return "no nvcc found (set CUDA_HOME to a CUDA toolkit)"
    if found[0] != int(torch.version.cuda.split(".")[0]):
        return (
            f"nvcc {found[0]}.{found[1]} and torch's CUDA {torch.version.cuda} differ in the "
            "major version"
        )
    return None


def choose_architectures() -> str:
    """Return the architectures to compile for.

    They are TORCH_CUDA_ARCH_LIST, else the GPUs of this machine, else the defaults that nvcc knows.
    """
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return os.environ["TORCH_CUDA_ARCH_LIST"]
    if torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        architectures = [f"{major}.{minor}" for major, minor in sorted(found)]
    else:
        nvcc = str(Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc")
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
        architectures = [
            a for a in DEFAULT_ARCHITECTURES if f"compute_{a.replace('.', '')}" in known.split()
        ]
    return ";".join(architectures) + "+PTX"


def operator_sources(suffix: str) -> list[str]:
    """Return the operators' files for one device."""
    folders = sorted(set(CSRC.iterdir()) - {CSRC / "cpu", CSRC / "cuda"})
    return [str(file) for folder in folders for file in sorted(folder.glob(f"*{suffix}"))]


def headers() -> list[str]:
    """Return all headers: a change in one rebuilds the modules."""
    return sorted(str(p) for p in CSRC.rglob("*") if p.suffix in (".h", ".cuh"))


def cuda_extension(name: str, files: list[str]) -> Extension:
    """Return a module of CUDA kernels."""
    return cpp_extension.CUDAExtension(
        name,
        files,
        depends=headers(),
        define_macros=[*DEFINES, ("USE_CUDA", None)],
        library_dirs=cuda_library_directories(),
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
        py_limited_api=True,
    )


def native_modules() -> tuple[list, dict[str, str]]:
    """Return the extensions to build, and by module what is built or why it is not."""
    extensions = [
        cpp_extension.CppExtension(
            "rcnn_ext._C",
            [*operator_sources("_cpu.cpp"), INSTRUCTION_SETS],
            depends=headers(),
            define_macros=DEFINES,
            extra_compile_args={"cxx": CXX_FLAGS},
            extra_link_args=EXTRA_FLAGS,
            py_limited_api=True,
        )
    ]
    report = {"_C": "CPU kernels"}
    reason = why_no_cuda()
    if reason is None:
        architectures = choose_architectures()
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures
        extensions.append(cuda_extension("rcnn_ext._C_cuda", operator_sources("_cuda.cu")))
        if wants("RCNN_EXT_BENCHMARKS"):
            compared = sorted(str(path) for path in Path("benchmarks/cuda").glob("*.cu"))
            extensions.append(cuda_extension("benchmarks.cuda._atomic", compared))
        report["_C_cuda"] = f"CUDA kernels for {architectures}"
    elif wants("FORCE_CUDA"):
        raise SystemExit(f"rcnn_ext: FORCE_CUDA is set, but {reason}")
    else:
        report["_C_cuda"] = f"not built: {reason}"
    selective_search = sorted(str(path) for path in (CSRC / "selective_search").glob("*.cpp"))
    extensions.append(
        Pybind11Extension(
            "rcnn_ext._selective_search",
            [*selective_search, INSTRUCTION_SETS],
            depends=headers(),
            extra_compile_args=list(CXX_FLAGS),
            extra_link_args=EXTRA_FLAGS,
        )
    )
    report["_selective_search"] = "selective search"
    return extensions, report


def write_atomically(path: Path, text: str) -> None:
    """Write a file atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def unlink_files(folder: Path, keep: set[Path]) -> None:
    """Remove all files below a folder but those to keep, which are resolved paths."""
    for path in folder.rglob("*"):
        if path.is_file() and path.resolve() not in keep:
            path.unlink()


class BuildPython(build_py):
    """setuptools' ``build_py`` in a build folder where earlier builds leave nothing behind.

    All that is in the build folder goes into the wheel, also a CUDA module that this build leaves
    out, or a Python module that was renamed since.
    """

    def run(self) -> None:
        """Copy the Python files, and remove those that are not of this build."""
        super().run()
        folder = Path(self.build_lib)
        if self.editable_mode or folder.resolve() == ROOT:
            return
        # build_ext may have run before.
        native = self.get_finalized_command("build_ext").get_outputs()
        made = [*self.get_outputs(), *native, folder / "rcnn_ext" / "_build_info.json"]
        keep = {Path(path).resolve() for path in made}
        for top in ("rcnn_ext", "benchmarks"):
            unlink_files(folder / top, keep)


class BuildExtension(cpp_extension.BuildExtension):
    """torch's ``build_ext``, which also records and prints what it built."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return the functions that MSVC's linker has to export: no ``PyInit`` of the libraries."""
        return ext.export_symbols if ext.py_limited_api else super().get_export_symbols(ext)

    def build_extensions(self) -> None:
        """Build, then write ``_build_info.json`` beside the modules."""
        super().build_extensions()
        info = {
            "csrc_hash": load_csrc_hash()(ROOT / CSRC),
            "torch": torch.__version__,
            "torch_target": TORCH_TARGET_VERSION,
            "cuda": torch.version.cuda if why_no_cuda() is None else None,
            "arch_list": os.environ.get("TORCH_CUDA_ARCH_LIST") if why_no_cuda() is None else None,
            "modules": MODULE_REPORT,
        }
        package = Path(self.build_lib) / "rcnn_ext"
        package.mkdir(parents=True, exist_ok=True)
        write_atomically(package / "_build_info.json", json.dumps(info, indent=2) + "\n")
        for name, line in MODULE_REPORT.items():
            print(f"rcnn_ext: {name}: {line}")

    def copy_extensions_to_source(self) -> None:
        """Copy the modules of an in-place build and their record into the package."""
        super().copy_extensions_to_source()
        package = ROOT / "rcnn_ext"
        # A module that this build leaves out would be loaded, whatever sources it is from.
        for name in MODULE_REPORT.keys() - {e.name.rpartition(".")[2] for e in self.extensions}:
            for path in package.glob(f"{name}.*"):
                if path.suffix in (".so", ".pyd"):
                    path.unlink()
        built = Path(self.build_lib) / "rcnn_ext" / "_build_info.json"
        write_atomically(package / "_build_info.json", built.read_text())


EXTENSIONS, MODULE_REPORT = native_modules()

setup(
    ext_modules=EXTENSIONS,
    # -j of ninja comes from MAX_JOBS
    cmdclass={
        "build_ext": BuildExtension.with_options(use_ninja=True),
        "build_py": BuildPython,
    },
)
