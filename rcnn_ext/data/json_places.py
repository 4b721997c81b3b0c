"""Lines of the values in a JSON file, for messages."""

from __future__ import annotations

import bisect
import json
import re
from pathlib import Path

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODE = json.JSONDecoder().raw_decode


class JsonPlaces:
    """The lines of the values in a JSON file.

    The standard library's parser keeps no lines. The file is scanned a second time, but only when a
    problem asks for the first line.

    Args:
        path: A file that has been parsed, so that it is known to be valid. In UTF-8, UTF-16 or
            UTF-32, with or without a byte-order mark, as JSON may be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text: str | None = None
        self._newlines: list[int] = []
        self._children: dict[int, dict[str | int, int]] = {}

    def line(self, *steps: str | int) -> int | None:
        """Return the line, from 1, of a value; None if there is no such value.

        Args:
            steps: The keys and indices that lead to it: ``"annotations", 3``.
        """
        if self._text is None:
            content = self.path.read_bytes()
            self._text = content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
            self._newlines = [match.start() for match in re.finditer("\n", self._text)]
        at = _after_space(self._text, 0)
        for step in steps:
            if at not in self._children:
                self._children[at] = _starts_of_children(self._text, at)
            found = self._children[at].get(step)
            if found is None:
                return None
            at = found
        return bisect.bisect(self._newlines, at) + 1


def _starts_of_children(text: str, at: int) -> dict[str | int, int]:
    """Offsets of the values in the object or list at an offset, by key or index."""
    starts: dict[str | int, int] = {}
    kind = text[at]
    if kind not in "{[":
        return starts
    at = _after_space(text, at + 1)
    while text[at] not in "}]":
        key: str | int = len(starts)
        if kind == "{":
            key, at = _DECODE(text, at)
            at = _after_space(text, _after_space(text, at) + 1)
        starts[key] = at
        at = _after_space(text, _DECODE(text, at)[1])
        if text[at] == ",":
            at = _after_space(text, at + 1)
    return starts


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()
