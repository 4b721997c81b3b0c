"""Export trained models, each format in a module of its own.

Every file holds the recipe and the names of the classes, and ``rcnn-ext detect`` and ``rcnn-ext
eval`` take it like a checkpoint; :mod:`rcnn_ext.predict.exported` reads them.
"""

from __future__ import annotations

import os
from pathlib import Path

from rcnn_ext.errors import UserError
from rcnn_ext.export import aoti, onnx, openvino, pt2, safetensors
from rcnn_ext.export.format import ExportOptions, Format
from rcnn_ext.predict.checkpoint import SavedDetector
from rcnn_ext.predict.exported.program import SavedProgram

__all__ = ["FORMATS", "ExportOptions", "Format", "export", "format_of"]

_ALL = (safetensors.FORMAT, pt2.FORMAT, aoti.FORMAT, onnx.FORMAT, openvino.FORMAT)
FORMATS: dict[str, Format] = {one.name: one for one in _ALL}


def format_of(path: str | os.PathLike[str], name: str | None = None) -> Format:
    """Return the format to write a file in.

    Args:
        path: The file.
        name: Name of the format; None takes the first of which the file has the suffix.

    Raises:
        UserError: There is no such format, or it takes another suffix.
    """
    path = Path(path)
    if name is None:
        for one in FORMATS.values():
            if path.suffix == one.suffix:
                return one
        known = ", ".join(f"{one.suffix} ({one.name})" for one in FORMATS.values())
        raise UserError(f"{path.name} ends in the suffix of no format; there are {known}")
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    if path.suffix != FORMATS[name].suffix:
        raise UserError(
            f"the name of a file in the format {name} ends in {FORMATS[name].suffix}, "
            f"not as {path.name}"
        )
    return FORMATS[name]


def export(
    saved: SavedDetector,
    path: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    format: str | None = None,
) -> None:
    """Write a trained model in a format.

    Args:
        saved: The model.
        path: The file to write.
        options: How; None takes the defaults.
        format: Name of the format, a key of ``FORMATS``; None goes by the suffix of ``path``.

    Raises:
        UserError: There is no such format, it takes another suffix, or an option is none of its;
            or the model is an exported program itself.

    Example:
        >>> export(load_saved("runs/first"), "detector.pt2")
    """
    chosen, options = format_of(path, format), options or ExportOptions()
    if options.pictures and not (chosen.verifies and options.verify):
        raise UserError(f"pictures to verify with are of no use for the format {chosen.name}")
    if options.takes_sizes and not chosen.chooses_sizes:
        raise UserError(
            "--image-sizes is for the formats onnx and openvino: a .pt2 always has the input "
            "image_sizes, and weights have none"
        )
    if isinstance(saved, SavedProgram):
        raise UserError(
            f"{saved.path} is a program already, which cannot be exported again: export the run, "
            "or the checkpoint, that it is from"
        )
    chosen.write(saved, Path(path), options)
