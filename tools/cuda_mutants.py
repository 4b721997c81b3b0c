"""Find the mutations of the source of a CUDA kernel, and insert each behind a number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Functions of the headers that keep the kernels inside of their inputs.
DEVICE_FUNCTIONS = (
    "interpolate",
    "pool_bin",
    "roi_batch_index",
    "find_suppression_masks",
    "resolve_word",
    "bits_in_range",
    "block_nms",
    "count_scores",
    "count_lanes_before",
    "scan_warp_counts",
    "block_count_flags",
    "block_radix_select",
    # of the RoI operators
    "for_each_warp_tile",
    "for_each_bin",
    "write_staged",
    "find_plane_offsets",
    "collect_bin_taps",
    "collect_roi_taps",
    "pool_without_taps",
    "pool_channels_last",
    "pool_contiguous",
    "footprint_along",
    "find_slice",
    "find_overlapping_rois",
    "compute_bin_weights",
    "compute_tile_weights",
    "accumulate_rois",
    "store_column",
)


@dataclass(frozen=True)
class Mutant:
    """One change of the sources.

    Attributes:
        number: Switches the mutant on.
        file: Path relative to csrc.
        line: Line of the change.
        kind: "barrier", "atomic", "bounds", "loop bound" or "clamp".
        text: Removed or weakened text.
        occurrence: Index among the equal texts of the file, from 1.
    """

    number: int
    file: Path
    line: int
    kind: str
    text: str
    occurrence: int


@dataclass(frozen=True)
class Edit:
    """Replace the text [begin, end) by ``before + text + after``."""

    begin: int
    end: int
    kind: str
    before: str
    after: str


def function_bodies(source: str) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the bodies of the kernels and of ``DEVICE_FUNCTIONS``."""
    names = "|".join(DEVICE_FUNCTIONS)
    starts = [m.start() for m in re.finditer(r"__global__", source)]
    starts += [
        m.start()
        for m in re.finditer(rf"(?:RCNN_HOST_DEVICE|__device__) [^;{{()]*\b(?:{names})\(", source)
    ]
    for start in starts:
        # Past the parameters (and __launch_bounds__), to the body.
        position = start
        while source[position] != "{":
            position = closing(source, position) if source[position] == "(" else position + 1
        yield position, closing(source, position)


def closing(source: str, opening: int) -> int:
    """Return the position after the bracket that closes the one at ``opening``."""
    pairs = {"(": ")", "{": "}", "[": "]"}
    stack = []
    for position in range(opening, len(source)):
        if source[position] in pairs:
            stack.append(pairs[source[position]])
        elif stack and source[position] == stack[-1]:
            stack.pop()
            if not stack:
                return position + 1
    raise ValueError("unbalanced brackets")


def split_top_level(text: str, separators: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """Split an expression outside of brackets into (begin, end, the separator before it)."""
    parts, begin, separator, position = [], 0, "", 0
    while position < len(text):
        if text[position] in "([{":
            position = closing(text, position)
            continue
        found = next((s for s in separators if text.startswith(s, position)), None)
        if found is None:
            position += 1
            continue
        parts.append((begin, position, separator))
        position += len(found)
        begin, separator = position, found
    parts.append((begin, len(text), separator))
    return parts


def is_bounds_test(text: str) -> bool:
    """Return whether an operand compares by order (and is not a template's brackets)."""
    plain = re.sub(r"\b\w+_cast<[^<>]*>", "cast", text)
    return re.search(r"[^<>-](<=|>=|<|>)[^<>]", plain) is not None


def without_comments(source: str) -> str:
    """Blank the comments of a source, keeping every position."""
    return re.sub(
        r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), source, flags=re.DOTALL
    )


def condition_edits(source: str, begin: int, end: int, leaves: bool) -> Iterator[Edit]:
    """Yield an edit for each operand of a condition that tests bounds, which neutralizes it.

    Args:
        source: Text of the file.
        begin: Where the condition begins.
        end: Where it ends.
        leaves: The condition guards a return, continue or break and not the protected code.
    """
    condition = source[begin:end]
    operator = "||" if split_top_level(condition, ("||",))[1:] else "&&"
    parts = split_top_level(condition, (operator,))
    for first, last, _ in parts:
        operand = condition[first:last]
        stripped = operand.strip()
        if stripped != "inside" and not is_bounds_test(f" {stripped} "):
            continue
        first += len(operand) - len(operand.lstrip())
        neutral = "false" if operator == "||" or (len(parts) == 1 and leaves) else "true"
        if stripped.startswith("!(") and len(parts) == 1:
            neutral = "false" if leaves else "true"
        before = "(MUTATED ? " + neutral + " : static_cast<bool>("
        yield Edit(begin + first, begin + first + len(stripped), "bounds", before, "))")


