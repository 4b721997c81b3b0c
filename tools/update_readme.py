"""Put the newest figures of ``benchmarks/results`` into the README, between its pairs of markers.

python tools/update_readme.py           write them
python tools/update_readme.py --check   exit with 1 where the README does not match
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"


def newest(
    device: str, results: Path = RESULTS, suite: str = "operators"
) -> tuple[Path, dict[str, Any]] | None:
    """The newest comparison on ``cpu`` or ``cuda``, or None."""
    reports = []
    for path in results.glob("*.json"):
        report = json.loads(path.read_text())
        # Those from before the suites had names are of the operators.
        its_suite = report.get("suite", "operators" if "results" in report else None)
        if its_suite == suite and report["environment"]["device"] == device:
            reports.append((report["environment"]["date"], path, report))
    return max(reports, key=lambda r: r[0])[1:] if reports else None


def seconds(value: float) -> str:
    """A time with three digits and a unit."""
    for factor, unit in ((1e6, "us"), (1e3, "ms"), (1.0, "s")):
        if value * factor < 1000 or unit == "s":
            scaled = value * factor
            digits = max(0, 2 - len(str(int(scaled))) + 1)
            return f"{scaled:.{digits}f} {unit}"
    raise AssertionError("unreachable")


def factor(ratio: float | None) -> str:
    """A ratio for a cell, empty where there is none."""
    return "" if ratio is None else f"{ratio:.0f}x" if ratio >= 99.5 else f"{ratio:.1f}x"


def machine(path: Path, environment: dict[str, Any]) -> str:
    """The line above a table: what was measured where and when."""
    versions = environment["versions"]
    return (
        f"{environment['device_name']}, torch {versions['torch']}, torchvision "
        f"{versions['torchvision']}, {environment['date'][:10]}, sources "
        f"`{environment['csrc_hash']}` ([all figures]({path.relative_to(ROOT).as_posix()})):"
    )


def model_table(path: Path, report: dict[str, Any]) -> str:
    """A Markdown table of detectors: one row a case."""
    head = ["work", "threads", "rcnn_ext", "torchvision", "ratio", "target"]
    head += ["memory, rcnn_ext", "memory, torchvision"]
    lines = [
        machine(path, report["environment"]),
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for row in report["results"]:
        ours, theirs = (row["contenders"][name] for name in ("rcnn_ext", "torchvision"))
        cells = [row["work"], str(row["threads"]), seconds(ours["median_s"])]
        cells += [seconds(theirs["median_s"]), f"{ours['ratio_torchvision']:.2f}x"]
        cells.append("" if row["target"] is None else f"{row['target']:g}x")
        cells += [f"{side['extra_bytes'] / 2**20:.0f} MiB" for side in (ours, theirs)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(path: Path, report: dict[str, Any]) -> str:
    """A Markdown table of operators: one row a case, one ratio a thread count.

    A row without a rival in torchvision has the reference's time, and no ratio.
    """
    environment = report["environment"]
    threads = sorted({row["threads"] for row in report["results"]})
    cuda = environment["device"] == "cuda"
    columns = [""] if cuda else [f", {n} thread{'s' if n > 1 else ''}" for n in threads]
    head = ["operator", "work", f"rcnn_ext{columns[0]}", f"torchvision{columns[0]}"]
    head += [f"ratio{column}" for column in columns] + ["target"]
    with_avx2 = any(row.get("avx2") for row in report["results"])
    head += [f"AVX2 ratio{column}" for column in columns] * with_avx2
    lines = [
        machine(path, environment),
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    cases: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in report["results"]:
        without_rival = _has_no_rival(row) and "median_s" in row["contenders"]["rcnn_ext"]
        if row["ratio_torchvision"] is not None or without_rival:
            cases.setdefault((row["case"], row["dtype"]), {})[row["threads"]] = row
    for (_, dtype), rows in cases.items():
        first = rows.get(threads[0])
        if first is None:
            continue
        work = first["work"] + ("" if dtype == "float32" else f", {dtype}")
        times = [seconds(first["contenders"]["rcnn_ext"]["median_s"]), _rival(first)]
        ratios = [rows[n]["ratio_torchvision"] if n in rows else None for n in threads]
        cells = [f"`{first['operator']}`", work, *times]
        cells += [*map(factor, ratios), "" if first["target"] is None else f"{first['target']:g}x"]
        if with_avx2:
            forced = [(rows[n].get("avx2") or {}) if n in rows else {} for n in threads]
            cells += [factor(row.get("ratio_torchvision")) for row in forced]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _has_no_rival(row: dict[str, Any]) -> bool:
    """Whether torchvision has nothing of the kind; results from before that was noted always do."""
    return row.get("rival", "torchvision") is None


def _rival(row: dict[str, Any]) -> str:
    """The cell of torchvision's time, and what stands there without one."""
    if not _has_no_rival(row):
        return seconds(row["contenders"]["torchvision"]["median_s"])
    reference = row["contenders"].get("reference", {}).get("median_s")
    beside = "" if reference is None else f"; our reference {seconds(reference)}"
    return f"no rival in torchvision{beside}"


TABLES = {"operators": table, "models": model_table}  # suite: what its figures become


def block(suite: str) -> str:
    """What belongs between the markers of a suite."""
    parts = []
    for device, name in (("cpu", "CPU"), ("cuda", "CUDA")):
        found = newest(device, suite=suite)
        unrun = f"{name}: unrun; no result in `benchmarks/results`."
        parts.append(unrun if found is None else TABLES[suite](*found))
    return "\n\n".join(parts)


def updated(text: str) -> str:
    """The README with the newest figures."""
    for suite in TABLES:
        begin, end = f"<!-- {suite}: begin -->", f"<!-- {suite}: end -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{block(suite)}\n{end}{after}"
    return text


def main() -> int:
    """Write, or check."""
    text = README.read_text()
    new = updated(text)
    if "--check" in sys.argv[1:]:
        if new != text:
            print("README.md does not have the newest figures: run tools/update_readme.py")
        return int(new != text)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
