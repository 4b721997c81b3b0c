"""Progress of long work: a tqdm bar on a terminal, occasional lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

# In a log file, such as of a batch system, tqdm would overwrite its one line without end. Lines are
# at least this many seconds apart, and this fraction of the time since the start, so that a run of
# days does not write thousands of them.
_LINE_INTERVAL = 10.0
_LINE_FRACTION = 0.1


class Progress:
    """Show on standard error how much of some work is done.

    On a terminal it is a tqdm bar. Without tqdm, or where output goes to a file, it is a line every
    ten seconds, then less and less often, and one at the end.

    Args:
        description: The work, in a word or two.
        total: Number of units; None where it is not known.
        unit: Name of a unit.
        initial: Units done before, by an earlier run.

    Example:
        >>> with Progress("Evaluating", len(batches)) as progress:
        ...     progress.advance()
    """

    def __init__(
        self, description: str, total: int | None, unit: str = "step", initial: int = 0
    ) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self._done = self._initial = initial
        self._start_time = self._shown_time = time.monotonic()
        self._note = ""
        self._shown_count = initial
        self._bar = _terminal_bar(description, total, unit, initial)

    def advance(self, by: int = 1, note: str = "") -> None:
        """Count units as done.

        Args:
            by: Number of units.
            note: Text to show behind the numbers until the next one replaces it.
        """
        self._done += by
        self._note = note or self._note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(by)
        else:
            now = time.monotonic()
            if now - self._shown_time >= max(
                _LINE_INTERVAL, _LINE_FRACTION * (now - self._start_time)
            ):
                self._show_line()

    def message(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the display."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._done > self._shown_count and self._shown_time > self._start_time:
            # Work too short for a first line gets no last one either.
            self._show_line()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _show_line(self) -> None:
        self._shown_time = time.monotonic()
        self._shown_count = self._done
        seconds = (self._shown_time - self._start_time) / max(1, self._done - self._initial)
        whole = "" if self.total is None else f"/{self.total}"
        parts = [f"{self.description}: {self._done}{whole}", f"{seconds:.2f} s/{self.unit}"]
        if self.total is not None:
            left = _duration(seconds * (self.total - self._done))
            parts.append(f"{left} left" if self._done < self.total else "done")
        parts += [self._note] if self._note else []
        print(", ".join(parts), file=sys.stderr, flush=True)


def tracked(
    items: Iterable[T], description: str, total: int | None, unit: str = "image"
) -> Iterator[T]:
    """Yield the items and show how many are done.

    Args:
        items: The items.
        description: The work, in a word or two.
        total: Number of items; None where it is not known.
        unit: Name of an item.
    """
    with Progress(description, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def _terminal_bar(description: str, total: int | None, unit: str, initial: int) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return None
    return tqdm(total=total, initial=initial, desc=description, unit=unit, dynamic_ncols=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
