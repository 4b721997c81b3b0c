"""Show that the emulated tests can fail: break the CUDA kernels and see who notices.

Removes each barrier and each bounds test of the kernels in turn, runs the comparisons of
tests/emulation/test_kernels.py on each mutant, first as they are and then under AddressSanitizer,
and prints a table. Every mutant is in one build, behind a number that is chosen at run time; a
server that has all loaded forks for each.

Exit status: 0 when at least nine in ten mutants were caught and every survivor is explained below,
otherwise 1.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY)]

from emulation.backend import LIBRARY  # noqa: E402
from emulation.build import CACHE, address_sanitizer_environment, build  # noqa: E402

TIME_LIMIT = 120  # seconds for one mutant; the comparisons take a few
LEAST_CAUGHT = 0.9

# The operators whose cases concern a file; all of the RoI operators' for a header.
OPERATORS = {
    "box_iou_cuda.cu": ("box_iou", "generalized", "distance", "complete"),
    "nms_cuda.cu": ("nms", "batched_nms"),
    "roi_align_cuda.cu": ("roi_align",),
    "roi_pool_cuda.cu": ("roi_pool",),
}
ROI_OPERATORS = ("roi_align", "roi_pool")

HEADING = """# Mutants of the CUDA kernels

Made by `python tools/mutate_cuda.py --out docs/mutants.md`; what it does is in
[emulation.md](emulation.md). Loop bounds are weakened from `<` to `<=`, clamps dropped, everything
else removed.

"""

# Functions of the headers that keep the kernels inside of their inputs.
DEVICE_FUNCTIONS = ("interpolate", "pool_bin", "roi_batch_index")

# (file, mutated text, which of those in the file) -> why nothing can tell the mutant from the
# original.
EXPLAINED = {
    ("roi_gather.cuh", "base < roi_count", 1): "one more round, without a RoI",
    ("roi_gather.cuh", "ph0 < pooled_height", 1): "one more round, without a bin",
    ("roi_gather.cuh", "pw0 < pooled_width", 1): "one more round, without a bin",
    ("roi_gather.cuh", "inside", 1): (
        "saves work: pixels beyond the map have weights of 0 and are not stored"
    ),
    ("nms_cuda.cu", "group < count", 1): "one more round, over an empty group",
    ("nms_cuda.cu", "row < column", 1): (
        "saves work: a row's bits for itself and for earlier rows are not looked at any more"
    ),
    ("nms_cuda.cu", "column < size", 1): (
        "saves work: bits of columns beyond the group are not looked at"
    ),
    ("nms_cuda.cu", "thread >= group + size", 1): (
        "saves work: what an earlier group kept overlaps nothing that is kept now"
    ),
}


@dataclass(frozen=True)
class Mutant:
    """One change of the sources.

    Attributes:
        number: that switches it on.
        file: relative to csrc.
        line: of the change.
        kind: "barrier", "bounds", "loop bound" or "clamp".
        text: what was removed or weakened.
        occurrence: which of those with this text in the file, from 1.
    """

    number: int
    file: Path
    line: int
    kind: str
    text: str
    occurrence: int


@dataclass(frozen=True)
class Edit:
    """The text [begin, end) becomes ``before + text + after``."""

    begin: int
    end: int
    kind: str
    before: str
    after: str


def function_bodies(source: str) -> Iterator[tuple[int, int]]:
    """Where the bodies of the kernels and of ``DEVICE_FUNCTIONS`` lie."""
    names = "|".join(DEVICE_FUNCTIONS)
    starts = [m.start() for m in re.finditer(r"__global__", source)]
    starts += [
        m.start() for m in re.finditer(rf"RCNN_HOST_DEVICE [^;{{()]*\b(?:{names})\(", source)
    ]
    for start in starts:
        # Past the parameters (and __launch_bounds__), to the body.
        position = start
        while source[position] != "{":
            position = closing(source, position) if source[position] == "(" else position + 1
        yield position, closing(source, position)


def closing(source: str, opening: int) -> int:
    """The position after the bracket that closes the one at ``opening``."""
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
    """Parts of an expression outside of brackets: (begin, end, the separator before it)."""
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
    """Whether an operand compares by order (and is not a template's brackets)."""
    plain = re.sub(r"\b\w+_cast<[^<>]*>", "cast", text)
    return re.search(r"[^<>-](<=|>=|<|>)[^<>]", plain) is not None


def without_comments(source: str) -> str:
    """The source with comments blanked, every position kept."""
    return re.sub(
        r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), source, flags=re.DOTALL
    )


def condition_edits(source: str, begin: int, end: int, leaves: bool) -> Iterator[Edit]:
    """Each operand of a condition that tests bounds, as if it did not stand there.

    Args:
        source: of the file.
        begin: of the condition.
        end: of the condition.
        leaves: the condition guards a return, continue or break and not what is protected.
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
    """All changes of one file, none inside another."""
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
        for match in re.finditer(r"\b(?:const bool \w+ =|return)\s+([^;]*);", body):
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
    """The source with every change behind its number."""
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


def make_sources(folder: Path) -> list[Mutant]:
    """A copy of csrc with all mutants in it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(REPOSITORY / "csrc", folder)
    (folder / "emulation" / "mutants.h").write_text(
        '#pragma once\n__attribute__((visibility("default"))) inline int rcnn_active_mutant = 0;\n'
    )
    mutants: list[Mutant] = []
    files = [*folder.glob("*/*_cuda.cu"), *folder.glob("*/*.cuh"), *folder.glob("common/*.h")]
    for path in sorted(files):
        changed, made = mutate(path.read_text(), path.relative_to(folder), len(mutants) + 1)
        path.write_text(changed)
        mutants += made
    return mutants


