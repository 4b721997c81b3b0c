"""Damage files at random for some minutes, and keep what ends as no command must.

Usage: python -m tests.fuzz [--minutes M] [--seed N] [--only NAME ...] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import shutil
import sys
import time
from pathlib import Path

from tests.fuzz.harness import temporary_fuzzer
from tests.fuzz.seeds import SEEDS


def main() -> int:
    """Fuzz; return 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=None, help="default: another each time")
    parser.add_argument("--only", nargs="*", choices=sorted(SEEDS), default=None)
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-failures"), help="where failing cases are written"
    )
    options = parser.parse_args()
    seed = random.randrange(1 << 30) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    draw = random.Random(seed)
    fuzzer = temporary_fuzzer()
    end = time.monotonic() + 60 * options.minutes
    known: set[str] = set()
    count = 0
    try:
        while time.monotonic() < end:
            name = draw.choice(options.only) if options.only else None
            case = fuzzer.random_case(draw, name)
            count += 1
            for command, fault in fuzzer.failures(case):
                # Numbers, names and quotes differ from case to case.
                kind = re.sub(r"\d+|'[^']*'|/\S+", "#", f"{command[0]} {fault}")[:160]
                if kind in known:
                    continue
                known.add(kind)
                options.keep.mkdir(parents=True, exist_ok=True)
                mark = hashlib.sha256(kind.encode()).hexdigest()[:10]
                path = options.keep / f"{re.sub(r'[^a-z0-9]+', '-', case.seed.lower())}-{mark}.json"
                case.save(path)
                print(f"{path}: {' '.join(command)}\n  {fault}", flush=True)
    finally:
        shutil.rmtree(fuzzer.folder)
    print(f"{count} damaged cases, {len(known)} kinds of failures")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main())
