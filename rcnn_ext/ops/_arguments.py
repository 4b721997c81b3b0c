"""What was wrong with the arguments of a call that failed, told in one place for all operators.

Nothing here runs in a call that succeeds: a small call may take 2 us in all.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

# Types of parameters as they are annotated, with what a message calls them.
_KINDS = {
    "Tensor": "a tensor",
    "Sequence[Tensor]": "a list of tensors",
    "list[Tensor]": "a list of tensors",
    "dict[str, Tensor]": "a dict of tensors",
    "float": "a number",
    "int": "a whole number",
    "bool": "True or False",
    "str": "a string",
    "Method": "a string",
    "Metric": "a string",
    "Sequence[int]": "a list of whole numbers",
    "Sequence[float]": "a list of numbers",
    "list[tuple[int, int]]": "a list of pairs of whole numbers",
    "None": "None",
}
_LAYOUTS = {
    torch.sparse_coo: "a sparse one",
    torch.sparse_csr: "a sparse one",
    torch.sparse_csc: "a sparse one",
    torch.sparse_bsr: "a sparse one",
    torch.sparse_bsc: "a sparse one",
    torch._mkldnn: "an MKL-DNN one",  # type: ignore[attr-defined]
    torch.jagged: "a nested one",
}
_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|out of memory|bad_alloc|vector::|"
    r"size calculation overflowed",
    re.IGNORECASE,
)
_NAMED = re.compile(r"[\w.]+(: |\()")
_ORIGIN = re.compile(r" \(originally from .*|\nException raised from .*", re.DOTALL)


_Method = TypeVar("_Method", bound=Callable[..., Any])


def explained(method: _Method) -> _Method:
    """Make the errors of a module's method those of :func:`explain`."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            better = explain(method, error, args, kwargs)
            if better is None:
                raise
            raise better from None

    return call  # type: ignore[return-value]


def explain(
    function: Callable[..., Any], error: Exception, args: Sequence[Any], kwargs: dict[str, Any]
) -> Exception | None:
    """Return a better error than the one that a call raised.

    Args:
        function: The operator, with annotations.
        error: The exception that it raised.
        args: The arguments that it got.
        kwargs: Those with names.

    Returns:
        A ``TypeError`` that names the first argument of a wrong kind; a ``RuntimeError`` that names
        one that is no dense tensor; a ``MemoryError`` in place of PyTorch's errors of memory; None
        where the error says it itself.
    """
    name = _name_of(function)
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        return None  # Python names the argument that is missing, or is none.
    for argument, annotation in _annotations(function):
        value = bound.get(argument)
        if argument in bound and not any(_is(value, kind) for kind in annotation.split(" | ")):
            kinds = (_KINDS[kind] for kind in annotation.split(" | "))
            expected = " or ".join(kinds)
            return TypeError(f"{name}: expected {argument} to be {expected}, got {_shown(value)}")
    for argument, value in bound.items():
        for index, tensor in enumerate(value if isinstance(value, list | tuple) else [value]):
            place = f"{argument}[{index}]" if tensor is not value else argument
            fault = layout_fault(tensor) if isinstance(tensor, Tensor) else ""
            if fault:
                return RuntimeError(f"{name}: expected {place} to be {fault}")
    for argument, value in bound.items():
        if "Float8" in str(error) and isinstance(value, Tensor) and _is_float8(value):
            dtype = str(value.dtype).removeprefix("torch.")
            return RuntimeError(
                f"{name}: expected {argument} to be of at least 16 bits per number, got {dtype}"
            )
    return named_error(name, error)


def named_error(name: str, error: Exception) -> Exception | None:
    """Return PyTorch's error in our words, with the name of the operator, where it lacks that."""
    text = str(error)
    if isinstance(error, MemoryError | RuntimeError) and _MEMORY.search(text):
        return _memory_error(name, text)
    if type(error) not in (RuntimeError, NotImplementedError):
        return None
    shown = _ORIGIN.sub("", text)
    if not _NAMED.match(shown):
        shown = f"{name}: {shown}"
    return None if shown == text else type(error)(shown)


def _is_float8(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize == 1


def layout_fault(tensor: Tensor) -> str:
    """Return what was expected of a tensor that kernels cannot index, and what came; or ``""``."""
    # Of more than one kind there may be two attributes, of which some raise.
    if tensor.is_quantized:
        return f"a dense tensor, got a quantized one ({str(tensor.dtype).removeprefix('torch.')})"
    if tensor.is_nested:
        return "a dense tensor, got a nested one"
    if tensor.layout != torch.strided:
        other = _LAYOUTS.get(tensor.layout, "another one")
        return f"a dense tensor, got {other} ({tensor.layout}); its to_dense() gives one"
    return ""


def storage_fault(tensor: Tensor) -> str:
    """Return what is wrong with the storage of a tensor, or ``""``.

    A storage that was freed or resized leaves elements of the tensor outside of it, and kernels,
    PyTorch's own among them, would read whatever lies there.
    """
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_meta:
        return ""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or not tensor.numel():
        return ""
    spans = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in spans)
    reached = (last + 1) * tensor.element_size()
    size = tensor.untyped_storage().nbytes()
    if reached <= size:
        return ""
    return (
        f"with all its elements in its storage, got a storage of {size} bytes where {reached} are "
        "needed: was it freed, or resized?"
    )


