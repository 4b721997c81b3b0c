"""The examples in the docstrings of docs/operators.md give what they show."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operators.md"
NAMES = re.findall(r"^::: (\S+)", PAGE.read_text(), re.MULTILINE)


def test_the_page_has_the_operators():
    assert len(NAMES) > 15


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_docstrings(name):
    module_name, _, member = name.rpartition(".")
    module = importlib.import_module(module_name)
    names = {
        "torch": torch,
        "nms": importlib.import_module("rcnn_ext.ops").nms,
        "boxes": torch.rand(4, 4).cumsum(1),
        "scores": torch.rand(4),
        **vars(module),
    }
    finder = doctest.DocTestFinder(recurse=False)
    for examples in finder.find(vars(module)[member], name, module=module, globs=names):
        output: list[str] = []
        result = doctest.DocTestRunner(verbose=False).run(examples, out=output.append)
        assert not result.failed, "".join(output)
