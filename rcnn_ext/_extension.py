"""Loading of the native modules, and their state.

Loading a module registers its kernels, and the operators' schemas, with PyTorch's dispatcher;
nothing else in the package needs to know whether it is there. Where it is not, the dispatcher runs
the reference.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.machinery
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rcnn_ext import _operator_library

# Forces the CPU kernels of one instruction set: "baseline", "avx2" or "avx512".
ISA_VARIABLE = "RCNN_EXT_ISA"
# Not named in code: the native modules read RCNN_EXT_DISABLE_CPU_FEATURES once, a list such as
# "f16c,avx512vl" of features that the processor is then taken not to have (csrc/cpu/isa.h).


@dataclass(frozen=True)
class ModuleStatus:
    """The state of a native module.

    Attributes:
        name: ``_C``, ``_C_cuda`` or ``_selective_search``.
        loaded: Whether its kernels can be used.
        path: The file, or None.
        reason: Reason why it is not loaded, or None.
        hidden: Its file in an installed package that this source checkout hides from Python; None
            where there is none, or where the module is not missing here.
    """

    name: str
    loaded: bool
    path: Path | None
    reason: str | None
    hidden: Path | None = None


def source_checkout() -> Path | None:
    """Return the source checkout that this package stands in, or None where it is installed."""
    root = Path(__file__).parents[1]
    return root if (root / "csrc" / "core").is_dir() else None


def _find_elsewhere(full_name: str) -> Path | None:
    """Find a native module in the other copies of this package that Python could import."""
    package = full_name.rpartition(".")[0]
    folders = [os.path.join(entry, package) for entry in sys.path]
    spec = importlib.machinery.PathFinder.find_spec(full_name, folders)
    if spec is None or spec.origin is None:
        spec = importlib.util.find_spec(full_name)  # an editable installation has its own finder
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _reason_to_skip(name: str) -> str | None:
    if name == "_C_cuda" and torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    return None


@functools.cache
def _load(name: str) -> ModuleStatus:
    full_name = f"{__package__}.{name}"
    # Beside this file and nowhere else: an editable installation elsewhere offers its own.
    spec = importlib.machinery.PathFinder.find_spec(full_name, [str(Path(__file__).parent)])
    path = Path(spec.origin) if spec is not None and spec.origin is not None else None
    reason = _reason_to_skip(name)
    if reason is not None:
        return ModuleStatus(name, False, path, reason)
    if path is None:
        checkout = source_checkout()
        hidden = None if checkout is None else _find_elsewhere(full_name)
        if hidden is not None:
            reason = (
                f"not built in the source checkout {checkout}, which Python imports in place of "
                f"the compiled {hidden.parent}; start Python in another folder, or run "
                "`pip install -e .` in the checkout"
            )
            return ModuleStatus(name, False, None, reason, hidden)
        recorded = (build_info() or {}).get("modules", {}).get(name, "not built")
        # A module that the build did make is missing for another reason than the recorded one.
        reason = recorded if recorded.startswith("not built") else "built, but its file is missing"
        return ModuleStatus(name, False, None, reason)
    try:
        if name == "_selective_search":
            module = importlib.import_module(full_name)
            module.instruction_set()  # raises for an unknown name in RCNN_EXT_DISABLE_CPU_FEATURES
        else:
            library = _operator_library.load(path)
            if name == "_C":
                _start_cpu_kernels(library)
    except (ImportError, OSError) as error:
        # A torch older than the stable ABI it was built for, or another CUDA major version.
        return ModuleStatus(name, False, path, f"cannot be loaded: {error}")
    return ModuleStatus(name, True, path, None)


# Set once _C is loaded.
_cpu_instruction_sets: _operator_library.InstructionSets | None = None


def _start_cpu_kernels(library: ctypes.CDLL) -> None:
    """Let the kernels of ``_C`` use the instruction set of ``RCNN_EXT_ISA``, where it is set."""
    global _cpu_instruction_sets
    sets = _operator_library.InstructionSets(library)
    wanted = os.environ.get(ISA_VARIABLE)
    if wanted:
        try:
            sets.use(wanted)
        except ValueError as error:
            raise ValueError(f"{ISA_VARIABLE}: {error}") from None
    _cpu_instruction_sets = sets


@functools.cache
def build_info() -> dict[str, Any] | None:
    """Return the record of the build (hash of the sources, torch, CUDA), or None."""
    path = Path(__file__).with_name("_build_info.json")
    try:
        info = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return info if isinstance(info, dict) else None


def load_operators() -> None:
    """Register the schemas and kernels of ``_C`` and, where torch has CUDA, of ``_C_cuda``."""
    _load("_C")
    _load("_C_cuda")


@functools.cache
def warn_of_hidden_kernels(device_type: str) -> None:
    """Warn, once per process, where a source checkout hides the kernels for a type of device.

    Python that is started in a checkout imports the package there, compiled or not. Without a word
    the reference would run in place of the kernels that have just been installed.
    """
    name = "_C_cuda" if device_type == "cuda" else "_C"
    module = _load(name)
    if module.hidden is not None:
        warnings.warn(
            f"{__package__}.{name} is {module.reason}. Until then operators run in pure PyTorch, "
            "many times slower.",
            RuntimeWarning,
            stacklevel=2,
        )


def status() -> dict[str, ModuleStatus]:
    """Return the state of each native module, by name."""
    return {name: _load(name) for name in ("_C", "_C_cuda", "_selective_search")}


def _instruction_sets() -> _operator_library.InstructionSets | None:
    """Load the CPU kernels, and return the choice of their instruction set; None without them."""
    _load("_C")
    return _cpu_instruction_sets


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that the CPU kernels can use here, the best last.

    Empty where the CPU kernels are not loaded.
    """
    sets = _instruction_sets()
    return () if sets is None else sets.available()


def instruction_set() -> str | None:
    """Return the instruction set that the CPU kernels use, or None where they are not loaded."""
    sets = _instruction_sets()
    return None if sets is None else sets.current()


def has_bf16_products() -> bool:
    """Return whether the CPU kernels use the processor's dot products of bfloat16."""
    sets = _instruction_sets()
    return sets is not None and sets.has_bf16_products()


@contextlib.contextmanager
def use_instruction_set(name: str) -> Iterator[None]:
    """Run the CPU kernels of one instruction set in a block of code, in all threads.

    All sets give equal results, but for the last bits of ``ops.conv_winograd``; this is for tests
    and measurements. The environment variable
    ``RCNN_EXT_ISA`` chooses for a whole process, and ``RCNN_EXT_DISABLE_CPU_FEATURES`` takes
    single features of the processor away (such as ``f16c,avx512vl``), and with them the
    instruction sets that need them.

    Args:
        name: One of :func:`instruction_sets`.

    Raises:
        ValueError: The name is unknown, or this processor lacks the instruction set.
        RuntimeError: The CPU kernels are not loaded; the message says why.
    """
    sets = _instruction_sets()
    if sets is None:
        raise RuntimeError(f"_C is {_load('_C').reason}")
    before = sets.current()
    sets.use(name)
    try:
        yield
    finally:
        sets.use(before)
