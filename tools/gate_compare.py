"""The comparison with torchvision on a GPU, in processes that may fault, hang or be killed.

Runs ``rcnn-ext bench`` with rows written as they are measured. A kernel that faults takes the CUDA
context of its process with it, and so every later row there; so a new process goes on behind the
case that the last one ended in. A case that takes too long is stopped and left behind in the same
way. Interrupted, it stops with what there is.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from rcnn_ext.bench.row_lines import read_lines, rows_of, started_cases

# Seconds that one case may take, the start of a process with torch included.
CASE_LIMIT = 45.0
_POLL = 0.1


def run_child(command: list[str], rows: pathlib.Path, end: float, case_limit: float) -> int | None:
    """Run a process until it ends, the time is over, or nothing is written for too long.

    Returns:
        Its exit status; None where it was stopped.
    """
    child = subprocess.Popen(command)
    size, last = -1, time.monotonic()
    try:
        while child.poll() is None:
            now = time.monotonic()
            present = rows.stat().st_size if rows.exists() else 0
            if present != size:
                size, last = present, now
            if now >= end or now - last > case_limit:
                return None
            time.sleep(_POLL)
        return child.returncode
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=pathlib.Path, required=True, metavar="FILE")
    parser.add_argument("--seconds", type=float, required=True, help="stop after this time")
    parser.add_argument("--case-limit", type=float, default=CASE_LIMIT, help="default: 45")
    parser.add_argument("bench", nargs="*", help="further arguments of rcnn-ext bench, after --")
    options = parser.parse_args()
    command = [sys.executable, "-m", "rcnn_ext", "bench", "--rows", str(options.rows)]
    end = time.monotonic() + options.seconds
    code: int | None = None
    try:
        while time.monotonic() < end:
            begun = len(started_cases(read_lines(options.rows)))
            code = run_child([*command, *options.bench], options.rows, end, options.case_limit)
            # Any other end leaves it open whether there are more cases: a process that has none to
            # begin says so with 0.
            if code == 0 or len(started_cases(read_lines(options.rows))) == begun:
                break
    except KeyboardInterrupt:
        pass
    lines = read_lines(options.rows)
    print(f"COMPARISON: {len(rows_of(lines))} rows of {len(started_cases(lines))} cases begun")
    # Stopped for want of time, it has done what it could.
    return 0 if code in (0, None) else 1


if __name__ == "__main__":
    sys.exit(main())
