"""Pickles of NumPy arrays, read without running any code in them."""

from __future__ import annotations

import collections
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from rcnn_ext.errors import UserError

# Numbers only: types of objects or of records could be made to point anywhere.
_NUMBERS = re.compile(r"[<>=|]?(f[248]|[iu][1248]|b1|\?)")


class _Dtype:
    """A type of numbers, as ``numpy.dtype`` is pickled: called with a code, then its byte order."""

    def __init__(self, code: Any, *flags: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise pickle.UnpicklingError(f"an array of {code!r}")
        self.type = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        if order == ">":
            self.type = self.type.newbyteorder(">")


class _Array:
    """An array, as ``numpy.ndarray`` is pickled: made empty, then filled."""

    values: np.ndarray

    def __init__(self, *arguments: Any) -> None:
        self.values = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        values = np.frombuffer(data, dtype.type)
        self.values = values.reshape(shape, order="F" if fortran else "C").copy()


def _scalar(dtype: _Dtype, data: Any) -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.type)[0]


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: Any, *axes: Any) -> np.ndarray:
    """Stand in for the function by which protocol 5 makes arrays."""
    if axes and axes[0] is not None:
        raise pickle.UnpicklingError("an array with its axes in another order")
    return np.frombuffer(data, dtype.type).reshape(shape, order=order).copy()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stand in for ``_codecs.encode``, by which protocol 2 writes bytes."""
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}
# NumPy 2 has renamed the module; files have either name.
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = _Array
    _ALLOWED[_module, "scalar"] = _scalar
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _ALLOWED[_module, "_frombuffer"] = _from_buffer


class _ForbiddenError(pickle.UnpicklingError):
    """A pickle asks for something other than arrays of numbers."""


class _ArrayUnpickler(pickle.Unpickler):
    """Build arrays, numbers, text and containers, and nothing else that a pickle may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _ForbiddenError(f"{module}.{name}")
        return _ALLOWED[module, name]


def read_arrays(path: Path) -> Any:
    """Read a pickle of arrays, numbers, text and containers of them, such as detectron2's.

    Opening a pickle runs the functions that it names. Here it gets functions of this module
    instead, which make arrays of numbers.

    Args:
        path: The file.

    Returns:
        The content, with ``numpy.ndarray`` in the dicts, lists and tuples.

    Raises:
        UserError: The file cannot be read, is damaged, or asks for anything else.
    """
    try:
        with path.open("rb") as file:
            # detectron2 converted some of its files from Python 2.
            return _unwrapped(_ArrayUnpickler(file, encoding="latin1").load())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except _ForbiddenError as error:
        raise UserError(
            f"{path} is a pickle, which runs code when it is opened, and not of arrays alone: it "
            f"asks for {error}; load it where you trust it, and save it again with "
            'torch.save({"model": model.state_dict()}, "model.pth")'
        ) from None
    # Whatever a damaged file makes the unpickler do.
    except Exception as error:
        raise UserError(f"{path} is not a pickle of arrays, or is damaged: {error}") from error


def _unwrapped(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, dict):
        return {key: _unwrapped(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_unwrapped(inner) for inner in value)
    return value
