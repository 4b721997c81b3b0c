"""Some seconds of each part; ``make attack`` runs them for an hour."""

from __future__ import annotations

import inspect
import sys

import pytest

from tests.attack import short_form
from tests.helpers.run_python import ROOT, run_python

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and /proc")

PARTS = [
    name
    for name, part in vars(short_form).items()
    if inspect.isfunction(part) and part.__module__ == short_form.__name__
]


@pytest.mark.parametrize("part", PARTS)
def test_short_form(part):
    assert len(PARTS) == 5
    script = "import torch; torch.set_num_threads(1)\n"
    run_python(script + f"from tests.attack import short_form; short_form.{part}()", path=ROOT)
