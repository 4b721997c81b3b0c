"""A format that models are exported in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rcnn_ext.predict.checkpoint import SavedDetector


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported. A format refuses what it has no use for.

    Attributes:
        size: (width, height) that every picture is brought to, where the program is to be for one
            size; None makes it for any size.
    """

    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Format:
    """A format that models are exported in.

    Attributes:
        name: Its name on the command line.
        suffix: What the names of its files end in.
        summary: What it is, in one line.
        write: Writes a model to a file, whole or not at all.
    """

    name: str
    suffix: str
    summary: str
    write: Callable[[SavedDetector, Path, ExportOptions], None]
