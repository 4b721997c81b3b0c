"""torchvision's own operators and detectors on the kernels of this package, in place.

The module can be called: ``rcnn_ext.accelerate()`` is :func:`accelerate`. Code that is not yours
runs with it by ``python -m rcnn_ext.accelerate script.py``, and whatever imports ``rcnn_ext`` by
the environment variable ``RCNN_EXT_ACCELERATE=1``.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from torch import nn

from rcnn_ext.accelerate.environment import accelerate_from_environment
from rcnn_ext.accelerate.switch import (
    LEVELS,
    Acceleration,
    Level,
    Status,
    check_level,
    decorated,
    held,
    status,
)
from rcnn_ext.errors import UserError

if TYPE_CHECKING:
    from rcnn_ext.models.fusion import FusionReport

__all__ = [
    "LEVELS",
    "Acceleration",
    "Level",
    "Status",
    "accelerate",
    "accelerate_from_environment",
    "status",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])


@overload
def accelerate(
    target: None = None, *, level: Level = "operators", exact: bool = True
) -> Acceleration: ...
@overload
def accelerate(  # type: ignore[overload-overlap] # modules can be called, but are not decorated
    target: nn.Module,
) -> FusionReport: ...
@overload
def accelerate(
    target: _Function, *, level: Level = "operators", exact: bool = True
) -> _Function: ...
def accelerate(target: Any = None, *, level: Level = "operators", exact: bool = True) -> Any:
    """Run torchvision's operators on the kernels of this package, in the whole process.

    Whoever calls ``torchvision.ops.nms``, ``roi_align`` or ``roi_pool``, from Python, TorchScript,
    a compiled graph or an exported program, gets the kernels of this package, and its gradients
    come from them. Results are torchvision's: what this package computes otherwise by design
    (non-finite values, half types, see the page "Drop-in for torchvision") goes to torchvision's
    own kernels. Nothing is printed, calls may be nested, and threads may enter and leave at any
    time: it is on as long as anyone holds it.

    A model is accelerated by itself, whoever built it: its convolutions, norms and linear layers
    are fused in place for evaluation on a CPU, see :func:`rcnn_ext.models.fusion.fuse_model`. That
    is independent of the operators.

    Args:
        target: A model to fuse, or a function, coroutine or generator to decorate. Without it
            torchvision is accelerated from now on, until the result is undone or a ``with`` over it
            ends.
        level: ``"operators"``, or ``"models"`` to take parts of torchvision's detectors over too:
            ``batched_nms``, ``MultiScaleRoIAlign``, matching, proposals and post-processing. The
            order among equal scores may differ there, and with it the random sample of a training
            step.
        exact: ``False`` takes the results of this package where they differ by design, and saves
            looking for such inputs.

    Returns:
        An :class:`Acceleration`, or the decorated function; for a model a report, which printed
        says what was changed and what was not.

    Raises:
        UserError: An unknown level, something that can't be accelerated, or a model with options
            that are for operators.

    Example:
        >>> import rcnn_ext, torch, torchvision
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
        >>> with rcnn_ext.accelerate():
        ...     torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
        tensor([0, 2])
    """
    check_level(level)
    if target is None:
        return Acceleration(level, exact)
    if isinstance(target, nn.Module):
        if level != "operators" or not exact:
            raise UserError(
                "accelerate: level and exact are for torchvision's operators; fuse the model by "
                "accelerate(model), and accelerate operators by another call without it"
            )
        from rcnn_ext.models.fusion import fuse_model

        return fuse_model(target)
    if isinstance(target, (types.FunctionType, types.MethodType, functools.partial)):
        return decorated(target, functools.partial(held, level, exact))
    raise UserError(
        "accelerate: expected nothing, a model or a function to decorate, got "
        f"{type(target).__name__}"
    )


class _CallableModule(types.ModuleType):
    """The package, which has the name of its function."""

    __call__ = staticmethod(accelerate)


sys.modules[__name__].__class__ = _CallableModule
