"""Large JSON files piece by piece: memory depends on one entry, not on the file."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from rcnn_ext.data.text_files import decode_text
from rcnn_ext.errors import UserError

# Bytes read at a time, also what is decoded at once: the objects of a piece take about ten times
# its size.
_PIECE = 1 << 18

# An entry longer than this many characters is no entry of annotations; where the closing bracket
# of an entry is missing, the rest of the file would be taken for it.
_MAX_ENTRY = 1 << 28

_SPACE = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"\}[ \t\r\n]*,[ \t\r\n]*\{")
# The last boundary between entries is looked for in so many of the last characters of a piece.
_BOUNDARY_WINDOW = 1 << 14

_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class JsonStream:
    """The top-level object of a JSON file, section by section.

    Args:
        path: The file, in any of Unicode's encodings, with or without a byte-order mark.
        encoding: Its encoding where it has no mark; None: one of Unicode's.
        one_by_one: Whether entries come one by one, with :attr:`line` at the line that each begins
            in. It costs more time.
    """

    def __init__(
        self, path: Path, encoding: str | None = None, *, one_by_one: bool = False
    ) -> None:
        self.path = path
        self.encoding = encoding
        self.one_by_one = one_by_one
        self.line = 1
        self._text = ""
        self._at = 0
        self._ended = False
        # Of the text that was dropped: its lines, and the characters after its last line end.
        self._lines = 0
        self._column = 0
        self._counted = 0
        # Up to here entries are decoded one by one, since many together are no list.
        self._singly_until = 0

    def sections(self) -> Iterator[tuple[str, list[Any] | None]]:
        """Yield the sections of the object, in the order of the file.

        Yields:
            The name of a section, and: None if it is no list; else an empty list where it begins,
            and then its entries, some at a time.

        Raises:
            UserError: The file is missing, unreadable, not text, not JSON, or no object; the
                message has the line and column, or the byte.
        """
        if self.path.exists() and not self.path.is_file():
            raise UserError(f"{self.path} is not a file")
        try:
            with self.path.open("rb") as file:
                yield from self._sections(self._decoded(file))
        except FileNotFoundError:
            raise UserError(f"{self.path} does not exist") from None
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error

    def _decoded(self, file: BinaryIO) -> Iterator[str]:
        head = file.read(4)
        # Python's names without an ending skip the mark, whichever it is.
        marked = head.startswith(_MARKS) or head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
        guessed = json.detect_encoding(head)
        name = guessed if marked else self.encoding or guessed
        decoder = codecs.getincrementaldecoder(name)()
        piece = head
        while True:
            more = file.read(_PIECE)
            try:
                yield decoder.decode(piece, final=not more)
            except UnicodeDecodeError:
                # Names the byte and its line, for which the whole file is needed.
                decode_text(self.path.read_bytes(), self.path, self.encoding)
                raise UserError(f"{self.path} is not {name} text") from None
            if not more:
                return
            piece = more

    def _fill(self, pieces: Iterator[str]) -> bool:
        """Add a piece to the text; return whether there was one."""
        self._count_lines(self._at)
        dropped = self._text[: self._at]
        last = dropped.rfind("\n")
        self._column = len(dropped) - last - 1 if last >= 0 else self._column + len(dropped)
        # In pieces that grow with the entry that does not fit, so that none is read many times.
        parts = [self._text[self._at :]]
        wanted = max(1, len(parts[0]))
        self._at = self._counted = self._singly_until = 0
        while wanted > 0:
            piece = next(pieces, None)
            if piece is None:
                self._ended = True
                break
            parts.append(piece)
            wanted -= len(piece)
        self._text = "".join(parts)
        return len(parts) > 1

    def _count_lines(self, at: int) -> None:
        self._lines += self._text.count("\n", self._counted, at)
        self._counted = at

    def _skip_space(self, pieces: Iterator[str]) -> str:
        """Go to the next character that is no space, and return it; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match is not None else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended or not self._fill(pieces):
                return ""

    def _value(self, pieces: Iterator[str]) -> Any:
        """Decode the value that comes next."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended:
                    self._fail(error.msg, error.pos)
            except RecursionError:
                self._fail("lists or objects are nested too deeply", self._at)
            except ValueError as error:
                self._fail(f"a number has too many digits ({error})", self._at)
            else:
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            if len(self._text) - self._at > _MAX_ENTRY:
                self._fail("an entry does not end", self._at)
            if not self._fill(pieces):
                self._ended = True

    def _sections(self, pieces: Iterator[str]) -> Iterator[tuple[str, list[Any] | None]]:
        first = self._skip_space(pieces)
        if first != "{":
            self._value(pieces)  # Names what is wrong where it is no JSON at all.
            raise UserError(f"{self.path}: its top level is not an object")
        self._at += 1
        mark = self._skip_space(pieces)
        while mark != "}":
            if mark != '"':
                self._fail("Expecting property name enclosed in double quotes", self._at)
            key = self._value(pieces)
            if self._skip_space(pieces) != ":":
                self._fail("Expecting ':' delimiter", self._at)
            self._at += 1
            if self._skip_space(pieces) == "[":
                yield key, []
                for entries in self._entries(pieces):
                    yield key, entries
            else:
                self._value(pieces)
                yield key, None
            mark = self._after_comma(pieces, "}")
        self._at += 1
        if self._skip_space(pieces):
            self._fail("Extra data", self._at)

    def _entries(self, pieces: Iterator[str]) -> Iterator[list[Any]]:
        self._at += 1
        mark = self._skip_space(pieces)
        while mark != "]":
            found = None if self.one_by_one else self._many()
            if found is None:
                self._count_lines(self._at)
                self.line = self._lines + 1
                found = [self._value(pieces)]
            yield found
            mark = self._after_comma(pieces, "]")
        self._at += 1

    def _many(self) -> list[Any] | None:
        """Decode all entries up to the last boundary in the text, if there is one.

        A boundary can be inside an entry or a text. What comes before is then no list of values,
        which the decoder notices.
        """
        after = max(self._at, len(self._text) - _BOUNDARY_WINDOW)
        end = 0
        for match in _BETWEEN.finditer(self._text, after):
            end = match.start() + 1
        if end <= self._singly_until:
            return None
        try:
            values, length = _DECODER.raw_decode(f"[{self._text[self._at : end]}]")
        except (ValueError, RecursionError):
            self._singly_until = end
            return None
        # The list itself may have ended before, where another begins in the same text.
        self._at += length - 2
        return list(values)

    def _after_comma(self, pieces: Iterator[str], closing: str) -> str:
        """Go behind the comma after a value, or to what closes the list; return what is there."""
        mark = self._skip_space(pieces)
        if mark == closing:
            return mark
        if mark != ",":
            self._fail("Expecting ',' delimiter", self._at)
        self._at += 1
        mark = self._skip_space(pieces)
        if mark == closing:
            self._fail("Illegal trailing comma", self._at - 1)
        return mark

    def _fail(self, message: str, at: int) -> NoReturn:
        before = self._text[:at]
        line = self._lines + self._text.count("\n", self._counted, at) + 1
        last = before.rfind("\n")
        column = len(before) - last if last >= 0 else self._column + len(before) + 1
        raise UserError(f"{self.path} is not valid JSON: {message} at line {line}, column {column}")


_DECODER = json.JSONDecoder()
