"""The command ``rcnn-ext check``."""

from __future__ import annotations

import argparse

SUMMARY = "list all errors of a data set, by file and line"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext check``."""
    from rcnn_ext.data import check

    check.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Check a data set."""
    from rcnn_ext.data import check

    return check.run(options)
