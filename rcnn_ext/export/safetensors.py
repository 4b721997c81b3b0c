"""The format ``safetensors``: the weights, for whoever has the code of the models."""

from __future__ import annotations

from pathlib import Path

from rcnn_ext.errors import UserError
from rcnn_ext.export.format import ExportOptions, Format
from rcnn_ext.predict.checkpoint import SavedDetector
from rcnn_ext.predict.exported.weights import write_weights


def _write(saved: SavedDetector, path: Path, options: ExportOptions) -> None:
    if options.size is not None:
        raise UserError("weights have no size of images; --size is for programs, such as .pt2")
    write_weights(saved, path)


FORMAT = Format(
    "safetensors", ".safetensors", "the weights, with recipe and classes in the metadata", _write
)
