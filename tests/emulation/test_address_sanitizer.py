"""The kernels and the emulator's own tests under AddressSanitizer, in a process of its own.

It has to be there when a process starts, so it can't join the one that runs these tests.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.emulation.backend import SANITIZE
from tests.helpers.emulation.build import address_sanitizer_environment, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

HERE = Path(__file__).parent


# More schedules would touch the same addresses.
@pytest.mark.parametrize(
    ("names", "selection"),
    [
        (["test_emulator.py", "test_emulator_errors.py"], ""),
        (["test_kernels.py"], "not schedule"),
    ],
)
def test_passes_under_address_sanitizer(names: list[str], selection: str) -> None:
    environment = {**address_sanitizer_environment(), SANITIZE: "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-x",
        "-k",
        selection,
    ]
    done = subprocess.run(
        [*command, *(str(HERE / name) for name in names)],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    # Not a run that skipped everything.
    assert int(re.search(r"(\d+) passed", summary)[1]) > 70, summary
