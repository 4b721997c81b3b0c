"""Mutation testing of the CUDA kernels by the emulated tests.

Removes each barrier, each atomic and each bounds test of the kernels in turn, runs the comparisons
of tests/emulation/test_kernels.py on each mutant, first as they are and then under
AddressSanitizer, and prints a table. Every mutant is in one build, behind a number that is chosen
at run time; a server that has all loaded forks for each.

With ``--only`` the mutants of some files; the table keeps its rows for the others.

Exit status: 0 when at least 90 in 100 mutants were caught and every survivor is explained below,
otherwise 1.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tools"), str(REPOSITORY)]

from cuda_mutants import Mutant, mutate  # noqa: E402

from tests.helpers.emulation.backend import LIBRARY  # noqa: E402
from tests.helpers.emulation.build import CACHE, address_sanitizer_environment, build  # noqa: E402

TIME_LIMIT = 240  # seconds for one mutant; the comparisons take a few
LEAST_CAUGHT = 0.9  # the others change nothing: one round more, or less work saved

# The operators whose cases concern a file; all of the RoI operators' for a header.
OPERATORS = {
    "box_iou_cuda.cu": ("box_iou", "generalized", "distance", "complete"),
    "match_boxes_cuda.cu": ("match_boxes",),
    "nms_chunk_cuda_kernels.cuh": ("nms", "batched_nms"),
    "soft_nms_cuda.cu": ("soft_nms", "batched_soft_nms"),
    "generate_proposals_cuda.cu": ("generate_proposals",),
    "postprocess_detections_cuda.cu": ("postprocess_detections",),
    "nms_score_order_cuda_kernels.cuh": ("nms", "batched_nms"),
    "nms_block_cuda_kernels.cuh": (
        "nms",
        "batched_nms",
        "generate_proposals",
        "postprocess_detections",
    ),
    "roi_pool_cuda.cu": ("roi_pool",),
}
ROI_OPERATORS = ("roi_align", "roi_pool", "multiscale_roi_align")
OPERATORS["block_primitives.cuh"] = (
    *ROI_OPERATORS,
    "nms",
    "batched_nms",
    "generate_proposals",
    "postprocess_detections",
    "soft_nms",
)

SURVIVES = "**survives**"
HEADING = """# Mutants of the CUDA kernels

Made by `python tools/mutate_cuda.py --out docs/mutants.md`; what it does is in
[emulation.md](emulation.md). Loop bounds are weakened from `<` to `<=`, clamps dropped, everything
else removed.

