"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

# Where there is no terminal, such as in the log of a batch system, the next line comes after so
# many seconds or so large a part of the time since the start: nobody reads thousands of lines.
_LINE_INTERVAL = 10.0
_LINE_PART = 0.1


class Progress:
    """Shows how much of some work is done, on standard error.

    On a terminal it is a tqdm bar; without tqdm, or where output goes to a file, it is a line every
    ten seconds, then more and more rarely, and one at the end.

    Args:
        what: The work, in a word or two.
        total: Number of units.
        unit: Name of a unit.
        done: Units that were done before, by an earlier run.

    Example:
        >>> with Progress("Evaluating", len(batches)) as progress:
        ...     progress.advance()
    """

    def __init__(self, what: str, total: int, unit: str = "step", done: int = 0) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self._done = self._before = done
        self._started = self._shown = time.monotonic()
        self._note = ""
        self._lines_at = done
        self._bar = _terminal_bar(what, total, unit, done)

    def advance(self, by: int = 1, note: str = "") -> None:
        """Counts units as done; ``note`` stands behind the numbers until the next one."""
        self._done += by
        self._note = note or self._note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(by)
        else:
            now = time.monotonic()
            if now - self._shown >= max(_LINE_INTERVAL, _LINE_PART * (now - self._started)):
                self._show_line()

    def message(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the display."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._done > self._lines_at and self._shown > self._started:
            # Only work that was long enough for a line deserves a last one.
            self._show_line()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _show_line(self) -> None:
        self._shown = time.monotonic()
        self._lines_at = self._done
        seconds = (self._shown - self._started) / max(1, self._done - self._before)
        left = _duration(seconds * (self.total - self._done))
        parts = [
            f"{self.what}: {self._done}/{self.total}",
            f"{seconds:.2f} s/{self.unit}",
            f"{left} left" if self._done < self.total else "done",
        ]
        parts += [self._note] if self._note else []
        print(", ".join(parts), file=sys.stderr, flush=True)


def tracked(items: Iterable[T], what: str, total: int, unit: str = "image") -> Iterator[T]:
    """Yields the items and shows how many have been worked on."""
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def _terminal_bar(what: str, total: int, unit: str, done: int) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return None
    return tqdm(total=total, initial=done, desc=what, unit=unit, dynamic_ncols=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
