"""The environment variable ``RCNN_EXT_ACCELERATE``."""

from __future__ import annotations

import os

from rcnn_ext.accelerate.switch import LEVELS, Acceleration, Level
from rcnn_ext.errors import UserError

VARIABLE = "RCNN_EXT_ACCELERATE"
_ON = ("1", "true", "yes", "on")
_OFF = ("", "0", "false", "no", "off")


def level_from(value: str) -> Level | None:
    """Return the level that a value of the variable asks for, or ``None`` for none.

    Raises:
        UserError: The value is unknown.
    """
    value = value.strip().lower()
    if value in _OFF:
        return None
    if value in _ON:
        return "operators"
    for level in LEVELS:
        if value == level:
            return level
    raise UserError(f"{VARIABLE}: expected 1 or 0, or a level ({', '.join(LEVELS)}), got {value!r}")


def accelerate_from_environment() -> None:
    """Accelerate torchvision for the rest of the process if the variable asks for it."""
    level = level_from(os.environ.get(VARIABLE, ""))
    if level is not None:
        Acceleration(level)
