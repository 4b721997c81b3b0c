"""Reading lists, labels, tables and names that other programs wrote."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from rcnn_ext.errors import UserError

# The mark of UTF-32 begins like that of UTF-16, so it comes first.
_MAX_DIGITS = 18
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_lines(path: Path, encoding: str | None = None) -> list[str]:
    """Return the lines of a text file without their ends; see :func:`read_text`.

    Only the line ends of files divide lines, not those that Unicode has for other purposes.
    """
    lines = re.split("\r\n|\r|\n", read_text(path, encoding))
    return lines if lines[-1] else lines[:-1]


def read_text(path: Path, encoding: str | None = None) -> str:
    """Return the text of a file.

    Args:
        path: The file.
        encoding: Its encoding where it does not begin with a byte-order mark (``data.encoding``);
            None: any of Unicode's, which UTF-16 and UTF-32 show by their zero bytes.

    Raises:
        UserError: It cannot be read, or is in another encoding; the first byte that does not fit
            is named.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return decode_text(content, path, encoding)


def decode_text(content: bytes, path: Path, encoding: str | None = None) -> str:
    """Return the text of the content of a file; see :func:`read_text`.

    Raises:
        UserError: It is in another encoding.
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            return _decode(content[len(mark) :], name, path, len(mark), False)
    name = encoding or _guess_unicode(content)
    return _decode(content, name, path, 0, encoding is not None)


def _guess_unicode(content: bytes) -> str:
    """Return which of Unicode's encodings bytes without a mark are in.

    Text has no zero characters, but its ends of lines and spaces have zero bytes in UTF-16 and
    UTF-32.
    """
    if b"\0" not in content:
        return "utf-8"
    if len(content) % 4 == 0:
        zeros = [content[index::4].count(0) for index in range(4)]
        characters = len(content) // 4
        # Unicode ends at 0x10ffff, so that the uppermost of four bytes is always 0.
        if zeros[3] == characters and 2 * zeros[2] >= characters:
            return "utf-32-le"
        if zeros[0] == characters and 2 * zeros[1] >= characters:
            return "utf-32-be"
    return "utf-16-le" if content[1::2].count(0) > content[0::2].count(0) else "utf-16-be"


def whole_number(text: str) -> int | None:
    """Return the number that decimal digits are; None for other text, and for more than 18 digits.

    Python refuses to read numbers of thousands of digits.
    """
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None


def _decode(content: bytes, encoding: str, path: Path, skipped: int, stated: bool) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte {content[error.start] if error.start < len(content) else 0:#04x}"
        place = f"{path}:{line}: {byte} at offset {error.start + skipped}"
        if stated:
            raise UserError(
                f"{place} is not {encoding} text, which data.encoding says it is"
            ) from error
        raise UserError(
            f"{place} is not UTF-8 text: name the encoding with data.encoding=NAME, such as gbk "
            "or cp1252, or save the file as UTF-8"
        ) from error