def edits_of(source: str) -> list[Edit]:
    """Return all edits of one file."""
    clean = without_comments(source)
    found: list[Edit] = []
    for body_begin, body_end in function_bodies(clean):
        body = clean[body_begin:body_end]
        for match in re.finditer(r"__syncthreads\(\);|__syncwarp\(\w*\);", body):
            at = body_begin + match.start()
            found.append(
                Edit(
                    at, body_begin + match.end(), "barrier", "do { if (!MUTATED) ", " } while (0);"
                )
            )
        # As a statement: what an expression takes from it cannot be left out.
        for match in re.finditer(r"(?<=[;{})])\s+(atomic\w+\()", body):
            at = body_begin + match.start(1)
            end = closing(clean, body_begin + match.end() - 1)
            if clean[end] == ";":
                found.append(Edit(at, end + 1, "atomic", "do { if (!MUTATED) ", " } while (0);"))
        for match in re.finditer(r"\bif \(", body):
            opening = body_begin + match.end() - 1
            close = closing(clean, opening)
            rest = clean[close:].lstrip()
            leaves = re.match(r"\{?\s*(return|continue|break)\b", rest) is not None
            found += condition_edits(clean, opening + 1, close - 1, leaves)
        for match in re.finditer(r"\bfor \(", body):
            opening = body_begin + match.end() - 1
            close = closing(clean, opening)
            header = clean[opening + 1 : close - 1]
            parts = split_top_level(header, (";",))
            if len(parts) != 3:
                continue
            first, last, _ = parts[1]
            compared = re.match(r"(\s*)(\w+) < (.+)$", header[first:last], flags=re.DOTALL)
            if compared is None:
                continue
            begin = opening + 1 + first + len(compared[1])
            weaker = f"{compared[2]} <= {compared[3]}"
            found.append(
                Edit(begin, opening + 1 + last, "loop bound", f"(MUTATED ? {weaker} : ", ")")
            )
        for match in re.finditer(r"\b(?:(?:const )?bool \w+ =|return)\s+([^;]*);", body):
            found += condition_edits(
                clean, body_begin + match.start(1), body_begin + match.end(1), False
            )
        for match in re.finditer(r"\bmin\(", body):
            opening = body_begin + match.end() - 1
            close = closing(clean, opening)
            first, last, _ = split_top_level(clean[opening + 1 : close - 1], (",",))[0]
            tile = clean[opening + 1 + first : opening + 1 + last]
            found.append(
                Edit(body_begin + match.start(), close, "clamp", f"(MUTATED ? {tile} : ", ")")
            )
        for match in re.finditer(r"(\w+) < 0 \? 0 : \1 > ([\w.]+) \? \2 : \1", body):
            begin, end = body_begin + match.start(), body_begin + match.end()
            value = match[1]
            found.append(Edit(begin, end, "clamp", f"MUTATED ? {value} : ", ""))
    unique = {(edit.begin, edit.end, edit.kind): edit for edit in found}
    return sorted(unique.values(), key=lambda edit: (edit.begin, -edit.end))


def mutate(source: str, file: Path, first_number: int) -> tuple[str, list[Mutant]]:
    """Return the source with every edit behind its number, and the mutants."""
    edits = edits_of(source)
    mutants, inserts = [], []
    for number, edit in enumerate(edits, first_number):
        text = " ".join(source[edit.begin : edit.end].split())
        line = source.count("\n", 0, edit.begin) + 1
        occurrence = 1 + sum(m.text == text for m in mutants)
        mutants.append(Mutant(number, file, line, edit.kind, text, occurrence))
        test = f"(rcnn_active_mutant == {number})"
        # Nested changes: the outer one opens first and closes last.
        inserts.append((edit.begin, 1, -edit.end, edit.before.replace("MUTATED", test)))
        inserts.append((edit.end, 0, -edit.begin, edit.after.replace("MUTATED", test)))
    for position, _, _, text in sorted(inserts, reverse=True):
        source = source[:position] + text + source[position:]
    return source, mutants
