"""What a call gave, and whether that was right."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ERRORS = (
    *(RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, MemoryError),
    OverflowError,
)
# Of Python, C++ and PyTorch, about their own insides.
_UNCLEAR = re.compile(
    r"has no attribute|not supported between|not iterable|is not subscriptable|object is not|"
    r"originally from|Exception raised from|please file|std::|bad_alloc|vector::|/|math domain|"
    r"must match the size of tensor|unsupported operand"
)
# Words of PyTorch's parser of schemas, which names operator, argument, both types and the value.
_SCHEMA = re.compile(r"(rcnn_ext::)?\w+\(\) .*(Expected a value of type|argument)", re.DOTALL)
_DISPATCHER = re.compile(r"Could not run 'rcnn_ext::\w+' with arguments from the '\w+' backend")


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    Attributes:
        results: What it returned; None for an exception.
        error: Its type and message; empty where it returned.
        clear: Whether the error names the operator and is none of Python's insides.
    """

    results: tuple[Any, ...] | None
    error: str = ""
    clear: bool = True


def call(function: Any, arguments: dict[str, Any], name: str) -> Outcome:
    """Call an operator with its arguments by name."""
    try:
        results = function(**arguments)
    except Exception as error:  # noqa: BLE001
        text = f"{type(error).__name__}: {error}"
        return Outcome(None, text, _is_clear(error, name))
    return Outcome(_flat(results))


def _is_clear(error: Exception, name: str) -> bool:
    text = str(error)
    if not isinstance(error, ERRORS) or not text:
        return False
    if _SCHEMA.match(text) or _DISPATCHER.match(text):
        return True
    # Operators of the public interface may stand on one another.
    named = re.match(r"[\w.]+(: |\()", text) is not None
    shown = re.sub(r"'[^']*'|\"[^\"]*\"", "", text)
    return named and not _UNCLEAR.search(shown)


def _flat(results: Any) -> tuple[Any, ...]:
    if isinstance(results, list | tuple):
        return tuple(part for one in results for part in _flat(one))
    if not isinstance(results, Tensor):
        return (results,)
    return (results.detach().clone().as_subclass(Tensor),)


def difference(one: Outcome, other: Outcome) -> str:
    """Return how two outcomes differ, or ``""``."""
    if (one.results is None) != (other.results is None):
        shown = [outcome.error[:200] or "a result" for outcome in (one, other)]
        if any(text.startswith("MemoryError") for text in shown):
            return ""  # Implementations need different amounts of it.
        return f"{shown[0]} | {shown[1]}"
    if one.results is None or other.results is None:
        return ""
    if len(one.results) != len(other.results):
        return f"{len(one.results)} and {len(other.results)} results"
    for index, (a, b) in enumerate(zip(one.results, other.results, strict=True)):
        text = _tensor_difference(a, b)
        if text:
            return f"result {index}: {text}"
    return ""


def _tensor_difference(a: Any, b: Any) -> str:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return "" if a is b or a == b else f"{a} and {b}"
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
    if a.is_meta or b.is_meta:
        return ""
    if not a.is_floating_point():
        return "" if torch.equal(a, b) else f"{a.flatten()[:9]} and {b.flatten()[:9]}"
    tolerance = 1e-4 if a.dtype in (torch.float32, torch.float64) else 2e-2
    wide_a, wide_b = a.double(), b.double()
    # Sums of numbers of 1e20 and more overflow in one order and not in another.
    usual = (wide_a.abs() < 1e18) & (wide_b.abs() < 1e18)
    both = usual | (wide_a.isnan() & wide_b.isnan())
    scale = wide_a[usual].abs().max() if bool(usual.any()) else 0.0
    close = torch.isclose(
        wide_a, wide_b, rtol=tolerance, atol=tolerance * (1 + float(scale)), equal_nan=True
    )
    if bool((close | ~both).all()):
        return ""
    return f"{wide_a[~close & both][:3].tolist()} and {wide_b[~close & both][:3].tolist()}"
