"""Options of the pytest-benchmark suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rcnn_ext benchmarks")
    group.addoption("--bench-device", default="cpu", help="cpu or cuda (default: cpu)")
    group.addoption(
        "--bench-threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)"
    )
    group.addoption(
        "--bench-full", action="store_true", help="the full sizes instead of the quick ones"
    )
