"""Docstrings as Markdown: an extension of griffe that ``mkdocs.yml`` names.

Sphinx roles become code. A section ``Example:`` becomes one that griffe knows, or it would be read
as text, in which ``[0]["boxes"]`` is a link. In ``Returns:`` further lines of an item are indented,
or each would be an item of its own.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`~?([^`]+)`")
_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
_RETURNS = re.compile(r"^( *)Returns:\n((?:\1 +.*\n?)+)", re.MULTILINE)
_NAMED = re.compile(r" *\w+: ")


def _indent_items(section: re.Match[str]) -> str:
    first, *rest = section[2].splitlines()
    lines = [first, *(line if _NAMED.match(line) else f"    {line}" for line in rest)]
    return "\n".join([f"{section[1]}Returns:", *lines, ""])


def to_markdown(docstring: str) -> str:
    """Rewrite a docstring in Google style, as the module says."""
    text = _EXAMPLE.sub(r"\1Examples:", _ROLE.sub(r"``\1``", docstring))
    return _RETURNS.sub(_indent_items, text)


class DocstringRoles(griffe.Extension):
    """Rewrite docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object.

        Args:
            obj: A module, class, function or attribute.
            **kwargs: Ignored.
        """
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
