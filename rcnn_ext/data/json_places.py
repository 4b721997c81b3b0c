"""Lines of the entries of a JSON file, for messages."""

from __future__ import annotations

import bisect
import json
import re
from pathlib import Path

_SPACE = re.compile(r"[ \t\r\n]*")


class JsonPlaces:
    """The lines of the entries of the lists in a JSON object.

    The standard library's parser keeps no lines. The file is scanned a second time, but only when a
    problem asks for the first line.

    Args:
        path: A file that has been parsed, so that it is known to be valid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts: dict[str, list[int]] | None = None
        self._newlines: list[int] = []

    def line(self, section: str, index: int) -> int | None:
        """Return the line, from 1, of entry ``index`` of the top-level list ``section``."""
        if self._starts is None:
            text = self.path.read_text(encoding="utf-8-sig")
            self._newlines = [match.start() for match in re.finditer("\n", text)]
            self._starts = _starts_of_entries(text)
        starts = self._starts.get(section, [])
        return bisect.bisect(self._newlines, starts[index]) + 1 if index < len(starts) else None


def _starts_of_entries(text: str) -> dict[str, list[int]]:
    """Offsets of the entries of each list in the object that ``text`` is."""
    decode = json.JSONDecoder().raw_decode

    def after_space(at: int) -> int:
        match = _SPACE.match(text, at)
        assert match is not None
        return match.end()

    def after_comma(at: int) -> int:
        at = after_space(at)
        return after_space(at + 1) if text[at] == "," else at

    starts: dict[str, list[int]] = {}
    at = after_space(after_space(0) + 1)
    while text[at] != "}":
        key, at = decode(text, at)
        at = after_space(after_space(at) + 1)
        if text[at] == "[":
            starts[key] = []
            at = after_space(at + 1)
            while text[at] != "]":
                starts[key].append(at)
                at = after_comma(decode(text, at)[1])
            at = after_comma(at + 1)
        else:
            at = after_comma(decode(text, at)[1])
    return starts
