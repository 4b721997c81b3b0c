"""Put the newest figures of ``benchmarks/results`` into the documents that show them.

README.md gets seven rows, benchmarks/README.md every row, and docs/accelerate.md the detectors of
torchvision, each between ``<!-- figures:begin -->`` and ``<!-- figures:end -->``.

python tools/update_readme.py           write them
python tools/update_readme.py --check   exit with 1 where a README does not match
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FULL_README = ROOT / "benchmarks" / "README.md"
ACCELERATE = ROOT / "docs" / "accelerate.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"

Report = dict[str, Any]

# What stands in place of an operator's name in README.md, by suite. A pipeline's time is per file.
KINDS = {"models": "whole model", "pipeline": "files to boxes"}

# The rows of README.md: suite and name of the case.
SHORT_ROWS = (
    ("operators", "nms/5000"),
    ("operators", "batched_nms/10000"),
    ("operators", "match_boxes/200000x100/anchors"),
    ("operators", "roi_align/512"),
    ("operators", "roi_align/512/bwd"),
    ("models", "inference"),
    ("pipeline", "folder"),
)


def newest(
    device: str, results: Path = RESULTS, suite: str = "operators"
) -> tuple[Path, Report] | None:
    """Return the newest report of a suite on ``cpu`` or ``cuda`` with its path, or None."""
    reports = []
    for path in results.glob("*.json"):
        report = json.loads(path.read_text())
        # Files without a suite were written before suites had names: they are of the operators.
        found = report.get("suite", "operators" if "results" in report else None)
        if found == suite and report["environment"]["device"] == device:
            reports.append((report["environment"]["date"], path, report))
    return max(reports, key=lambda r: r[0])[1:] if reports else None


def seconds(value: float) -> str:
    """Format a time with three digits and a unit."""
    for factor, unit in ((1e6, "us"), (1e3, "ms"), (1.0, "s")):
        if value * factor < 1000 or unit == "s":
            scaled = value * factor
            digits = max(0, 2 - len(str(int(scaled))) + 1)
            return f"{scaled:.{digits}f} {unit}"
    raise AssertionError("unreachable")


def ratio_cell(ratio: float | None) -> str:
    """Format a ratio for a cell, empty where there is none."""
    return "" if ratio is None else f"{ratio:.0f}x" if ratio >= 99.5 else f"{ratio:.1f}x"


def target_cell(row: dict[str, Any]) -> str:
    """Format the target of a row for a cell, empty where there is none."""
    return "" if row["target"] is None else f"{row['target']:g}x"


def machine(environment: dict[str, Any]) -> str:
    """Say on what machine and software the figures were measured, and when."""
    versions = environment["versions"]
    return (
        f"{environment['device_name']}, torch {versions['torch']}, torchvision "
        f"{versions['torchvision']}, {environment['date'][:10]}, sources "
        f"`{environment['csrc_hash']}`"
    )


def markdown(caption: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table below a line of text."""
    lines = [caption, "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in body)])


def model_table(link: str, report: Report) -> str:
    """Format the detectors, one row per case.

    Args:
        link: Path of the JSON file, relative to the document.
        report: Its content.
    """
    head = ["work", "threads", "rcnn_ext", "torchvision", "ratio", "target"]
    head += ["memory, rcnn_ext", "memory, torchvision"]
    body = []
    for row in report["results"]:
        ours, theirs = (row["contenders"][name] for name in ("rcnn_ext", "torchvision"))
        cells = [row["work"], str(row["threads"]), seconds(ours["median_s"])]
        cells += [seconds(theirs["median_s"]), f"{ours['ratio_torchvision']:.2f}x"]
        cells.append(target_cell(row))
        cells += [f"{side['extra_bytes'] / 2**20:.0f} MiB" for side in (ours, theirs)]
        body.append(cells)
    return markdown(f"{machine(report['environment'])} ([all figures]({link})):", head, body)


def _runtime_rows(report: Report) -> list[dict[str, Any]]:
    """Return the rows of whole models that other runtimes were timed in too."""
    return [row for row in report["results"] if "median_s" in row["contenders"].get("openvino", {})]


def runtimes_table(report: Report) -> str:
    """Format the detectors in ONNX Runtime and OpenVINO, one row per case and type.

    Args:
        report: Content of a JSON file of whole models.
    """
    head = ["work", "dtype", "threads", "rcnn_ext", "ONNX Runtime", "OpenVINO"]
    head += ["ratio, ONNX Runtime", "ratio, OpenVINO", "floor"]
    body = []
    for row in _runtime_rows(report):
        for dtype, ending in (("float32", ""), ("bfloat16", "-bfloat16")):
            entries = [
                row["contenders"].get(name + ending, {})
                for name in ("rcnn_ext", "onnxruntime", "openvino")
            ]
            times = [entry.get("median_s") for entry in entries]
            ours = times[0]
            if ours is None:
                continue
            cells = [row["work"], dtype, str(row["threads"])]
            cells += ["" if time is None else seconds(time) for time in times]
            cells += ["" if time is None else f"{time / ours:.2f}x" for time in times[1:]]
            floor = entries[0].get("floor_s")
            body.append([*cells, "" if floor is None else seconds(floor)])
    caption = (
        "Against other runtimes, on the detector exported to ONNX, in the same process and in "
        "turns. The floor is that of a direct convolution at the speed of a large matrix product; "
        "Winograd's algorithm multiplies less."
    )
    return markdown(caption, head, body)


def _runtimes_line(report: Report) -> str:
    """Say in a sentence how a whole model compares with other runtimes."""
    rows = [row for row in _runtime_rows(report) if row["case"] == "inference"]
    if not rows:
        return ""
    row = max(rows, key=lambda row: row["threads"])
    times = {
        name: seconds(entry["median_s"])
        for name, entry in row["contenders"].items()
        if "median_s" in entry
    }
    parts = [f"ours {times['rcnn_ext']}", f"OpenVINO {times['openvino']}"]
    if "onnxruntime" in times:
        parts.append(f"ONNX Runtime {times['onnxruntime']}")
    text = f"{row['work']}, {row['threads']} threads: {', '.join(parts)}"
    if "rcnn_ext-bfloat16" in times and "openvino-bfloat16" in times:
        text += (
            f"; in bfloat16 ours {times['rcnn_ext-bfloat16']}, OpenVINO "
            f"{times['openvino-bfloat16']}"
        )
    return text + "."


def pipeline_table(link: str, report: Report) -> str:
    """Format the detection in files, one row per number of threads.

    Args:
        link: Path of the JSON file, relative to the document.
        report: Its content.
    """
    head = ["work", "threads", "rcnn_ext", "torchvision", "ratio", "target"]
    head += ["of our network alone", "target"]
    body = []
    for row in report["results"]:
        rates = [row["contenders"][name]["pictures_per_s"] for name in ("rcnn_ext", "torchvision")]
        cells = [row["work"], str(row["threads"]), *(f"{rate:.1f} pictures/s" for rate in rates)]
        cells += [f"{row['ratio_torchvision']:.2f}x", target_cell(row)]
        body.append([*cells, f"{row['of_network']:.1%}", f"{row['of_network_target']:.0%}"])
    return markdown(f"{machine(report['environment'])} ([all figures]({link})):", head, body)


def operator_table(link: str, report: Report) -> str:
    """Format the operators, one row per case and one ratio per number of threads.

    An operator that torchvision lacks has the reference's time, and no ratio.

    Args:
        link: Path of the JSON file, relative to the document.
        report: Its content.
    """
    environment = report["environment"]
    threads = sorted({row["threads"] for row in report["results"]})
    cuda = environment["device"] == "cuda"
    columns = [""] if cuda else [f", {n} thread{'s' if n > 1 else ''}" for n in threads]
    head = ["operator", "work", f"rcnn_ext{columns[0]}", f"torchvision{columns[0]}"]
    head += [f"ratio{column}" for column in columns] + ["target"]
    with_avx2 = any(row.get("avx2") for row in report["results"])
    head += [f"AVX2 ratio{column}" for column in columns] * with_avx2
    body = []
    for rows in _by_case(report):
        first = rows.get(threads[0])
        if first is None:
            continue
        ratios = [rows[n]["ratio_torchvision"] if n in rows else None for n in threads]
        cells = [f"`{first['operator']}`", _work(first)]
        cells += [seconds(first["contenders"]["rcnn_ext"]["median_s"]), _torchvision_time(first)]
        cells += [*map(ratio_cell, ratios), target_cell(first)]
        if with_avx2:
            forced = [(rows[n].get("avx2") or {}) if n in rows else {} for n in threads]
            cells += [ratio_cell(row.get("ratio_torchvision")) for row in forced]
        body.append(cells)
    return markdown(f"{machine(environment)} ([all figures]({link})):", head, body)


def _by_case(report: Report) -> list[dict[int, dict[str, Any]]]:
    """Group the rows that have something to show by case and dtype, then by threads."""
    cases: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in report["results"]:
        timed = "median_s" in row["contenders"]["rcnn_ext"]
        if row["ratio_torchvision"] is not None or (row["counterpart"] is None and timed):
            cases.setdefault((row["case"], row["dtype"]), {})[row["threads"]] = row
    return list(cases.values())


def _work(row: dict[str, Any]) -> str:
    return row["work"] + ("" if row["dtype"] == "float32" else f", {row['dtype']}")


def _torchvision_time(row: dict[str, Any]) -> str:
    """Format torchvision's time, or what stands there for an operator that it lacks."""
    if row["counterpart"] is not None:
        return seconds(row["contenders"]["torchvision"]["median_s"])
    reference = row["contenders"].get("reference", {}).get("median_s")
    beside = "" if reference is None else f"; our reference {seconds(reference)}"
    return f"not in torchvision{beside}"


def short_table(reports: dict[str, Report]) -> str:
    """Format the rows of README.md.

    Args:
        reports: Content of the newest file of each suite on one device.
    """
    body = []
    for suite, case in SHORT_ROWS:
        rows = [row for row in reports.get(suite, {}).get("results", []) if row["case"] == case]
        rows = [row for row in rows if row["ratio_torchvision"] is not None]
        if not rows:
            continue
        # Operators on one thread, whole models on all cores.
        pick = min if suite == "operators" else max
        row = pick(rows, key=lambda row: row["threads"])
        times = [row["contenders"][name]["median_s"] for name in ("rcnn_ext", "torchvision")]
        name = KINDS.get(suite, f"`{row['operator']}`")
        cells = [name, row["work"], str(row["threads"]), *map(seconds, times)]
        body.append([*cells, ratio_cell(row["ratio_torchvision"])])
    head = ["operator", "work", "threads", "rcnn_ext", "torchvision", "ratio"]
    return markdown(machine(next(iter(reports.values()))["environment"]) + ":", head, body)


def _unrun(name: str) -> str:
    return f"{name}: unrun; no result in `benchmarks/results`."


def short_block() -> str:
    """Return the figures of README.md."""
    parts = []
    for device, name in (("cpu", "CPU"), ("cuda", "CUDA")):
        found = {suite: newest(device, suite=suite) for suite in TABLES}
        reports = {suite: pair[1] for suite, pair in found.items() if pair is not None}
        parts.append(short_table(reports) if reports else _unrun(name))
        line = _runtimes_line(reports["models"]) if "models" in reports else ""
        parts += [line] * bool(line)
    return "\n\n".join(parts)


TABLES = {  # suite: title and table
    "operators": ("Operators", operator_table),
    "models": ("Faster R-CNN", model_table),
    "pipeline": ("Files to detections", pipeline_table),
}


def full_block() -> str:
    """Return the figures of benchmarks/README.md."""
    parts = []
    for suite, (title, table) in TABLES.items():
        parts.append(f"### {title}")
        for device, name in (("cpu", "CPU"), ("cuda", "CUDA")):
            found = newest(device, suite=suite)
            if found is None:
                parts.append(_unrun(name))
                continue
            path, report = found
            link = Path(os.path.relpath(path, FULL_README.parent)).as_posix()
            parts.append(table(link, report))
            if suite == "models" and _runtime_rows(report):
                parts.append(runtimes_table(report))
    return "\n\n".join(parts)


def clients_table(report: Report) -> str:
    """Format the detectors of torchvision, alone and accelerated: speed-ups in CPU time."""
    head = ["torchvision's", "threads", "alone", "`accelerate()`", '`level="models"`']
    body = []
    for row in report["results"]:
        entries = row["contenders"]
        cells = [row["work"], str(row["threads"]), seconds(entries["torchvision"]["median_cpu_s"])]
        for level in ("operators", "models"):
            cells.append(f"{entries[level]['cpu_ratio_torchvision']:.2f}x")
        body.append(cells)
    settings = report["settings"]
    caption = (
        f"CPU time, {settings['backbone']} where there is a choice, "
        f"{settings['width']}x{settings['height']}, {machine(report['environment'])}:"
    )
    return markdown(caption, head, body)


def clients_block() -> str:
    """Return the figures of docs/accelerate.md."""
    found = newest("cpu", suite="clients")
    return _unrun("CPU") if found is None else clients_table(found[1])


def updated(text: str, block: Callable[[], str]) -> str:
    """Return a README with the newest figures between its markers.

    Raises:
        ValueError: The text does not have each marker once.
    """
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{block()}\n{END}{after}"


DOCUMENTS = (
    (README, short_block),
    (FULL_README, full_block),
    (ACCELERATE, clients_block),
)


def main() -> int:
    """Write the figures, or check them."""
    status = 0
    for path, block in DOCUMENTS:
        text = path.read_text()
        new = updated(text, block)
        if "--check" not in sys.argv[1:]:
            path.write_text(new)
        elif new != text:
            name = path.relative_to(ROOT)
            print(f"{name} does not have the newest figures: run tools/update_readme.py")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
