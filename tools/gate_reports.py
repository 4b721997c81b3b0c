"""Reads what compilers, pytest, compute-sanitizer and cuobjdump report."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

# Part of the mangled name of every kernel of ours; the sanitizers look at no others.
KERNEL_NAMES = "rcnn_ext"


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def first_error(text: str) -> str:
    """Return the first line about an error, or else the last line."""
    errors = [line.strip() for line in text.splitlines() if "error" in line.lower()]
    return errors[0] if errors else last_line(text)


def count_tests(junit: str) -> dict[str, int]:
    """Count the tests of a JUnit report by their outcome."""
    counts = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0}
    for suite in ET.fromstring(junit).iter("testsuite"):
        failed, errors, skipped = (
            int(suite.get(name, 0)) for name in ("failures", "errors", "skipped")
        )
        counts["failed"] += failed
        counts["errors"] += errors
        counts["skipped"] += skipped
        counts["passed"] += int(suite.get("tests", 0)) - failed - errors - skipped
    return counts


def name_failures(junit: str) -> list[str]:
    """Name the tests of a JUnit report that failed or ended in an error."""
    return [
        f"{case.get('classname')}::{case.get('name')}"
        for case in ET.fromstring(junit).iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]


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