def check_readable(tensor: Tensor, op: str, argument: str) -> None:
    """Expect the elements of a tensor in its storage, before PyTorch's own operators read them.

    Kernels of this package check it themselves.

    Raises:
        RuntimeError: They are not.
    """
    if torch.compiler.is_compiling():
        return
    fault = storage_fault(tensor)
    if fault:
        raise RuntimeError(f"{op}: expected {argument} {fault}")


def check_arguments(op: str, arguments: dict[str, bool], args: Sequence[Any]) -> None:
    """Expect tensors that PyTorch's operators can read, in a call of a raw operator.

    Args:
        op: Name of the operator.
        arguments: Whether each of its arguments may be None, by name, in order.
        args: The arguments; None is what the dispatcher takes for a tensor, too.

    Raises:
        TypeError: A tensor is None.
        RuntimeError: One is not dense, or its storage was freed.
    """
    for (name, is_optional), value in zip(arguments.items(), args, strict=False):
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if tensor is None and not is_optional:
                raise TypeError(f"{op}: expected {name} to be a tensor, got None")
            if isinstance(tensor, Tensor):
                fault = layout_fault(tensor)
                if fault:
                    raise RuntimeError(f"{op}: expected {name} to be {fault}")
                check_readable(tensor, op, name)


def _name_of(function: Callable[..., Any]) -> str:
    """Return the name of an operator; that of the class of a module."""
    owner, _, name = function.__qualname__.rpartition(".")
    return owner if name == "forward" else name


@functools.cache
def _annotations(function: Callable[..., Any]) -> tuple[tuple[str, str], ...]:
    """Return the parameters whose annotations are made of known kinds."""
    found = inspect.get_annotations(function)
    return tuple(
        (name, text)
        for name, text in found.items()
        if name != "return"
        and isinstance(text, str)
        and all(kind in _KINDS for kind in text.split(" | "))
    )


def _is(value: Any, kind: str) -> bool:
    if kind == "None":
        return value is None
    if kind == "Tensor":
        return isinstance(value, Tensor)
    if kind in ("Sequence[Tensor]", "list[Tensor]"):
        return _is_sequence(value) and all(isinstance(one, Tensor) for one in value)
    if kind == "dict[str, Tensor]":
        return isinstance(value, dict) and all(isinstance(one, Tensor) for one in value.values())
    if kind == "float":
        return _is_number(value)
    if kind == "int":
        return _is_whole(value)
    if kind == "bool":
        return isinstance(value, bool | torch.SymBool) or _is_whole(value)
    if kind in ("str", "Method", "Metric"):
        return isinstance(value, str)
    if not _is_sequence(value):
        return False
    if kind == "Sequence[int]":
        return all(map(_is_whole, value))
    if kind == "Sequence[float]":
        return all(map(_is_number, value))
    return all(_is_sequence(one) and len(one) == 2 and all(map(_is_whole, one)) for one in value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and layout_fault(value) == ""
    return isinstance(value, numbers.Real | torch.SymFloat | torch.SymInt)


def _is_whole(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_floating_point() and not value.is_complex()
    return isinstance(value, numbers.Integral | torch.SymInt)


def _shown(value: Any) -> str:
    """Return what a value is, for messages."""
    if value is None:
        return "None"
    if isinstance(value, bool | int | float | str):
        text = repr(value)
        return f"{text if len(text) <= 60 else text[:57] + '...'} (a {type(value).__name__})"
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if type(value).__module__ == "numpy" and hasattr(value, "shape"):
        return (
            f"a NumPy array of shape {list(value.shape)}, of which torch.from_numpy makes a tensor"
        )
    if isinstance(value, list | tuple):
        for index, one in enumerate(value):
            if not isinstance(one, Tensor):
                kind = "None" if one is None else f"a {type(one).__name__}"
                return f"a {type(value).__name__} with {kind} at index {index}"
        return f"a {type(value).__name__} of {len(value)} tensors"
    return f"a {type(value).__name__}"


def _memory_error(name: str, text: str) -> Exception:
    text = _ORIGIN.sub("", text).partition("\n")[0].strip()
    text = text.rpartition("DefaultCPUAllocator: ")[2].removeprefix(f"{name}: ")
    if "CUDA" in text:
        return torch.OutOfMemoryError(f"{name}: {text}")
    text = text.removeprefix("not enough memory").removeprefix(": ")
    return MemoryError(f"{name}: not enough memory" + (f": {text}" if text else ""))
