"""XML with line numbers, read safely.

lxml expands no entities and opens no other files or connections here, and libxml2 bounds what a
small file can make of the memory. A document that declares entities or refers to an external
document type is refused, since no annotation needs one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rcnn_ext.errors import UserError


class XmlError(Exception):
    """A file is not XML, or not harmless.

    Attributes:
        line: Where, from 1; None where it is the document as a whole.
    """

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


def read_xml(path: Path) -> Any:
    """Return the root element of a file, as of :mod:`lxml.etree`, with tags without namespaces.

    Raises:
        XmlError: It is no XML, or holds what a harmless file does not need.
        UserError: It cannot be read.
    """
    from lxml import etree

    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        # The place follows the message in libxml2's words; it is reported on its own.
        reason = re.sub(
            r", line \d+, column \d+.*", "", error.msg or "no element found", flags=re.S
        )
        raise XmlError(f"not valid XML: {reason}", error.lineno or 1) from None
    info = root.getroottree().docinfo
    if info.internalDTD is not None and any(True for _ in info.internalDTD.iterentities()):
        raise XmlError("refused: it declares entities", None)
    if info.system_url is not None or info.public_id is not None:
        raise XmlError("refused: it refers to an external document type", None)
    # Some tools declare a default namespace; lxml would call an object {namespace}object.
    for element in root.iter("*"):
        element.tag = etree.QName(element).localname
    return root


def text_of(element: Any, tag: str) -> str | None:
    """Return the text of the first child with a tag, stripped; None if there is no such child."""
    text = element.findtext(tag)
    return None if text is None else str(text).strip()
