"""Types of the tables of bad calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[torch.device], Any]
Cases = dict[str, tuple[Call, str]]  # name: (call, message)

FLOATS = "float16, bfloat16, float32 or float64"


def make(what: Any, device: torch.device) -> Any:
    if isinstance(what, torch.Tensor):
        return what.to(device)
    return torch.rand(what, device=device) if isinstance(what, tuple) else what


def make_rois(what: Any, device: torch.device) -> Any:
    if isinstance(what, list):
        return [make(boxes, device) for boxes in what]
    rois = make(what, device)
    if isinstance(rois, torch.Tensor) and rois.dim() == 2 and rois.shape[1] > 0:
        rois[:, 0] = 0
    return rois
