"""Docstrings as Markdown: an extension of griffe that ``mkdocs.yml`` names.

Sphinx roles become code, and a section ``Example:`` one that griffe knows, so that it is not read
as text, in which ``[0]["boxes"]`` would be a link.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`~?([^`]+)`")
_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


class DocstringRoles(griffe.Extension):
    """Rewrite docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object.

        Args:
            obj: A module, class, function or attribute.
            **kwargs: Ignored.
        """
        if obj.docstring is not None:
            text = _ROLE.sub(r"``\1``", obj.docstring.value)
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", text)
