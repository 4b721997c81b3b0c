"""The weights of a model as ``.safetensors``, with its recipe and classes in the metadata."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from rcnn_ext.files import replacing
from rcnn_ext.predict.checkpoint import ENTRY, ModelFormatError, SavedDetector, describe, read_entry


def write_weights(saved: SavedDetector, path: str | os.PathLike[str]) -> None:
    """Write the weights of a model, for :func:`load_weights`.

    Args:
        saved: The model.
        path: The file to write.
    """
    from safetensors.torch import save_file

    entry = describe(saved.recipe, saved.classes, saved.step, saved.state)[ENTRY]
    tensors = {name: value.contiguous() for name, value in saved.weights.items()}
    # The names of the classes by themselves too, for readers that know nothing of recipes.
    metadata = {ENTRY: json.dumps(entry), "class_names": json.dumps(entry["class_names"])}
    with replacing(Path(path)) as temporary:
        save_file(tensors, temporary, metadata)
        _sort_metadata(temporary)


def load_weights(path: Path) -> SavedDetector:
    """Read what :func:`write_weights` wrote.

    Raises:
        ModelFormatError: It was not.
        Exception: It is damaged; the library raises its own.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if ENTRY not in metadata:
            raise ModelFormatError(f"{path} was not written by rcnn-ext export")
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return SavedDetector(
        path=path, weights=weights, **read_entry(path, json.loads(metadata[ENTRY]))
    )


def _sort_metadata(path: Path) -> None:
    """Order the metadata of a ``.safetensors`` file by name, in place.

    The library writes them in an order of chance. One model is to be one file, whose hash says
    what results were made with.
    """
    with path.open("r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        # The order of tensors is left as it is.
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))
