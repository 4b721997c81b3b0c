"""From dictionaries to recipes by pydantic, with messages in the words of a recipe."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from rcnn_ext.config.renamed import renamed_key
from rcnn_ext.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")


class RecipeError(UserError):
    """A key or value that a recipe cannot have.

    Attributes:
        key: The dotted key that is wrong, or that of its section.
    """

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


def from_dict(kind: type[T], values: Any) -> T:
    """Build a dataclass, and those within it, from a dictionary.

    Args:
        kind: The dataclass; its ``__pydantic_config__`` forbids unknown keys.
        values: Its values by name; those left out keep their defaults.

    Raises:
        RecipeError: An unknown key (with the nearest known one), or a value of the wrong type or
            out of range; the message has the dotted key.
    """
    from pydantic import ValidationError

    try:
        return typing.cast(T, _adapter(typing.cast(Any, kind)).validate_python(values))
    except ValidationError as error:
        details = error.errors(include_url=False)
        # A misspelled key explains what else is wrong with its section.
        details.sort(key=lambda one: not _is_unknown_key(one))
        raise _explain(kind, values, details[0]) from None


def all_keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values of a dataclass and those within it."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key = f"{prefix}{field.name}"
        section = _section_kind(hints[field.name])
        if section is not None:
            yield from all_keys(section, f"{key}.")
        else:
            yield key


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _is_unknown_key(details: ErrorDetails) -> bool:
    return details["type"] in ("unexpected_keyword_argument", "invalid_key")


def _explain(root: type, values: Any, details: ErrorDetails) -> RecipeError:
    """Return an error of pydantic in terms of keys and values of a recipe."""
    if _is_unknown_key(details):
        key = ".".join(map(str, details["loc"]))
        return RecipeError(_unknown_key(key, root), key)
    hint: Any = root
    key = ""
    # Behind the key, a location goes on into lists and the alternatives of a union.
    for part in details["loc"]:
        section = _section_kind(hint)
        if section is None:
            break
        hint = typing.get_type_hints(section)[str(part)]
        values = values.get(part) if isinstance(values, Mapping) else getattr(values, str(part))
        key = f"{key}.{part}" if key else str(part)
    if _section_kind(hint) is None:
        return RecipeError(f"{key} must be {_described(hint)}, not {_shown(values)}", key)
    if details["type"] == "value_error":
        # The text begins with the name of the value, without its section.
        text = f"{key}.{details['ctx']['error']}" if key else str(details["ctx"]["error"])
        return RecipeError(text, text.split(" ")[0].rstrip(":"))
    return RecipeError(
        f"{key or 'a recipe'} must be a section with keys, not {_shown(values)}", key
    )


def _section_kind(hint: Any) -> type | None:
    """Return the dataclass that a field holds, which may be optional; None for plain values."""
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
    return typing.cast(type, kinds[0]) if kinds else None


def _unknown_key(key: str, root: type) -> str:
    renamed = renamed_key(key)
    if renamed is not None:
        return f"unknown key {key}; it is called {renamed} now"
    known = list(all_keys(root))
    name = key.rpartition(".")[2]
    # Somebody who forgets the section has spelled the rest right.
    near = [other for other in known if other.rpartition(".")[2] == name]
    # The second phase has the keys of the first, one level deeper.
    near = [other for other in near if other.count(".") == min(n.count(".") for n in near)]
    near = near or difflib.get_close_matches(key, known, n=1)
    if near:
        return f"unknown key {key}; did you mean {' or '.join(near)}?"
    sections = ", ".join(dict.fromkeys(other.partition(".")[0] for other in known))
    return f"unknown key {key}; a recipe has {sections}"


def _described(hint: Any) -> str:
    """Return a type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(argument) for argument in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(arguments) if len(arguments) > 1 else arguments[0]
    if origin is list or (origin is tuple and Ellipsis in arguments):
        return f"a list ({_described(arguments[0])} each)"
    if origin is tuple:
        return f"a list of {len(arguments)} ({_described(arguments[0])} each)"
    if origin is dict:
        return f"keys with values ({_described(arguments[1])} each)"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return "null" if hint is type(None) else words.get(hint, str(hint))


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)
