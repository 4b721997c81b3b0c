"""Attack the package for some minutes, and count what no program should meet.

Usage: python -m tests.attack [--minutes M] [--seed N] [--only PART ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import time
from pathlib import Path

import torch

from tests.attack import memory, operators, threads

# Of the time.
SHARES = {"operators": 0.55, "files": 0.3, "memory": 0.05, "threads": 0.1}
_SHOWN = 200


def attack_operators(seconds: float, seed: int) -> tuple[dict[str, int], list[str]]:
    """Make all single mutations in a random order, then several at a time."""
    draws = random.Random(seed)
    found = [*operators.raw_operators(), *operators.public_operators()]
    single = operators.single_cases(found)
    draws.shuffle(single)
    cases = itertools.chain(single, operators.random_cases(found, draws))
    report = operators.attack(cases, seconds)
    faults = [f"{kind}: {text}" for kind, texts in report.faults.items() for text in texts]
    return report.counts(), faults


def attack_files(seconds: float, seed: int) -> tuple[dict[str, int], list[str]]:
    """Damage files at random and run the commands that read them."""
    from tests.fuzz.harness import temporary_fuzzer

    draws, fuzzer = random.Random(seed), temporary_fuzzer()
    end = time.monotonic() + seconds
    cases, files, faults = 0, 0, []
    try:
        while time.monotonic() < end:
            case = fuzzer.random_case(draws)
            cases += 1
            files += len(case.files)
            faults += [f"{' '.join(command)}: {how}" for command, how in fuzzer.failures(case)]
    finally:
        shutil.rmtree(fuzzer.folder)
    return {"cases": cases, "files": files, "failures": len(faults)}, faults


def attack_threads(seconds: float, seed: int) -> tuple[dict[str, int], list[str]]:
    """Call from eight threads."""
    count, faults = threads.attack(seconds)
    return {"calls": count, "failures": len(faults)}, faults


def attack_memory(seconds: float, seed: int) -> tuple[dict[str, int], list[str]]:
    """Call with too little memory."""
    count, faults = memory.attack(seconds)
    return {"calls": count, "failures": len(faults)}, faults


PARTS = {
    "operators": attack_operators,
    "files": attack_files,
    "threads": attack_threads,
    "memory": attack_memory,
}


def main() -> int:
    """Attack; return 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="default: another each time")
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    parser.add_argument("--out", type=Path, default=None, help="JSON file for counts and failures")
    options = parser.parse_args()
    seed = random.randrange(1 << 30) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    total = sum(SHARES[part] for part in options.only)
    result: dict[str, object] = {"seed": seed, "torch": torch.__version__}
    failed = False
    # Before the threads of the others: what is forked then could wait for their locks for good.
    for part in sorted(options.only, key=list(SHARES).index):
        seconds = 60 * options.minutes * SHARES[part] / total
        counts, faults = PARTS[part](seconds, seed)
        result[part] = {**counts, "faults": faults}
        print(f"{part}: " + ", ".join(f"{n} {what}" for what, n in counts.items()), flush=True)
        for text in faults[:_SHOWN]:
            print("  " + " ".join(text.split())[:400], flush=True)
        failed = failed or bool(faults)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
