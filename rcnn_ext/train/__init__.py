"""Train a model by a recipe, with Lightning.

Lightning is imported with the first use of :func:`train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Interrupted", "TrainingResult", "train"]

if TYPE_CHECKING:
    from rcnn_ext.train.run import Interrupted, TrainingResult, train
else:
    # Hidden from type checkers, which would otherwise accept any name.
    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from rcnn_ext.train import run

        return getattr(run, name)


def __dir__() -> list[str]:
    return sorted(__all__)
