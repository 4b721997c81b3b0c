"""Public operators: leaves of ``torch.fx.symbolic_trace``, with errors that name the argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.fx import Proxy

from rcnn_ext.ops._arguments import explain

_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, float, int, bool, str, type(None)))

_Function = TypeVar("_Function", bound=Callable[..., Any])


def public_operator(function: _Function) -> _Function:
    """Make a function an operator of the public interface.

    Calls with symbolic values are recorded as one node, as ``torch.fx.wrap`` does: that of PyTorch
    works for calls by a name of the calling module only, not for ``ops.nms``. A call that fails for
    an argument of a wrong kind, or for lack of memory, says so; see
    :func:`rcnn_ext.ops._arguments.explain`.
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
        try:
            return function(*args, **kwargs)
        except Exception as error:
            better = explain(function, error, args, kwargs)
            if better is None:
                raise
            raise better from None

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
