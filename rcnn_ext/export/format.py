"""A format that models are exported in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rcnn_ext.predict.checkpoint import SavedDetector


def _say_nothing(line: str) -> None:
    """Ignore a line of a report."""


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported. A format refuses what it has no use for.

    Attributes:
        size: (width, height) that every picture is brought to, where the program is to be for one
            size; None makes it for any size.
        verify: Whether to run what was exported, in its own runtime, and to compare it with the
            model, in formats that need another runtime than PyTorch.
        pictures: Picture files, and folders of such, to verify with; without any, pictures are
            made.
        takes_sizes: Whether onnx and openvino files have the input ``image_sizes``, for batches of
            padded images of several sizes; the other programs always have it.
        report: Is told results in lines of text.
    """

    size: tuple[int, int] | None = None
    verify: bool = True
    pictures: tuple[Path, ...] = ()
    takes_sizes: bool = False
    report: Callable[[str], None] = _say_nothing


@dataclass(frozen=True)
class Format:
    """A format that models are exported in.

    Attributes:
        name: Its name on the command line.
        suffix: What the names of its files end in.
        summary: What it is, in one line.
        write: Writes a model to a file, whole or not at all.
        verifies: Whether ``write`` verifies what it writes, in the runtime that it is for.
        chooses_sizes: Whether ``takes_sizes`` is a choice.
    """

    name: str
    suffix: str
    summary: str
    write: Callable[[SavedDetector, Path, ExportOptions], None]
    verifies: bool = False
    chooses_sizes: bool = False
