"""The command line and the JSON file that the measurements of recipes share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from rcnn_ext._environment import describe
from rcnn_ext.files import write_json

Measure = Callable[[str, Path, Path | None], dict[str, Any]]


def record(doc: str, suite: str, known: Iterable[str], measure: Measure) -> int:
    """Measure the recipes that are named on the command line, or all.

    The command line is ``[--pictures FOLDER] DATA OUT.json [NAME ...]``. After each recipe, the new
    measurement and its environment replace its entry in OUT.json; entries of other recipes stay.

    Args:
        doc: Text of ``--help``.
        suite: Name of the suite in the file.
        known: Names of the recipes.
        measure: Takes a name, the folder DATA and the folder for pictures or None; returns the
            entry, with ``passed``.

    Returns:
        The exit code: 1 if an entry has not passed, else 0.
    """
    names = list(known)
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA", type=Path)
    parser.add_argument("out", metavar="OUT.json", type=Path)
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(names))
    parser.add_argument("--pictures", metavar="FOLDER", type=Path, help="draw results there")
    options = parser.parse_args()
    for name in options.names:
        if name not in names:
            parser.error(f"there is no {name}; there are {', '.join(names)}")
    passed = True
    for name in options.names or names:
        entry = measure(name, options.data, options.pictures)
        plain = {key: value for key, value in entry.items() if not isinstance(value, (dict, list))}
        print(f"{name}: {plain | entry.get('reached', {})}", flush=True)
        passed &= bool(entry["passed"])
        # Read late: another process may have added a recipe meanwhile.
        found = (
            json.loads(options.out.read_text())
            if options.out.is_file()
            else {"suite": suite, "recipes": {}}
        )
        found["recipes"][name] = {"environment": describe(torch.device("cpu")), **entry}
        write_json(options.out, found)
    return 0 if passed else 1
