"""Read saved models from whatever file they are in."""

from __future__ import annotations

import os

import torch
from torch import nn

from rcnn_ext.hub import fetch_hub_file, is_hub_id
from rcnn_ext.models import Detector
from rcnn_ext.predict.checkpoint import (
    BEST,
    LAST,
    PRETRAINED,
    SavedDetector,
    find_checkpoint,
    load_checkpoint,
)
from rcnn_ext.predict.exported import is_exported, load_exported

# The files that a repository on the Hub may hold a model in, the first that exists.
HUB_FILES = (PRETRAINED, BEST, LAST)


def load_saved(path: str | os.PathLike[str], *, trust: bool = False) -> SavedDetector:
    """Read a trained model from a checkpoint or an exported file.

    Args:
        path: The file, the folder of a training run, or ``hub:owner/name``.
        trust: Whether compiled code in a package (``rcnn-ext export --format aoti``) may run.

    Raises:
        ModelNotFoundError: There is none.
        ModelFormatError: It is damaged, or was not written by this package.
        UserError: It cannot be downloaded, or holds compiled code and ``trust`` is false.
    """
    text = os.fspath(path)
    path = fetch_hub_file(text, HUB_FILES) if is_hub_id(text) else find_checkpoint(path)
    if is_exported(path):
        return load_exported(path, trust=trust)
    return load_checkpoint(path)


def prepare_detector(detector: nn.Module, *, dtype: torch.dtype | None, prepare: bool) -> None:
    """Prepare a loaded model for inference, unless it is a program, which is prepared already.

    Raises:
        ValueError: ``dtype`` is not a floating-point type, or is given for a program or with
            ``prepare=False``.
    """
    if not isinstance(detector, Detector):
        if dtype is not None:
            raise ValueError("this is a program, whose dtype was chosen when it was exported")
    elif prepare:
        detector.prepare_for_inference(dtype=dtype)
    elif dtype is not None:
        raise ValueError("dtype takes prepare=True: a model to train keeps its weights")
