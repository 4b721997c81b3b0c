"""Recorded results of emulated kernels are those of these sources, or none."""

from __future__ import annotations

import torch

from tests.helpers.emulation import recorded
from tests.helpers.emulation.backend import emulated
from tests.helpers.emulation.cases import CASES


def test_recorded_results(tmp_path, monkeypatch):
    path = tmp_path / "recorded.pt"
    assert recorded.load(path) == {}
    monkeypatch.setattr(recorded, "CASES", CASES[:3])
    recorded.record(path)
    results = recorded.load(path)
    assert list(results) == [case.name for case in CASES[:3]]
    with emulated(5):  # another schedule
        again = CASES[1].run()
    for mine, theirs in zip(results[CASES[1].name], again, strict=True):
        assert mine.stride() == theirs.stride()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    monkeypatch.setattr(recorded, "csrc_hash", lambda folder: "of other sources")
    assert recorded.load(path) == {}
