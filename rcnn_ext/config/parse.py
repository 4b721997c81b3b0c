"""From plain dictionaries to the dataclasses of a schema; what is not in it is refused."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

from rcnn_ext.config.renamed import renamed_key
from rcnn_ext.errors import UserError

T = TypeVar("T")


def from_dict(kind: type[T], values: Any) -> T:
    """Builds a dataclass, and those within it, from a dictionary.

    Args:
        kind: The dataclass.
        values: Its values by name; those left out keep their defaults.

    Raises:
        UserError: An unknown key (with the nearest known one), or a value of the wrong type or out
            of range; the message has the dotted key.
    """
    return _section(kind, values, kind, "")


def all_keys(kind: type, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values of a dataclass and those within it."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key = f"{prefix}{field.name}"
        section = _section_kind(hints[field.name])
        if section is not None:
            yield from all_keys(section, f"{key}.")
        else:
            yield key


def _section(kind: type[T], values: Any, root: type, prefix: str) -> T:
    if not isinstance(values, dict):
        where = prefix.rstrip(".") or "a recipe"
        raise UserError(f"{where} must be a section with keys, not {_shown(values)}")
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise UserError(_unknown_key(f"{prefix}{name}", root))
    converted: dict[str, Any] = {}
    for name, value in values.items():
        hint, key = hints[name], f"{prefix}{name}"
        section = _section_kind(hint)
        if section is not None and (value is not None or section is hint):
            converted[name] = _section(section, value, root, f"{key}.")
            continue
        try:
            converted[name] = _converted(hint, value)
        except ValueError:
            raise UserError(f"{key} must be {_described(hint)}, not {_shown(value)}") from None
    try:
        return kind(**converted)
    except (ValueError, UserError) as error:
        raise UserError(f"{prefix}{error}") from None


def _section_kind(hint: Any) -> type | None:
    """The dataclass that a field holds, which may be optional; None for plain values."""
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
    return typing.cast(type, kinds[0]) if kinds else None


def _unknown_key(key: str, root: type) -> str:
    renamed = renamed_key(key)
    if renamed is not None:
        return f"unknown key {key}; it is called {renamed} now"
    known = list(all_keys(root))
    name = key.rpartition(".")[2]
    # Somebody who forgets the section has spelt the rest right.
    near = [other for other in known if other.rpartition(".")[2] == name]
    # The second phase has the keys of the first, one level deeper.
    near = [other for other in near if other.count(".") == min(n.count(".") for n in near)]
    near = near or difflib.get_close_matches(key, known, n=1)
    if near:
        return f"unknown key {key}; did you mean {' or '.join(near)}?"
    sections = ", ".join(dict.fromkeys(other.partition(".")[0] for other in known))
    return f"unknown key {key}; a recipe has {sections}"


def _converted(hint: Any, value: Any) -> Any:
    """The value as ``hint`` wants it; ValueError if it is no such thing."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            try:
                return _converted(argument, value)
            except ValueError:
                continue
        raise ValueError
    if origin is typing.Literal:
        # YAML reads `precision: 16` as a number.
        if isinstance(value, bool) or str(value) not in arguments:
            raise ValueError
        return str(value)
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise ValueError
        return [_converted(arguments[0], item) for item in value]
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(arguments):
            raise ValueError
        return tuple(_converted(hint, item) for hint, item in zip(arguments, value, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError
        return {key: _converted(arguments[1], item) for key, item in _flat(value)}
    return _scalar(hint, value)


def _flat(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The items with dotted keys, which on a command line look like sections."""
    for key, value in values.items():
        if not isinstance(key, str):
            raise ValueError
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _scalar(hint: Any, value: Any) -> Any:
    if hint in (int, float):
        # YAML 1.1 reads 1e-4, without a point, as a string.
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
        if hint is float:
            return number
        if not number.is_integer():
            raise ValueError
        return int(number)
    if isinstance(value, hint):
        return value
    raise ValueError


def _described(hint: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(argument) for argument in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(arguments) if len(arguments) > 1 else arguments[0]
    if origin is list:
        return f"a list ({_described(arguments[0])} each)"
    if origin is tuple:
        return f"a list of {len(arguments)} ({_described(arguments[0])} each)"
    if origin is dict:
        return f"keys with values ({_described(arguments[1])} each)"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return "null" if hint is type(None) else words.get(hint, str(hint))


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)
