"""Compare the operators with ``torchvision.ops`` and the pure-PyTorch reference.

Every result is compared with a float64 reference before it is timed; the contenders run
interleaved in one process, on equal inputs and with an equal number of threads. ``rcnn-ext bench
--help`` lists the options, ``benchmarks/README.md`` explains the output.
"""

from __future__ import annotations

import argparse
import pathlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext bench``.

    Args:
        parser: the command's own parser.
    """
    from rcnn_ext.cli import bench as command

    command.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the comparison that the options ask for and print its table.

    Args:
        args: what :func:`add_arguments` declared.

    Returns:
        0, or 1 where an operator failed or gave a wrong result.

    Raises:
        UserError: an option asks for something that this machine or the suite does not have.
    """
    from rcnn_ext.cli import bench as command

    return command.run(args)


def run_quick(out_dir: pathlib.Path) -> pathlib.Path:
    """Run the small comparison (well under a minute on two cores) and write all it produces.

    Args:
        out_dir: folder for ``operators.txt``, ``operators.json`` and, where matplotlib is
            installed, the plots.

    Returns:
        The path of the table, ``operators.txt``.

    Raises:
        RuntimeError: an operator failed or gave a wrong result.
    """
    from rcnn_ext.cli import bench as command

    return command.run_quick(out_dir)
