"""XML with line numbers, read safely.

defusedxml refuses entities and external references, with which a small file could otherwise fill
the memory or read others. Its tree has no lines, so a tree of our own is made from its events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax import SAXParseException
from xml.sax.handler import ContentHandler

from rcnn_ext.errors import UserError


@dataclass
class Node:
    """An element.

    Attributes:
        tag: Its name.
        line: The line of its opening tag, from 1.
        text: The text directly within it.
        children: The elements directly within it, in order.
    """

    tag: str
    line: int
    text: str = ""
    children: list[Node] = field(default_factory=list)

    def find(self, tag: str) -> Node | None:
        """The first child of that name."""
        return next((child for child in self.children if child.tag == tag), None)

    def find_all(self, tag: str) -> list[Node]:
        """The children of that name; grandchildren are none."""
        return [child for child in self.children if child.tag == tag]

    def text_of(self, tag: str) -> str | None:
        """The text of the first child of that name, without spaces around it."""
        child = self.find(tag)
        return None if child is None else child.text.strip()


class XmlError(Exception):
    """A file is not XML.

    Attributes:
        line: Where, from 1.
    """

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


def read_xml(path: Path) -> Node:
    """The root element of a file.

    Raises:
        XmlError: It is no XML, or holds what a harmless file does not need.
        UserError: It cannot be read.
    """
    from defusedxml import sax
    from defusedxml.common import DefusedXmlException

    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    handler = _TreeBuilder()
    try:
        sax.parseString(content, handler)
    except SAXParseException as error:
        raise XmlError(f"not valid XML: {error.getMessage()}", error.getLineNumber()) from None
    except DefusedXmlException as error:
        raise XmlError(f"refused: {type(error).__name__}", None) from None
    assert handler.root is not None
    return handler.root


class _TreeBuilder(ContentHandler):
    def __init__(self) -> None:
        super().__init__()
        self.root: Node | None = None
        self._open: list[Node] = []
        self._locator: Any = None

    def setDocumentLocator(self, locator: Any) -> None:  # noqa: N802
        self._locator = locator

    def startElement(self, name: str, attrs: Any) -> None:  # noqa: N802
        node = Node(name, self._locator.getLineNumber())
        if self._open:
            self._open[-1].children.append(node)
        else:
            self.root = node
        self._open.append(node)

    def endElement(self, name: str) -> None:  # noqa: N802
        self._open.pop()

    def characters(self, content: str) -> None:
        self._open[-1].text += content
