"""The command ``rcnn-ext``: one module per command, and ``main``, which runs them."""

from rcnn_ext.cli.app import main

__all__ = ["main"]
