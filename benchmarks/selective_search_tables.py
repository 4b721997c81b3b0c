"""The tables of ``selective_search.py``, and their place in ``docs/selective_search.md``."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rcnn_ext import files

DOCS = Path(__file__).resolve().parents[1] / "docs" / "selective_search.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
PEERS = ("selectivesearch", "scikit-image", "scipy", "opencv-contrib-python-headless")
# The fields in which two results have to agree, for each image.
IDENTITY = ("same_label_image", "same_rects", "same_sizes", "same_labels")


def ratios(rows: list[dict[str, Any]], contender: str) -> str:
    values = sorted(row[f"{contender}_s"] / row["native_s"] for row in rows)
    return f"{statistics.median(values):.0f}x ({values[0]:.0f}x, {values[-1]:.0f}x)"


def summary(results: dict[str, Any]) -> list[str]:
    """Format the results as lines of Markdown tables."""
    machine = results["environment"]
    versions = ", ".join(
        f"{name} {machine['versions'][name]}" for name in ("numpy", *PEERS, "rcnn_ext")
    )
    lines = [
        f"{machine['device_name']}, {machine['date'][:10]}, `csrc/selective_search` at "
        f"`{machine['selective_search_hash']}`, {versions}."
    ]
    if "parity" in results:
        lines += ["", "| equal to the package | images |", "|---|---|"]
        for name, sort in (("parity", "as installed"), ("stable_parity", "with a stable argsort")):
            rows = results[name]["rows"]
            equal = sum(all(row[key] for key in IDENTITY) for row in rows)
            lines.append(f"| {sort} | {equal} of {len(rows)} |")
        for row in results["parity"]["rows"]:
            if "stable" in row:
                same = "equal" if all(row["stable"].values()) else "different as well"
                lines.append(
                    f"| not: {row['image']}, {row['tied_edges']} edges with ties | {same} with a "
                    "stable argsort |"
                )
    timed_parts = [name for name in ("parity", "speed") if name in results]
    if timed_parts:
        lines += [
            "",
            "| images | native, median | against the package: median (min, max) "
            "| against OpenCV's single strategy |",
            "|---|---|---|---|",
        ]
        for name in timed_parts:
            rows = results[name]["rows"]
            size = "as they are, about 640 x 480" if name == "parity" else "at 600 x 1000"
            native = statistics.median(row["native_s"] for row in rows) * 1e3
            lines.append(
                f"| {len(rows)} {size} | {native:.0f} ms | {ratios(rows, 'package')} "
                f"| {ratios(rows, 'opencv')} |"
            )
    if "recall" in results:
        found = results["recall"]
        lines += [
            "",
            f"{found['boxes']} boxes in {found['images']} images:",
            "",
            "| search | proposals | recall at 0.5 | at 0.7 | ABO | at 0.5, first 2000 | time |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, row in found["searches"].items():
            lines.append(
                f"| {name} | {row['proposals']:.0f} | {row['recall_50']:.3f} "
                f"| {row['recall_70']:.3f} | {row['average_best_overlap']:.3f} "
                f"| {row['recall_50_first_2000']:.3f} | {row['median_s'] * 1e3:.0f} ms |"
            )
    if "threads" in results:
        rates = results["threads"]["images_per_s"]
        lines += ["", "| threads | images per second |", "|---|---|"]
        lines += [f"| {count} | {rate:.1f} |" for count, rate in rates.items()]
    if "growth" in results:
        lines += [
            "",
            "| megapixels | native | per megapixel | memory | segments | pairs compared |",
            "|---|---|---|---|---|---|",
        ]
        for row in results["growth"]["rows"]:
            each = row["native_s"] / row["megapixels"] * 1e3
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f} MB"
            lines.append(
                f"| {row['megapixels']:.1f} | {row['native_s']:.2f} s | {each:.0f} ms | {peak} "
                f"| {row['segments']:,} | {row['pairs']:,} |"
            )
    return lines


def update_docs(lines: list[str]) -> None:
    text = DOCS.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    files.write_text(DOCS, "\n".join([before + BEGIN, *lines, END + after]))
