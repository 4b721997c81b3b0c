"""Run ``python -m rcnn_ext.bench``, an alias of ``rcnn-ext bench``."""

from __future__ import annotations

import argparse
import sys

from rcnn_ext import bench
from rcnn_ext.errors import UserError


def main() -> int:
    """Parse the options, run, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rcnn_ext.bench", description=bench.__doc__)
    bench.add_arguments(parser)
    try:
        return bench.run(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