class Server:
    """A process that has a library, the cases and the references' results loaded."""

    def __init__(self, library: Path, sanitize: bool) -> None:
        environment = dict(address_sanitizer_environment() if sanitize else os.environ)
        environment[LIBRARY] = str(library)
        command = [sys.executable, __file__, "--serve", *(["--sanitize"] if sanitize else [])]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, number: int, operators: tuple[str, ...]) -> str | None:
        """What the first comparison that fails says, or None when all agree."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([number, operators]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the server of the comparisons has died")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve(sanitize: bool) -> None:
    """Answer requests, one line of JSON each, until there are no more."""
    import torch
    from emulation import test_kernels
    from emulation.backend import emulator

    torch.set_num_threads(1)  # no threads to lose in a fork
    library = emulator().library
    active = ctypes.c_int.in_dll(library.functions, "rcnn_active_mutant")
    runs = [(case, 1) for case in test_kernels.CASES]
    if not sanitize:  # more schedules would touch the same addresses
        runs += [(c, seed) for c in test_kernels.SCHEDULED for seed in test_kernels.SEEDS]
    for case, _ in runs:
        test_kernels.expected_of(case)

    for line in sys.stdin:
        number, operators = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # AddressSanitizer's reports
            signal.alarm(TIME_LIMIT)
            active.value = number
            try:
                for case, seed in runs:
                    if case.name.startswith(tuple(operators)):
                        test_kernels.check(case, seed)
            except BaseException as error:
                os.write(writer, in_a_few_words(error).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            message = stream.read() or None
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if message is None and status != 0:
            ended = f"the process ends by signal {-status}"
            message = "never ends" if status == -signal.SIGALRM else ended
        print(json.dumps(message), flush=True)


def in_a_few_words(error: BaseException) -> str:
    """What a failed comparison says, without what differs from seed to seed."""
    text = str(error).strip() or type(error).__name__
    if "are not close" in text or "are not equal" in text or "mismatch" in text:
        return "a wrong result"
    if "depends on the schedule" in text:
        return "the result depends on the schedule"
    text = re.sub(r" \[seed \d+\]|, block .*?\)(?=, thread)|, thread .*?\)(?=:)", "", text)
    return text.splitlines()[0][:140]


def examine(mutant: Mutant, servers: dict[bool, Server]) -> tuple[Mutant, str | None, bool]:
    """Who catches a mutant: the message (None: nobody), and whether AddressSanitizer was needed."""
    operators = OPERATORS.get(mutant.file.name, ROI_OPERATORS)
    for sanitize, server in servers.items():
        message = server.ask(mutant.number, operators)
        if message is not None:
            return mutant, message, sanitize
    return mutant, None, False


def report(results: list[tuple[Mutant, str | None, bool]]) -> tuple[str, bool]:
    """The table, and whether it is good enough."""
    lines = ["| mutant | kind | removed or weakened | caught by |", "| --- | --- | --- | --- |"]
    unexplained = 0
    for mutant, message, sanitize in results:
        if message is None:
            reason = EXPLAINED.get((mutant.file.name, mutant.text, mutant.occurrence))
            unexplained += reason is None
            verdict = f"**survives**: {reason or 'unexplained'}"
        else:
            verdict = ("AddressSanitizer: " if sanitize else "") + message
        cells = [
            f"{mutant.file.as_posix()}:{mutant.line}",
            mutant.kind,
            f"`{mutant.text}`",
            verdict,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    caught = sum(message is not None for _, message, _ in results)
    share = caught / len(results)
    lines += ["", f"{caught} of {len(results)} mutants caught ({share:.1%})."]
    return "\n".join(lines), share >= LEAST_CAUGHT and unexplained == 0


def main() -> int:
    """Run the whole of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of mutants to examine")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sanitize", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.sanitize)
        return 0

    folder = CACHE / "mutants"
    mutants = make_sources(folder)
    if arguments.only:
        mutants = [m for m in mutants if m.number in arguments.only]
    if arguments.list:
        for mutant in mutants:
            print(mutant.number, f"{mutant.file}:{mutant.line}", mutant.kind, mutant.text)
        return 0
    include = ["-include", str(folder / "emulation" / "mutants.h")]
    libraries = {
        sanitize: build("mutants", csrc=folder, address_sanitizer=sanitize, flags=include)
        for sanitize in (False, True)
    }
    servers = {sanitize: Server(library, sanitize) for sanitize, library in libraries.items()}
    every = tuple(name for names in OPERATORS.values() for name in names)
    for server in servers.values():
        message = server.ask(0, every)
        if message is not None:
            print(f"the comparisons fail without a mutant: {message}", file=sys.stderr)
            return 1
    results = []
    for mutant in mutants:
        results.append(examine(mutant, servers))
        print(
            f"{len(results)}/{len(mutants)} {mutant.file.name}:{mutant.line} {mutant.text[:60]}: "
            f"{results[-1][1] or 'SURVIVES'}",
            file=sys.stderr,
            flush=True,
        )
    for server in servers.values():
        server.close()
    table, good = report(results)
    print(table)
    if arguments.out is not None:
        arguments.out.write_text(HEADING + table + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
