"""What the site makes of docstrings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

griffe = pytest.importorskip("griffe", reason="griffe comes with the extra docs")

ROOT = Path(__file__).resolve().parents[2]

DOCSTRING = """Return boxes, see :func:`rcnn_ext.ops.nms`.

Returns:
    matches: The first result,
        which has two lines.
    best: The second result
    in two lines.

Raises:
    ValueError: Something is wrong.

Example:
    >>> model(images)[0]["boxes"]
"""


@pytest.fixture
def tool():
    path = ROOT / "tools" / "docstring_roles.py"
    spec = importlib.util.spec_from_file_location("docstring_roles", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_docstring_has_the_sections_and_items_that_it_shows(tool):
    docstring = griffe.Docstring(tool.to_markdown(DOCSTRING))
    text, returns, raises, examples = docstring.parse("google", warnings=False)
    assert text.value == "Return boxes, see ``rcnn_ext.ops.nms``."
    assert [item.name for item in returns.value] == ["matches", "best"]
    assert returns.value[1].description == "The second result\nin two lines."
    assert raises.kind is griffe.DocstringSectionKind.raises
    assert examples.kind is griffe.DocstringSectionKind.examples


def test_a_sentence_of_several_lines_is_one_result(tool):
    text = "Return indices.\n\nReturns:\n    Indices in order of score,\n    on every device.\n"
    _, returns = griffe.Docstring(tool.to_markdown(text)).parse("google", warnings=False)
    assert len(returns.value) == 1
