"""Operators as leaves of ``torch.fx.symbolic_trace``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.fx import Proxy

_PLAIN = (torch.Tensor, float, int)

_Function = TypeVar("_Function", bound=Callable[..., Any])


def fx_leaf(function: _Function) -> _Function:
    """Record calls of a function with symbolic values as one node, as ``torch.fx.wrap`` does.

    That of PyTorch works for calls by a name of the calling module only, not for ``ops.nms``.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for argument in (*args, *kwargs.values()) if kwargs else args:
            # What nearly all arguments are is told by one look each: a call may take 2 us in all.
            if type(argument) in _PLAIN:
                continue
            proxy = _find_proxy(argument)
            if proxy is not None:
                return proxy.tracer.create_proxy("call_function", call, args, kwargs)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _find_proxy(argument: Any) -> Proxy | None:
    if isinstance(argument, Proxy):
        return argument
    if isinstance(argument, (list, tuple)):
        for part in argument:
            found = _find_proxy(part)
            if found is not None:
                return found
    return None
