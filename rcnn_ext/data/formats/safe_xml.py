"""XML with line numbers, read safely.

lxml expands no entities and opens no other files or connections here, and libxml2 bounds what a
small file can make of the memory. A document that declares entities or refers to an external
document type is refused, since no annotation needs one.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

from rcnn_ext.data.text_files import decode_text
from rcnn_ext.errors import UserError


class XmlError(Exception):
    """A file is not XML, or not harmless.

    Attributes:
        line: Where, from 1; None where it is the document as a whole.
    """

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


def read_xml(path: Path, encoding: str | None = None) -> Any:
    """Return the root element of a file, as of :mod:`lxml.etree`, with tags without namespaces.

    Args:
        path: The file.
        encoding: Its encoding where it neither declares one nor begins with a byte-order mark, or
            where what it declares does not fit (``data.encoding``); None: UTF-8, or UTF-16.

    Raises:
        XmlError: It is no XML, or holds what a harmless file does not need.
        UserError: It cannot be read.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    root = _parse(path, content, encoding)
    info = root.getroottree().docinfo
    if info.internalDTD is not None and any(True for _ in info.internalDTD.iterentities()):
        raise XmlError("refused: it declares entities", None)
    if info.system_url is not None or info.public_id is not None:
        raise XmlError("refused: it refers to an external document type", None)
    # Some tools declare a default namespace; lxml would call an object {namespace}object.
    for element in root.iter("*"):
        if element.tag.startswith("{"):
            element.tag = element.tag.partition("}")[2]
    return root


def _parse(path: Path, content: bytes, encoding: str | None) -> Any:
    """Return the root element of the content of a file; see :func:`read_xml`."""
    declared = re.match(rb"<\?xml\b[^>]*?\bencoding\s*=\s*[\"']([\w.:-]+)", content)
    name = None if declared is None else declared[1].decode("ascii")
    wide = name is not None and name.lower().startswith(("utf-16", "utf-32", "ucs-"))
    if content[:4] in (b"<\0?\0", b"\0<\0?") or content[:2] in (b"<\0", b"\0<"):
        # UTF-16 without a mark, which libxml2 knows by the declaration alone.
        return _parse_bytes(decode_text(content, path).encode(), "utf-8")
    if wide:
        # Programs for Windows declare UTF-16 in texts that they then write as UTF-8: the
        # declaration could not be read if it were true.
        return _parse_bytes(content, "utf-8")
    try:
        return _parse_bytes(content, None)
    except XmlError:
        # Python knows encodings that libxml2 does not; and what is declared need not be true.
        for candidate in (name, encoding):
            text = _decoded(content, candidate) if candidate is not None else None
            if text is not None:
                return _parse_bytes(text.encode(), "utf-8")
        raise


def _decoded(content: bytes, encoding: str) -> str | None:
    """Return the text in an encoding other than UTF-8; None where it is in no such one."""
    try:
        if codecs.lookup(encoding).name == "utf-8":
            return None
        return content.decode(encoding)
    except (LookupError, UnicodeError):
        return None


def _parse_bytes(content: bytes, encoding: str | None) -> Any:
    from lxml import etree

    parser = etree.XMLParser(
        encoding=encoding,
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        return etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise XmlError(f"not valid XML: {_reason(error.msg or '')}", error.lineno or 1) from None


def _reason(message: str) -> str:
    """Return what is wrong with a file, from libxml2's words."""
    # The place follows the message; it is reported on its own.
    message = re.sub(r",? *line \d+, column \d+.*", "", message, flags=re.S).strip()
    unknown = re.match(r"Unsupported encoding:? ?(\S*)", message)
    if unknown is not None:
        return (
            f"its encoding {unknown[1].strip(',') or 'is'!r} is unknown: save it as UTF-8, and "
            'declare that in its first line (encoding="utf-8")'
        )
    if "not proper UTF-8" in message or "Invalid bytes in character encoding" in message:
        return (
            "it is not UTF-8 text: declare its encoding in its first line, name it with "
            "data.encoding=NAME, or save it as UTF-8"
        )
    if "Excessive depth" in message:
        return "it is nested more deeply than any annotation"
    if "huge text node" in message or "lookup" in message or "XML_PARSE_HUGE" in message:
        return "it has a text or a name of 10 MB or more, as no annotation has"
    return message or "no element found"


def text_of(element: Any, tag: str) -> str | None:
    """Return the text of the first child with a tag, stripped; None if there is no such child."""
    text = element.findtext(tag)
    return None if text is None else str(text).strip()
