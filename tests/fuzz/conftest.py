"""A fuzzer for all tests of this folder."""

from __future__ import annotations

import shutil

import pytest

from tests.fuzz.harness import temporary_fuzzer


@pytest.fixture(scope="session")
def fuzzer(one_thread):
    pytest.importorskip("yaml", reason="PyYAML comes with the extra train")
    pytest.importorskip("lxml", reason="lxml comes with the extra train")
    made = temporary_fuzzer()
    yield made
    shutil.rmtree(made.folder)
