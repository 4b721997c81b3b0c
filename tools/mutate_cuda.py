"""Mutation testing of the CUDA kernels by the emulated tests.

Removes each barrier, each atomic and each bounds test of the kernels in turn, runs the comparisons
of tests/emulation/test_kernels.py on each mutant, first as they are and then under
AddressSanitizer, and prints a table. Every mutant is in one build, behind a number that is chosen
at run time; a server that has all loaded forks for each.

With ``--only`` the mutants of some files; the table keeps its rows for the others.

Exit status: 0 when at least 90 in 100 mutants were caught and every survivor is explained in
cuda_mutant_tables.py, otherwise 1.
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
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tools"), str(REPOSITORY)]

from cuda_mutant_tables import EXPLAINED, OPERATORS, ROI_OPERATORS, WORK_SAVED  # noqa: E402
from cuda_mutants import Mutant, mutate  # noqa: E402

from tests.helpers.emulation.backend import LIBRARY  # noqa: E402
from tests.helpers.emulation.build import CACHE, address_sanitizer_environment, build  # noqa: E402
from tests.helpers.order_server import OrderServer  # noqa: E402

TIME_LIMIT = 240  # seconds for one mutant; the comparisons take a few
LEAST_CAUGHT = 0.9  # the others change nothing: one round more, or less work saved

SURVIVES = "**survives**"
HEADING = """# Mutants of the CUDA kernels

Made by `python tools/mutate_cuda.py --out docs/mutants.md`; what it does is in
[emulation.md](emulation.md). Loop bounds are weakened from `<` to `<=`, clamps dropped, everything
else removed.

"""


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
        self._server = OrderServer(command, environment)

    def ask(self, number: int, operators: tuple[str, ...]) -> str | None:
        """Return the message of the first comparison that fails, or None if all agree."""
        return self._server.ask([number, operators])

    def close(self) -> None:
        """End the process."""
        self._server.close()


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
    # launch.cuh names the emulator relative to its own place in the repository.
    include = ["-include", str(folder / "mutants.h"), "-I", str(REPOSITORY / "csrc" / "cuda")]
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
