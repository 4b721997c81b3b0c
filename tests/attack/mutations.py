"""Values to put in the place of a right argument, by its type."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Makes a value of the right one. Names tell what was wrong.
Mutation = Callable[[Any], Any]

_DTYPES = (
    *(torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool),
    *(torch.complex64, torch.complex128),
)
_VALUES = (0.0, -0.0, 1.0, -1.0, 1e20, -1e20, 3e38, -3e38, 1e-40, math.inf, -math.inf, math.nan)
_NUMBERS = (*(0.0, 1.0, -1.0, 0.5, 2.0, 1e-300, 1e300, -1e300, math.inf, -math.inf, math.nan, 3),)
_WHOLE = (0, 1, -1, 2, 3, 7, 300, 2**31 - 1, 2**31, -(2**31), 2**62, -(2**62), 2**63 - 1)
_STRINGS = ("", "xyxy", "xywh", "cxcywh", "linear", "gaussian", "iou", "ios", "XYXY", "no such")


def _freed(value: Tensor) -> Tensor:
    copy = value.clone()
    copy.untyped_storage().resize_(0)
    return copy


def _shrunk(value: Tensor) -> Tensor:
    copy = value.clone()
    copy.untyped_storage().resize_(copy.untyped_storage().nbytes() // 2)
    return copy


def _unaligned(value: Tensor) -> Tensor:
    size = value.element_size()
    buffer = torch.zeros(value.numel() + 1, dtype=value.dtype)
    view = buffer[1:].view(value.shape)
    return view.copy_(value) if size else view


def _with_value(number: float, index: int) -> Mutation:
    def change(value: Tensor) -> Tensor:
        changed = value.clone()
        if changed.numel():
            place = index % changed.numel()
            changed.view(-1)[place] = (
                number
                if value.is_floating_point()
                else int(max(min(np.nan_to_num(number), 2.0**62), -(2.0**62)))
            )
        return changed

    return change


def _always(given: Any) -> Mutation:
    return lambda value: given


def _filled(number: float) -> Mutation:
    return lambda value: torch.full_like(value, number)


def _as_dtype(dtype: torch.dtype) -> Mutation:
    return lambda value: value.to(dtype)


def _first(change: Mutation) -> Mutation:
    return lambda value: [change(value[0]), *value[1:]] if value else [change(1)]


def _quantized(value: Tensor) -> Tensor:
    return torch.quantize_per_tensor(value.float(), 0.1, 0, torch.quint8)


class Odd(Tensor):
    """A subclass without anything of its own."""


def _subclass(value: Tensor) -> Tensor:
    return value.as_subclass(Odd)


TENSOR: dict[str, Mutation] = {
    "freed": _freed,
    "shrunk": _shrunk,
    "unaligned": _unaligned,
    "sparse": lambda value: value.to_sparse(),
    "csr": lambda value: value.reshape(value.shape[0], -1).to_sparse_csr(),
    "quantized": _quantized,
    "mkldnn": lambda value: value.float().to_mkldnn(),
    "nested": lambda value: torch.nested.nested_tensor([value, value]),
    "meta": lambda value: value.to("meta"),
    "number": lambda value: value.reshape(-1)[0],
    "no rows": lambda value: value[:0],
    "one row": lambda value: value[:1],
    "no columns": lambda value: value[..., :0],
    "fewer columns": lambda value: value[..., :-1],
    "more rows": lambda value: torch.cat([value, value]),
    "flat": lambda value: value.reshape(-1),
    "one more dimension": lambda value: value[None],
    "one dimension less": lambda value: value[0],
    "transposed": lambda value: value.transpose(0, -1),
    "permuted memory": lambda value: value.transpose(0, -1).contiguous().transpose(0, -1),
    "strided": lambda value: value.repeat_interleave(2, dim=-1)[..., ::2],
    "expanded": lambda value: value[:1].expand(value.shape),
    "channels last": lambda value: value.contiguous(memory_format=torch.channels_last),
    "large stride": lambda value: torch.zeros(*value.shape, 9, dtype=value.dtype)[..., 4],
    "requires grad": lambda value: value.clone().requires_grad_(),
    "inference": lambda value: _inference(value),
    "conjugated": lambda value: torch.complex(value, value).conj(),
    "negated": lambda value: torch.complex(value, value).conj().imag,
    "subclass": _subclass,
    "parameter": lambda value: torch.nn.Parameter(value),
    **{f"dtype {dtype}": _as_dtype(dtype) for dtype in _DTYPES},
    **{f"value {n}": _with_value(n, 0) for n in _VALUES},
    **{f"last value {n}": _with_value(n, -1) for n in _VALUES},
    **{f"all {n}": _filled(n) for n in _VALUES[:8]},
}


def _inference(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value.clone()


# In the place of any argument.
WRONG_KINDS: dict[str, Mutation] = {
    "None": lambda value: None,
    "a string": lambda value: "boxes",
    "a number": lambda value: 3,
    "a fraction": lambda value: 0.25,
    "an array": lambda value: np.zeros((4, 4), dtype=np.float32),
    "an array of objects": lambda value: np.array([None, "x"]),
    "numbers": lambda value: [1.0, 2.0, 3.0, 4.0],
    "an empty list": lambda value: [],
    "Nones": lambda value: [None, None],
    "strings": lambda value: ["a", "b"],
    "a pair": lambda value: (value, value),
    "a list of it": lambda value: [value],
    "a dict": lambda value: {"x": value},
    "a function": lambda value: len,
    "an iterator": lambda value: iter([value]),
    "bytes": lambda value: b"boxes",
    "a type": lambda value: torch.Tensor,
    "a tensor": lambda value: torch.rand(2, 3),
}
FLOAT: dict[str, Mutation] = {
    **{f"{n}": _always(n) for n in _NUMBERS},
    "a tensor of it": lambda value: torch.tensor(value),
    "NumPy's": lambda value: np.float64(value),
    "complex": lambda value: 1j,
}
INT: dict[str, Mutation] = {
    **{f"{n}": _always(n) for n in _WHOLE},
    "too large": lambda value: 2**70,
    "True": lambda value: True,
    "NumPy's": lambda value: np.int64(1),
}
LISTS: dict[str, Mutation] = {
    "shorter": lambda value: list(value)[:-1],
    "longer": lambda value: [*value, *value],
    "reversed": lambda value: list(value)[::-1],
}


def mutations_of(kind: str) -> dict[str, Mutation]:
    """Return what to put in the place of an argument of a type of schemas."""
    found = dict(WRONG_KINDS)
    if kind in ("Tensor", "Tensor?"):
        found |= TENSOR
    elif kind.startswith("List[Tensor"):
        found |= LISTS
        for name, change in TENSOR.items():
            found[f"first {name}"] = _first(change)
    elif kind == "float":
        found |= FLOAT
    elif kind in ("int", "SymInt"):
        found |= INT
    elif kind.startswith("List["):
        found |= LISTS
        inner = FLOAT if "float" in kind else INT
        for name, change in inner.items():
            found[f"first {name}"] = _first(change)
    elif kind == "bool":
        found |= {"the other": lambda value: not value}
    else:
        found |= {f"{text!r}": _always(text) for text in _STRINGS}
    return found


def draw(kind: str, random: random.Random) -> tuple[str, Mutation]:
    """Return one of :func:`mutations_of` at random."""
    return random.choice(list(mutations_of(kind).items()))
