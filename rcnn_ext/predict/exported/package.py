"""Packages of AOTInductor (``.pt2`` too), read back: compiled code, with the weights inside it.

Unlike every other format, such a file is a program for the processor. Nothing can check what it
does, so it is loaded only for who says that it may be.
"""

from __future__ import annotations

import json
import platform
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rcnn_ext.errors import UserError
from rcnn_ext.predict.checkpoint import ModelFormatError, read_entry
from rcnn_ext.predict.exported.model import ExportedModel, ModelFacts, naming
from rcnn_ext.predict.exported.program import SavedProgram

# The key of the metadata that holds recipe, classes and facts; others are for programs in C++.
METADATA = "rcnn_ext"
# The folder in the archive that holds compiled code.
COMPILED = "data/aotinductor/"

_METADATA_SUFFIX = "_metadata.json"
# What PyTorch can make use of, ascending.
_CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")


@dataclass(frozen=True)
class SavedPackage(SavedProgram):
    """A detector as a package holds it."""

    def build(self, device: torch.device) -> nn.Module:
        """Load the compiled code, and return it as a model in evaluation mode.

        Raises:
            UserError: The device is not the CPU, which packages are compiled for.
            ModelFormatError: The code cannot be loaded.
        """
        assert self.facts is not None
        if device.type != "cpu":
            raise UserError(
                f"{self.path} was compiled for the CPU: run it with --device cpu, or export the "
                "run as a program (--format pt2), which runs on a GPU too"
            )
        with naming(self.path):
            package = torch._inductor.aoti_load_package(str(self.path))
        return ExportedModel(package, self.facts, self.path)


def is_package(path: Path) -> bool:
    """Return whether a file is an archive with code that AOTInductor compiled."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(COMPILED in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def load_package(path: Path, trust: bool) -> SavedPackage:
    """Read what ``rcnn-ext export --format aoti`` wrote; its code is loaded by ``build``.

    Args:
        path: The file.
        trust: Whether its code may run.

    Raises:
        UserError: It may not.
        ModelFormatError: The file is damaged, was not written by ``rcnn-ext export``, or is for
            another kind of processor or operating system.
    """
    if not trust:
        raise UserError(
            f"{path} is a package of compiled code, which nothing can check and which could do "
            "anything that you can: load it with --trust (in Python trust=True) only if you know "
            "who made it"
        )
    metadata = _read_metadata(path)
    try:
        content = json.loads(metadata[METADATA])
        entry, facts = content["entry"], content["facts"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ModelFormatError(f"{path} was not written by rcnn-ext export") from error
    if not isinstance(entry, dict):
        raise ModelFormatError(f"{path} was not written by rcnn-ext export")
    _check_processor(path, metadata)
    return SavedPackage(
        path=path,
        weights={},
        facts=ModelFacts.from_dict(path, facts),
        **read_entry(path, entry),
    )


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [
                n for n in archive.namelist() if COMPILED in n and n.endswith(_METADATA_SUFFIX)
            ]
            # The parts of a package repeat the metadata.
            metadata = json.loads(archive.read(names[0])) if names else None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RecursionError) as error:
        raise ModelFormatError(f"{path} is damaged: it has no readable metadata") from error
    if not isinstance(metadata, dict):
        raise ModelFormatError(f"{path} was not written by rcnn-ext export")
    return metadata


def _check_processor(path: Path, metadata: dict[str, Any]) -> None:
    """Check that the code is for this machine: of another kind it would crash the process.

    Raises:
        ModelFormatError: It is not.
    """
    remedy = "export the run again on a machine such as this one"
    for key, here in (
        ("AOTI_PLATFORM", sys.platform),
        ("AOTI_MACHINE", platform.machine().lower()),
    ):
        there = str(metadata.get(key, here)).lower()
        if there != here:
            raise ModelFormatError(f"{path} was compiled for {there}, and this is {here}; {remedy}")
    needed = [name for name in _CAPABILITIES if name in str(metadata.get("AOTI_CPU_ISA", ""))]
    has = torch.backends.cpu.get_cpu_capability()
    if needed and has in _CAPABILITIES[: _CAPABILITIES.index(needed[-1])]:
        raise ModelFormatError(
            f"{path} was compiled for processors with {needed[-1]}, and this one has {has} at most "
            f"as PyTorch sees it; {remedy}"
        )
