"""Types of values in recipes, as strict as YAML allows.

They are plain types with a check that pydantic runs: YAML 1.1 reads ``1e-4`` as text, and pydantic
alone would take ``true`` for 1. Nothing here imports pydantic, so that a section may be made in
Python without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any


class Check:
    """A function that pydantic calls with a value before it looks at the type.

    Args:
        convert: Returns the value to use; raises ValueError to refuse it.
    """

    def __init__(self, convert: Callable[[Any], Any]) -> None:
        self.convert = convert

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Return pydantic's schema of the type with the check before it."""
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self.convert, handler(source))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("no number")
    return float(value)


def _integer(value: Any) -> int:
    number = _number(value)
    if not number.is_integer():
        raise ValueError("no whole number")
    # Not by way of a float, which has 53 bits.
    return value if isinstance(value, int) else int(number)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def _digits(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _flat_dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("no keys")
    return dict(_flat_items(value))


def _flat_items(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if not isinstance(key, str):
            raise ValueError("a key that is no text")
        if isinstance(value, dict):
            yield from _flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


Int = Annotated[int, Check(_integer)]
Float = Annotated[float, Check(_number)]
Bool = Annotated[bool, Check(_bool)]

# For a Literal of digits: YAML reads ``precision: 16`` as a number.
DIGITS = Check(_digits)

# For a dict whose keys have dots, which on a command line look like sections.
DOTTED_KEYS = Check(_flat_dict)


def require(fulfilled: bool, key: str, rule: str) -> None:
    """Raise ValueError unless a rule is kept.

    Args:
        fulfilled: Whether it is.
        key: The value that it is about.
        rule: What the value must be, in words that follow "must be".

    Raises:
        ValueError: It is not kept.
    """
    if not fulfilled:
        raise ValueError(f"{key} must be {rule}")
