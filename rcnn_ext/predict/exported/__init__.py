"""Exported models, read back: each is a :class:`SavedDetector`, as a checkpoint is.

:mod:`rcnn_ext.export` writes them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from rcnn_ext.errors import UserError
from rcnn_ext.predict.checkpoint import ModelFormatError, SavedDetector
from rcnn_ext.predict.exported.onnx import load_onnx
from rcnn_ext.predict.exported.openvino import load_openvino
from rcnn_ext.predict.exported.package import is_package, load_package
from rcnn_ext.predict.exported.program import load_program
from rcnn_ext.predict.exported.weights import load_weights
from rcnn_ext.predict.program_file import ProgramError

PACKAGE_SUFFIX = ".pt2"  # as of programs: what is in the archive tells them apart

# How the files of each suffix are read.
READERS: dict[str, Callable[[Path], SavedDetector]] = {
    ".safetensors": load_weights,
    ".pt2": load_program,
    ".onnx": load_onnx,
    ".xml": load_openvino,
}


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Return whether the suffix of a file is that of an exported model."""
    return Path(path).suffix in READERS


def load_exported(path: str | os.PathLike[str], *, trust: bool = False) -> SavedDetector:
    """Read what :func:`rcnn_ext.export.export` wrote.

    Nothing in the file is unpickled or evaluated; see :mod:`rcnn_ext.predict.program_file`. Only
    packages of compiled code run what they hold, and need ``trust``.

    Args:
        path: The file.
        trust: Whether compiled code in it may run.

    Raises:
        UserError: It holds compiled code, and ``trust`` is false.
        ModelFormatError: It is damaged, or was not written by ``rcnn-ext export``, or is a program
            with more in it than that writes.
    """
    path = Path(path)
    try:
        if path.suffix == PACKAGE_SUFFIX and is_package(path):
            return load_package(path, trust)
        return READERS[path.suffix](path)
    except ProgramError as error:
        raise ModelFormatError(str(error)) from error
    except (UserError, ModuleNotFoundError):
        raise
    except Exception as error:
        # Each format has exceptions of its own for damaged files.
        reason = str(error).partition("\n")[0]
        raise ModelFormatError(
            f"{path} was not written by rcnn-ext export, or is damaged: {reason}"
        ) from error
