"""The parts of a data set that its new format has no place for, counted."""

from __future__ import annotations


class Losses:
    """Counts what could not be kept, by what it is and what became of it."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, what: str, became: str, count: int = 1) -> None:
        """Count something.

        Args:
            what: The things, in the plural.
            became: The reason, and what is written instead.
            count: How many.
        """
        if count:
            key = what, became
            self._counts[key] = self._counts.get(key, 0) + int(count)

    def texts(self) -> tuple[str, ...]:
        """Return one sentence per kind, with the count."""
        return tuple(f"{what}: {count} ({why})" for (what, why), count in self._counts.items())
