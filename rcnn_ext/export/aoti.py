"""The format ``aoti``: a package of AOTInductor, compiled for the CPU of this machine.

It runs from Python with torch and the operators of this package, and from C++ with LibTorch and the
library of the operators, without Python (``examples/cpp``).
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from typing import cast

import torch

from rcnn_ext.data.annotations import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.export.format import ExportOptions, Format
from rcnn_ext.export.trace import trace_detector
from rcnn_ext.files import replacing
from rcnn_ext.models.detector import Detector
from rcnn_ext.predict.checkpoint import ENTRY, SavedDetector, describe
from rcnn_ext.predict.exported.model import ModelFacts
from rcnn_ext.predict.exported.package import METADATA


def _write(saved: SavedDetector, path: Path, options: ExportOptions) -> None:
    detector = cast(Detector, saved.build(torch.device("cpu")))
    program = trace_detector(detector, options.size)
    facts = ModelFacts.of(detector, options.size)
    entry = describe(saved.recipe, saved.classes, saved.step, saved.state)[ENTRY]
    metadata = {
        METADATA: json.dumps({"entry": entry, "facts": facts.as_dict()}),
        **_metadata_for_programs(facts, saved.classes),
    }
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "model.pt2"
        _compile(program, compiled, metadata)
        with replacing(path) as temporary:
            _copy_without_sources(compiled, temporary)


def _metadata_for_programs(facts: ModelFacts, classes: ClassList) -> dict[str, str]:
    """Return what a program in C++ has to know, each in a line of its own, to be read as it is."""
    if facts.fixed_size is None:
        sizes = {"min_size": facts.min_size, "max_size": facts.max_size}
    else:
        width, height = facts.fixed_size
        sizes = {"fixed_width": width, "fixed_height": height}
    names = {f"class.{i}": name for i, name in enumerate(classes.names, 1)}
    return {**{key: str(value) for key, value in sizes.items()}, **names}


def _compile(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    """Compile a program to a package.

    Raises:
        UserError: There is no C++ compiler.
    """
    from torch._inductor import aoti_compile_and_package, exc

    try:
        aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": metadata},
        )
    except Exception as error:
        if not isinstance(_root_cause(error), exc.InvalidCxxCompiler):
            raise
        raise UserError(
            "the format aoti needs a C++ compiler, and none was found: install g++, or name one in "
            "the environment variable CXX"
        ) from error


def _root_cause(error: BaseException) -> BaseException:
    """Return the error that Inductor wrapped, or the error itself."""
    inner = getattr(error, "inner_exception", None) or error.__cause__
    return error if inner is None else _root_cause(inner)


def _copy_without_sources(package: Path, target: Path) -> None:
    """Copy a package without the C++ that it was compiled from.

    It is not needed, and its comments name folders of this machine. PyTorch's loader derives other
    names from those of the sources, so the entries stay, empty.
    """
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(target, "w") as copy:
        for item in source.infolist():
            copy.writestr(item, b"" if item.filename.endswith(".cpp") else source.read(item))


FORMAT = Format(
    "aoti",
    ".pt2",
    "code that AOTInductor compiled for the CPU of this machine, to run from Python or C++",
    _write,
)
