"""A pytest plugin that writes each test's outcome as a line of JSON, as soon as it is known.

``pytest -p tests.helpers.outcome_lines`` with ``OUTCOME_LINES=FILE``: what is known survives a
session that is killed, and tests that have a line there already are left out. After a test that
made the CUDA context unusable its process ends, since every later test of it would fail;
pytest-xdist then starts another.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rcnn_ext.shards.lines import read_records


def device_works() -> bool:
    """Return whether CUDA can still be used in this process, as far as it is used."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


class LeaveOut:
    """Leaves out tests by their ids.

    Args:
        done: the ids.
    """

    def __init__(self, done: set[str]) -> None:
        self.done = done

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out the tests that have an outcome."""
        left_out = [item for item in items if item.nodeid in self.done]
        if left_out:
            items[:] = [item for item in items if item.nodeid not in self.done]
            config.hook.pytest_deselected(items=left_out)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Hand the ids to a worker: all must collect the same, however many lines there are."""
        node.workerinput["outcomes_done"] = sorted(self.done)


class WriteLines:
    """Writes the lines; it belongs into the process that all outcomes come to.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the outcome of the test itself, or of what went wrong around it."""
        if report.when != "call" and report.outcome == "passed":
            return
        around = report.when != "call" and report.failed
        line = {"test": report.nodeid, "outcome": "errors" if around else report.outcome}
        if report.failed:
            line["reason"] = str(report.longrepr)[-1000:]
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class EndAfterFault:
    """Ends a worker whose CUDA context is lost, once its report is on the way."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Run a test, and see whether the device still works."""
        result = yield
        if not device_works():
            time.sleep(0.5)  # another thread sends the report
            os._exit(70)
        return result


def pytest_configure(config: pytest.Config) -> None:
    """Register what belongs into this process."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(LeaveOut(set(config.workerinput["outcomes_done"])))
        config.pluginmanager.register(EndAfterFault())
        return
    path = Path(os.environ["OUTCOME_LINES"])
    config.pluginmanager.register(LeaveOut(_tests_in(path)))
    config.pluginmanager.register(WriteLines(path))


def _tests_in(path: Path) -> set[str]:
    records = read_records(path) if path.exists() else ()
    return {record["test"] for _, record in records if "test" in record}
