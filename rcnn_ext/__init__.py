"""R-CNN operators with native CPU and CUDA kernels, and the models built on them.

``import rcnn_ext`` imports nothing else, not even torch, unless the environment variable
``RCNN_EXT_ACCELERATE`` asks for :func:`rcnn_ext.accelerate`; each part is imported when it is first
used:

- :mod:`rcnn_ext.ops`: The operators, under torchvision's names.
- :mod:`rcnn_ext.onnx`: The operators in ONNX, for exporting models of your own.
- :mod:`rcnn_ext.models`: Faster R-CNN, Fast R-CNN and a localizer.
- :mod:`rcnn_ext.data`: Annotation formats, data sets and augmentation.
- :mod:`rcnn_ext.selective_search`: Object proposals without a network.
- :mod:`rcnn_ext.train`: Training by a recipe.
- :func:`rcnn_ext.accelerate`: torchvision's own operators and detectors on these kernels.
- :func:`rcnn_ext.load`: A trained model, ready to detect.
- :class:`rcnn_ext.Predictor`: A model of your own, run on pictures in any form.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Predictor",
    "__version__",
    "accelerate",
    "data",
    "load",
    "models",
    "onnx",
    "ops",
    "selective_search",
    "train",
]

# `accelerate` is a module that can be called.
_SUBMODULES = ("accelerate", "data", "models", "onnx", "ops", "selective_search", "train")

if TYPE_CHECKING:
    from rcnn_ext import data, models, onnx, ops, selective_search, train
    from rcnn_ext.accelerate import accelerate
    from rcnn_ext.predict.load import load
    from rcnn_ext.predict.predictor import Predictor
else:
    # Hidden from type checkers, which would otherwise accept any name.
    def __getattr__(name: str) -> object:
        if name in _SUBMODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name == "load":
            return importlib.import_module(f"{__name__}.predict.load").load
        if name == "Predictor":
            return importlib.import_module(f"{__name__}.predict.predictor").Predictor
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


if os.environ.get("RCNN_EXT_ACCELERATE", "0") not in ("", "0"):
    importlib.import_module(f"{__name__}.accelerate").accelerate_from_environment()