"""

EXCHANGED = (
    "the warp meets again, in the exchange of the next bins, before anything is overwritten; that "
    "does not order memory, which emulation has in order anyway"
)

# (file, mutated text, occurrence in the file) -> why the mutant is equivalent to the original.
EXPLAINED = {
    ("quad.cuh", "i < tiles", 1): "one more round, of the last channel again, written by nobody",
    ("quad.cuh", "pass < tile.bins", 1): "one more round, without a bin",
    ("gather_weights.cuh", "r < kTileHeight", 2): "a bin more in the mask, whose weights are all 0",
    (
        "gather_weights.cuh",
        "c < Shape::kTileWidth",
        1,
    ): "the padding of a row of weights is cleared too",
    ("roi_gather.cuh", "c < kChannels", 6): "no thread has as many channels: c < place.valid",
    ("roi_gather.cuh", "base < plan.roi_count", 1): "one more round, without a RoI",
    ("roi_gather.cuh", "first < total", 1): "one more round, over no RoI",
    ("roi_gather.cuh", "ph0 < plan.pooled_height", 1): "one more round, without a bin",
    ("roi_gather.cuh", "pw0 < plan.pooled_width", 1): "one more round, without a bin",
    ("roi_align_forward_cuda_kernels.cuh", "__syncwarp();", 2): EXCHANGED,
    ("roi_pool_cuda.cu", "__syncwarp();", 2): EXCHANGED,
    (
        "roi_align_forward_cuda_kernels.cuh",
        "inside",
        2,
    ): "saves work: there is room, and nobody writes it out",
    ("roi_pool_cuda.cu", "inside", 2): "saves work: there is room, and nobody writes it out",
    ("match_boxes_cuda.cu", "first < image.box_count", 1): "one more round, of the last box again",
    ("match_boxes_cuda.cu", "first < image.box_count", 2): "one more round, of the last box again",
    ("match_boxes_cuda.cu", "tile < image.gt_count", 1): "one more round, over an empty tile",
    ("match_boxes_cuda.cu", "tile < image.gt_count", 2): "one more round, over an empty tile",
    (
        "nms_chunk_cuda_kernels.cuh",
        "first < carried_count",
        1,
    ): "one more round, over an empty tile",
    (
        "nms_chunk_cuda_kernels.cuh",
        "first < size && found < output.max_kept",
        1,
    ): "one more round, without a flag",
    ("nms_block_cuda_kernels.cuh", "column < size", 1): (
        "saves work: bits of columns beyond the word are not looked at"
    ),
    ("nms_block_cuda_kernels.cuh", "first < count && kept_count < max_kept", 1): (
        "one more round, over an empty word"
    ),
    ("nms_block_cuda_kernels.cuh", "k < kept_count", 1): (
        "one more box, in room that nobody has written: poison has no extent"
    ),
    ("block_primitives.cuh", "base < count", 1): "one more round, without a key",
    ("generate_proposals_cuda.cu", "step < steps", 2): (
        "the first anchors of the next warp once more, to the same places"
    ),
    ("postprocess_detections_cuda.cu", "base < count && found < max_detections", 1): (
        "one more round, without a candidate"
    ),
}

# (file, mutated text, occurrence) -> reason, for mutants that are not examined: they change how
# much work a kernel does and not its result, so no test of results can notice.
WORK_SAVED = {
    ("roi_gather.cuh", "task.key < range.x", 1): "a round without the tile's image",
    ("roi_gather.cuh", "task.key > range.y", 1): "a round without the tile's image",
    ("roi_footprint.cuh", "box.y < box.y_end", 1): "no tile overlaps an empty box",
    ("roi_footprint.cuh", "box.x < box.x_end", 1): "no tile overlaps an empty box",
    (
        "nms_chunk_cuda_kernels.cuh",
        "row_word > column_word",
        1,
    ): "the words of such a block are not read",
    (
        "nms_chunk_cuda_kernels.cuh",
        "!(intersection_area(box, other) > limits[0][row] + limits[1][column])",
        1,
    ): "a filter before the exact test",
    (
        "nms_chunk_cuda_kernels.cuh",
        "intersection_area(tile[k], mine) > limits[k] + my_limit",
        1,
    ): "a filter before the exact test",
    ("nms_chunk_cuda_kernels.cuh", "atomicMin(&end, first_start);", 1): (
        "each block goes on to the end, and finds what others find"
    ),
    (
        "nms_chunk_cuda_kernels.cuh",
        "total >= output.max_kept",
        1,
    ): "what comes after a full result is not stored",
    ("soft_nms_cuda.cu", "old_score < T(0)", 1): "a removed box stays removed",
    ("match_boxes_cuda.cu", "bits > tile_best[g]", 1): (
        "an atomic maximum with less changes nothing"
    ),
    ("match_boxes_cuda.cu", "best_iou[n] < gt_best_iou", 1): "no IoU of such a box is as high",
}


def make_sources(folder: Path) -> list[Mutant]:
    """Write a copy of csrc with all mutants in it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(REPOSITORY / "csrc", folder)
    (folder / "mutants.h").write_text(
        '#pragma once\n__attribute__((visibility("default"))) inline int rcnn_active_mutant = 0;\n'
    )
    mutants: list[Mutant] = []
    files = [*folder.glob("*/*_cuda.cu"), *folder.rglob("*.cuh"), *folder.glob("core/*.h")]
    for path in sorted(files):
        changed, made = mutate(path.read_text(), path.relative_to(folder), len(mutants) + 1)
        path.write_text(changed)
        mutants += made
    return mutants


class Server:
    """A process with a library, the cases and the references' results loaded."""

    def __init__(self, library: Path, sanitize: bool) -> None:
        environment = dict(address_sanitizer_environment() if sanitize else os.environ)
        environment[LIBRARY] = str(library)
        command = [sys.executable, __file__, "--serve", *(["--sanitize"] if sanitize else [])]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, number: int, operators: tuple[str, ...]) -> str | None:
        """Return the message of the first comparison that fails, or None if all agree."""
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

    from tests.emulation import test_kernels
    from tests.helpers.emulation.backend import emulator

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
    """Shorten the message of a failed comparison, without details that depend on the seed."""
    text = str(error).strip() or type(error).__name__
    if "are not close" in text or "are not equal" in text or "mismatch" in text:
        return "a wrong result"
    if "depends on the schedule" in text:
        return "the result depends on the schedule"
    text = re.sub(r" \[seed \d+\]|, block .*?\)(?=, thread)|, thread .*?\)(?=:)", "", text)
    return text.splitlines()[0][:140].rstrip()


def operators_of(mutant: Mutant) -> tuple[str, ...]:
    """Return the operators whose cases run through the mutant's file."""
    return OPERATORS.get(mutant.file.name, ROI_OPERATORS)


def is_chosen(mutant: Mutant, patterns: list[str], numbers: list[int] | None) -> bool:
    """Return whether the command line selects a mutant."""
    file = mutant.file
    named = any(
        fnmatch.fnmatch(file.as_posix(), p) or fnmatch.fnmatch(file.name, p) for p in patterns
    )
    return named and (not numbers or mutant.number in numbers)


@dataclass(frozen=True)
class Row:
    """A mutant and the check that catches it; None if it survives."""

    mutant: Mutant
    caught_by: str | None


