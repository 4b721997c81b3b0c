"""Refusal of TorchScript, by name and with the way to go instead."""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

from torch import nn


def refuse_torchscript(name: str) -> NoReturn:
    """Refuse to be compiled by ``torch.jit.script``.

    Args:
        name: What should have been compiled.

    Raises:
        NotImplementedError: Always.
    """
    raise NotImplementedError(
        f"{name}: cannot be compiled by torch.jit.script, which takes a part of Python only and is "
        "deprecated in PyTorch. Export it with torch.export.export, or a trained model with "
        "`rcnn-ext export RUN --format pt2`; torch.jit.trace works too"
    )


def mark_unscriptable(operator: Any) -> None:
    """Let ``torch.jit.script`` of an operator, or of a module that has it, end in that refusal.

    Args:
        operator: A function, or a class of modules; anything else is left as it is.
    """
    if inspect.isfunction(operator):
        name = operator.__name__
        operator.__prepare_scriptable__ = lambda: refuse_torchscript(name)  # type: ignore[attr-defined]
    elif inspect.isclass(operator) and issubclass(operator, nn.Module):
        operator.__prepare_scriptable__ = lambda self: refuse_torchscript(  # type: ignore[attr-defined]
            type(self).__name__
        )
