"""``python -m rcnn_ext.accelerate script.py args``: run a script with torchvision accelerated."""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence

from rcnn_ext.accelerate.environment import VARIABLE
from rcnn_ext.accelerate.switch import LEVELS, Acceleration
from rcnn_ext.errors import UserError, one_line

_EPILOG = """\
examples:
  python -m rcnn_ext.accelerate train.py --epochs 3
  python -m rcnn_ext.accelerate --level models -m package.train --epochs 3
  torchrun --nproc-per-node 4 -m rcnn_ext.accelerate train.py

Programs that the script starts, and that import rcnn_ext, are accelerated as well: the variable
RCNN_EXT_ACCELERATE is set for them.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rcnn_ext.accelerate",
        description="Run a script with torchvision's operators on the kernels of rcnn_ext.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--level",
        choices=LEVELS,
        default="operators",
        help="operators, or models for parts of torchvision's detectors too (default: operators)",
    )
    parser.add_argument(
        "--inexact",
        action="store_true",
        help="take the results of rcnn_ext where they differ from torchvision's by design",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="run a module, by its name")
    parser.add_argument("script", help="the script, or with -m the module")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    return parser


def _check_exists(name: str, is_module: bool) -> None:
    if not is_module:
        # Also a folder or archive with a __main__.py, as Python runs it.
        if not os.path.exists(name):
            raise UserError(f"{name}: no such script; expected a Python file, or -m and a module")
        return
    try:
        found = importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of a parent that is no package, or an odd name
        found = False
    if not found:
        raise UserError(f"-m {name}: no such module; expected one that Python can import")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script or module that the arguments name, as ``__main__``.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        0, or 2 where there is no such script. An exit of the script itself passes through.
    """
    options = _parser().parse_args(argv)
    try:
        _check_exists(options.script, options.module)
        Acceleration(options.level, not options.inexact)
    except UserError as error:
        print(f"rcnn_ext.accelerate: {one_line(str(error))}", file=sys.stderr)
        return 2
    os.environ[VARIABLE] = options.level
    sys.argv = [options.script, *options.args]
    if options.module:
        # Where `python -m` looks for modules, and where this was started with it.
        runpy.run_module(options.script, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(options.script))
        runpy.run_path(options.script, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
