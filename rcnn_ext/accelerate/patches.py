"""Exchange of functions and methods of another package, undone by one call.

What stands in is called with the original as its first argument. TorchScript, ``inspect`` and
``pickle`` go on seeing the original: its source, signature and name.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

Undo = Callable[[], None]
StandIn = Callable[..., Any]

# (stand-in, original) of functions whose code was exchanged, by module and name. Kept when undone,
# for calls that run meanwhile.
_exchanged: dict[tuple[str, str], tuple[StandIn, types.FunctionType]] = {}


def replace_method(owner: type, name: str, stand_in: StandIn) -> Undo:
    """Set a method on a class, which also reaches its instances and subclasses."""
    original = owner.__dict__[name]

    def call(*args: Any, **kwargs: Any) -> Any:
        return stand_in(original, *args, **kwargs)

    # With the globals of the original, in which TorchScript resolves the names of its source.
    method = types.FunctionType(call.__code__, original.__globals__, name, closure=call.__closure__)
    functools.update_wrapper(method, original)
    setattr(owner, name, method)

    def undo() -> None:
        if owner.__dict__.get(name) is method:
            setattr(owner, name, original)

    return undo


def _call_batched_nms(*args: Any, **kwargs: Any) -> Any:
    # Runs with the globals of the function whose code this became.
    from rcnn_ext.accelerate.patches import call_exchanged

    return call_exchanged(("torchvision.ops.boxes", "batched_nms"), *args, **kwargs)


# Code without free variables, to take the place of that of a function.
_CODES = {("torchvision.ops.boxes", "batched_nms"): _call_batched_nms.__code__}


def call_exchanged(key: tuple[str, str], *args: Any, **kwargs: Any) -> Any:
    """Call what stands in for a function, by its module and name."""
    stand_in, original = _exchanged[key]
    return stand_in(original, *args, **kwargs)


def replace_function(function: Any, stand_in: StandIn) -> Undo:
    """Exchange the code of a function, which reaches every name that it was imported under."""
    key = (function.__module__, function.__name__)
    before = function.__code__
    original = types.FunctionType(
        before, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    original.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(original, function)
    del original.__wrapped__  # type: ignore[attr-defined]
    _exchanged[key] = (stand_in, original)
    function.__wrapped__ = original
    function.__code__ = _CODES[key]

    def undo() -> None:
        if function.__code__ is _CODES[key]:
            function.__code__ = before
            del function.__wrapped__

    return undo
