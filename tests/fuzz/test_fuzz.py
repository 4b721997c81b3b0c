"""Damaged files end in one line and exit code 2, soon, and in little memory."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.harness import CORPUS, load_case
from tests.fuzz.seeds import SEEDS


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.json")), ids=lambda path: path.stem)
def test_what_once_failed_fails_no_more(fuzzer, path):
    assert list(fuzzer.failures(load_case(path))) == []


@pytest.mark.parametrize("seed", sorted(SEEDS))
def test_files_damaged_at_random(fuzzer, seed):
    """``make fuzz`` runs thousands of these."""
    case = fuzzer.random_case(random.Random(seed), seed)
    assert list(fuzzer.failures(case)) == []