def examine(mutant: Mutant, servers: dict[bool, Server]) -> Row:
    """Ask the servers in turn, until one catches the mutant."""
    operators = operators_of(mutant)
    for sanitize, server in servers.items():
        message = server.ask(mutant.number, operators)
        if message is not None:
            return Row(mutant, ("AddressSanitizer: " if sanitize else "") + message)
    return Row(mutant, None)


def earlier_rows(table: Path, mutants: list[Mutant]) -> list[Row]:
    """Read the verdicts on mutants, all those of their files, from an earlier table.

    Raises:
        SystemExit: The table has other mutants for one of the files.
    """
    told: dict[str, list[tuple[str, str, str]]] = {}
    for line in table.read_text().splitlines():
        cells = [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and ":" in cells[0]:
            file, kind, text, verdict = cells[0].rpartition(":")[0], *cells[1:]
            told.setdefault(file, []).append((kind, text[1:-1], verdict))
    rows = []
    for file in sorted({m.file.as_posix() for m in mutants}):
        its = [m for m in mutants if m.file.as_posix() == file]
        known = told.get(file, [])
        if [(m.kind, m.text) for m in its] != [(kind, text) for kind, text, _ in known]:
            raise SystemExit(f"{table} does not know the mutants of {file}: examine those too")
        for mutant, (_, _, verdict) in zip(its, known, strict=True):
            rows.append(Row(mutant, None if verdict.startswith(SURVIVES) else verdict))
    return rows


def report(rows: list[Row]) -> tuple[str, bool]:
    """Return the table, and whether enough mutants are caught and all survivors explained."""
    lines = ["| mutant | kind | removed or weakened | caught by |", "| --- | --- | --- | --- |"]
    unexplained = 0
    for row in rows:
        mutant, verdict = row.mutant, row.caught_by
        if verdict is None:
            reason = EXPLAINED.get((mutant.file.name, mutant.text, mutant.occurrence))
            unexplained += reason is None
            verdict = f"{SURVIVES}: {reason or 'unexplained'}"
        cells = [
            f"{mutant.file.as_posix()}:{mutant.line}",
            mutant.kind,
            f"`{mutant.text}`",
            verdict,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if WORK_SAVED:
        lines += ["", "Not examined, since it only saves work:", ""]
        lines += [
            f"- {file}: `{text}`: {reason}".replace("|", "\\|")
            for (file, text, _), reason in WORK_SAVED.items()
        ]
    caught = sum(row.caught_by is not None for row in rows)
    share = caught / len(rows)
    lines += ["", f"{caught} of {len(rows)} mutants caught ({share:.1%})."]
    return "\n".join(lines), share >= LEAST_CAUGHT and unexplained == 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    parser.add_argument("--numbers", type=int, nargs="+", help="of mutants to examine alone")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PATTERN",
        default=["*"],
        help="examine the mutants of these files, as 'roi_pool/*'; --out keeps the other rows",
    )
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sanitize", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.sanitize)
        return 0

    folder = CACHE / "mutants"
    mutants = make_sources(folder)
    mutants = [m for m in mutants if (m.file.name, m.text, m.occurrence) not in WORK_SAVED]
    if arguments.numbers and arguments.out is not None:
        parser.error("--out wants whole files: --only, not --numbers")
    chosen = [m for m in mutants if is_chosen(m, arguments.only, arguments.numbers)]
    if not chosen:
        parser.error("no such mutant")
    others = [m for m in mutants if m not in chosen]
    kept = earlier_rows(arguments.out, others) if arguments.out is not None and others else []
    if arguments.list:
        for mutant in chosen:
            print(mutant.number, f"{mutant.file}:{mutant.line}", mutant.kind, mutant.text)
        return 0
    include = ["-include", str(folder / "mutants.h")]
    libraries = {
        sanitize: build("mutants", csrc=folder, address_sanitizer=sanitize, flags=include)
        for sanitize in (False, True)
    }
    servers = {sanitize: Server(library, sanitize) for sanitize, library in libraries.items()}
    concerned = tuple({name for m in chosen for name in operators_of(m)})
    for server in servers.values():
        message = server.ask(0, concerned)
        if message is not None:
            print(f"the comparisons fail without a mutant: {message}", file=sys.stderr)
            return 1
    rows = []
    for mutant in chosen:
        rows.append(examine(mutant, servers))
        print(
            f"{len(rows)}/{len(chosen)} {mutant.file.name}:{mutant.line} {mutant.text[:60]}: "
            f"{rows[-1].caught_by or 'SURVIVES'}",
            file=sys.stderr,
            flush=True,
        )
    for server in servers.values():
        server.close()
    table, good = report(sorted(rows + kept, key=lambda row: row.mutant.number))
    print(table)
    if arguments.out is not None:
        arguments.out.write_text(HEADING + table + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
