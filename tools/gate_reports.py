"""Reads what compilers, pytest, compute-sanitizer and cuobjdump report."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from gate_types import FAILED, PASSED, Outcome

from rcnn_ext.bench.row_lines import planned_cases, read_lines, rows_of, started_cases

# Part of the mangled name of every kernel of ours; the sanitizers look at no others.
KERNEL_NAMES = "rcnn_ext"
_LONGEST = 400


def printable(text: str) -> str:
    """Replace what could spoil a table on a terminal, and cut what is too long for a line of it."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + " ..."


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def first_error(text: str) -> str:
    """Return the first line about an error, or else the last line."""
    errors = [line.strip() for line in text.splitlines() if "error" in line.lower()]
    return errors[0] if errors else last_line(text)


def count_outcomes(path: pathlib.Path) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Count the tests in lines of outcomes, and list those that did not pass.

    A test that ran twice, because a worker died with it, counts by its last outcome, but a failure
    stays one.

    Returns:
        The counts, and of each failure ``test`` and ``reason``.
    """
    counts = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0}
    outcomes: dict[str, dict[str, str]] = {}
    for line in read_lines(path):
        if line.get("outcome") not in counts or "test" not in line:
            continue
        before = outcomes.get(line["test"])
        if before is None or before["outcome"] not in ("failed", "errors"):
            outcomes[line["test"]] = line
    for line in outcomes.values():
        counts[line["outcome"]] += 1
    failures = [
        {"test": line["test"], "reason": line.get("reason", "")}
        for line in outcomes.values()
        if line["outcome"] in ("failed", "errors")
    ]
    return counts, failures


def sum_up_rows(lines: list[dict[str, Any]]) -> Outcome:
    """Sum up lines of the comparison with torchvision.

    A case that was begun and has no row ended its process, but for the last one, which may have
    been stopped.
    """
    rows, begun = rows_of(lines), started_cases(lines)
    if not rows:
        return Outcome(FAILED, "no row was measured", {"begun": begun})
    ratios = [row["ratio_torchvision"] for row in rows if row["ratio_torchvision"] is not None]
    reached = [row["target_reached"] for row in rows if row["target_reached"] is not None]
    summary = (
        f"{len(rows)} rows, faster than torchvision in {sum(r >= 1 for r in ratios)} of"
        f" {len(ratios)}, {sum(reached)} of {len(reached)} targets"
    )
    kept_up = [row["atomic"]["target_reached"] for row in rows if row.get("atomic")]
    if kept_up:
        summary += f", {sum(kept_up)} of {len(kept_up)} gradients within reach of atomic ones"
    measured = {row["case"] for row in rows}
    # The last one may have been stopped for want of time.
    lost = [case for case in begun[:-1] if case not in measured]
    left_out = [case for case in planned_cases(lines) if case not in begun]
    if left_out:
        summary += f", {len(left_out)} cases left out for time"
    failures = [f"{row['case']}: {failure}" for row in rows for failure in row["failures"]]
    failures += [f"{case}: its process died or hung" for case in lost]
    if failures:
        summary += f"; {len(failures)} failed: {failures[0]}"
    details = {"results": rows, "failures": failures, "left_out": left_out}
    return Outcome(FAILED if failures else PASSED, summary, details)


def count_sanitizer(tool: str, output: str) -> dict[str, int] | None:
    """Read the counts of the last summary line; None where there is none."""
    if tool == "racecheck":
        pattern = r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)"
        names = ["hazards", "errors", "warnings"]
    else:
        pattern, names = r"ERROR SUMMARY: (\d+) errors?", ["errors"]
    found = list(re.finditer(pattern, output))
    if not found:
        return None
    if tool == "initcheck":
        # A report is a line of what was read, and one of where.
        places = re.findall(r"Uninitialized __\w+__ memory read[^\n]*\n[^\n]* at ([^\n]*)", output)
        return {"errors": sum(KERNEL_NAMES in place for place in places)}
    return dict(zip(names, map(int, found[-1].groups()), strict=True))


def parse_resources(output: str) -> list[dict[str, Any]]:
    """Read ``cuobjdump -res-usage``: a dict for each kernel of each architecture."""
    pattern = re.compile(
        r"^arch = (\w+)|Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
        re.MULTILINE,
    )
    names = ("registers", "stack", "shared", "local")
    kernels = []
    architecture = "unknown"
    for found in pattern.finditer(output):
        if found[1] is not None:
            architecture = found[1]
        else:
            numbers = dict(zip(names, map(int, found.groups()[2:]), strict=True))
            kernels.append({"architecture": architecture, "kernel": found[2], **numbers})
    return kernels
