"""Arguments that several commands have, and the types that check them."""

from __future__ import annotations

import argparse


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Declare the positional argument ``checkpoint``."""
    parser.add_argument(
        "checkpoint",
        metavar="RUN",
        help="the --out of a training run (its best.ckpt, else last.ckpt), a checkpoint, an "
        "exported file, or hub:owner/name",
    )


def add_inference(parser: argparse.ArgumentParser) -> None:
    """Declare ``--batch-size`` and ``--device``."""
    parser.add_argument("--batch-size", metavar="N", type=positive_int, help="images per batch")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to run (default: a GPU if there is one)",
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
