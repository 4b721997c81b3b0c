"""Lines of the entries of large lists in a JSON file, for messages."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator
from pathlib import Path

from rcnn_ext.data.json_stream import JsonStream


class JsonListPlaces:
    """The lines of the entries of the lists in a JSON object.

    The file is scanned a second time, but only when a problem asks for the first line, and only
    as far as it asks.

    Args:
        path: A file that has been parsed, so that it is known to be valid.
        encoding: See :class:`rcnn_ext.data.json_stream.JsonStream`.
    """

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self.path = path
        self._encoding = encoding
        self._lines: dict[str, array[int]] = {}
        self._scan: Iterator[str] | None = None
        self._complete: set[str] = set()
        # Found once: this reads the whole file.
        self._one_line: bool | None = None

    def line(self, section: str, index: int) -> int | None:
        """Return the line, from 1, of entry ``index`` of the top-level list ``section``."""
        if self._one_line is None:
            self._one_line = _is_one_line(self.path)
        if self._one_line:
            return 1
        if self._scan is None:
            self._scan = self._ended_sections()
        while section not in self._complete:
            ended = next(self._scan, None)
            if ended is None:
                break
            self._complete.add(ended)
        lines = self._lines.get(section, ())
        return lines[index] if index < len(lines) else None

    def _ended_sections(self) -> Iterator[str]:
        """Collect lines, and yield the name of each section after its last entry."""
        stream = JsonStream(self.path, self._encoding, one_by_one=True)
        current = None
        for name, entries in stream.sections():
            if not entries:
                if current is not None:
                    yield current
                current = name
                self._lines[name] = array("q")
            else:
                self._lines[name].append(stream.line)
        if current is not None:
            yield current


def _is_one_line(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        first = content.find(b"\n")
        # Programs end their files with a line end or two.
        return first < 0 or first >= len(content) - 2
