"""Arguments that several commands have, and the types that check them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rcnn_ext.config.data import DataConfig, FormatName


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Declare the positional argument ``checkpoint``."""
    parser.add_argument(
        "checkpoint",
        metavar="RUN",
        help="the --out of a training run (its best.ckpt, else last.ckpt), a checkpoint, an "
        "exported file, or hub:owner/name",
    )


def add_inference(parser: argparse.ArgumentParser) -> None:
    """Declare ``--batch-size``, ``--device`` and ``--trust``."""
    parser.add_argument("--batch-size", metavar="N", type=positive_int, help="images per batch")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to run (default: a GPU if there is one)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="let RUN be a package of compiled code (export --format aoti), which can do anything "
        "that you can: only if you know who made it",
    )


def add_data_source(parser: argparse.ArgumentParser, *more: str) -> None:
    """Declare the data set, further paths, ``data.key=value`` and ``--recipe``.

    Args:
        parser: Where they are declared.
        more: Names of paths that stand behind the data set, in upper case.
    """
    parser.add_argument(
        "dataset",
        metavar="IN" if more else "DATASET",
        type=Path,
        help="folder of the data set, or an archive of it (.zip, .tar, .tar.gz)",
    )
    for name in more:
        parser.add_argument(name.lower(), metavar=name, type=Path, help="folder to write")
    parser.add_argument("overrides", metavar="data.key=value", nargs="*", help="how to read it")
    parser.add_argument("--recipe", metavar="RECIPE", help="take the data section of this recipe")


def data_config(
    recipe: str | None, overrides: Sequence[str], format: FormatName | None
) -> DataConfig:
    """Return how a data set is read.

    Args:
        recipe: Name or path of the recipe that says so; None: none does.
        overrides: ``data.key=value`` each.
        format: The format; None: what the others say.

    Raises:
        UserError: One of them is wrong.
    """
    import dataclasses

    from rcnn_ext.config import apply_override, load_recipe, recipe_from_dict

    if recipe is not None:
        config = load_recipe(recipe, overrides).data
    else:
        values: dict[str, Any] = {"data": {}}
        for override in overrides:
            apply_override(values, override)
        config = recipe_from_dict(values).data
    return dataclasses.replace(config, format=format) if format else config


def add_shard(parser: argparse.ArgumentParser) -> None:
    """Declare ``--shard``."""
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="do part I of N, I from 1 (default: that of the process of torchrun, of srun or of a "
        "Slurm array; 1/1 does all)",
    )


def positive_int(text: str) -> int:
    """Parse an integer from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def positive_ints(text: str) -> tuple[int, ...]:
    """Parse integers from 1 on, separated by commas."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers like 1,2, got {text!r}") from None
    if any(number < 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"expected positive numbers, got {text!r}")
    return numbers


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {number}")
    return number


def seconds(text: str) -> float:
    """Parse a time: seconds, or minutes and seconds, or hours, minutes and seconds."""
    parts = text.split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if not 1 <= len(values) <= 3 or not all(0 <= value < float("inf") for value in values):
        raise argparse.ArgumentTypeError(f"expected a time like 90, 1:30 or 0:01:30, got {text!r}")
    total = 0.0
    for value in values:
        total = total * 60 + value
    return total
